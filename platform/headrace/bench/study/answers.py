"""What versions answered to a test's queries, rank by rank: made, kept, and summed up.

Two blends are told apart: "blend", whose weights are those of the commit that answers, and "blend_running", whose
weights move on every 500 queries, since a test may be long. Shape legend: Q queries, R = Q + 1 offsets, T targets.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.bench.study.shelf import Shelf
from headrace.blend.calibration import Calibration, recalibrate
from headrace.blend.split import OnRepeats, Split, split_of
from headrace.blend.weights import NEURAL as NEURAL
from headrace.blend.weights import Weights, per_query, update
from headrace.catalogue.ids import Catalogue
from headrace.config.answers import BlendConfig
from headrace.errors import ConfigError
from headrace.evaluation.metrics import METRICS, recall
from headrace.evaluation.prequential import Queries
from headrace.inputs.contexts import offsets, ranges
from headrace.recommend.recommender import BLEND, Recommender

RUNNING = "blend_running"
NEW = "new_item_recall@20"
_STRIDE = 500
PARTS = ("repeat", "explore")
"""Of targets: those that lie in their query's context, and the others."""
CUTOFFS = (20, 100, 500)
"""At which the recall of each part is told."""
_PLAIN = ("key_Q", "session_Q", "ts_Q", "offset_R", "new_T", "repeat_T")
_HIGHEST = np.iinfo(np.uint16).max
"""What ranks beyond every cutoff are kept as."""


@dataclass(frozen=True)
class Answers:
    """One test. Made by protocols of the study; kept as an npz file, so that two methods can be paired later."""

    key_Q: NDArray[np.int64]
    """Names a query, whichever method answers it: period and row; ascending."""
    session_Q: NDArray[np.uint64]
    ts_Q: NDArray[np.int64]
    """When it was asked, event time, ms."""
    offset_R: NDArray[np.int64]
    new_T: NDArray[np.bool_]
    """Whether the target was first met in the newest period that was trained (never in the first test)."""
    repeat_T: NDArray[np.bool_]
    """Whether the target lies in its own query's context."""
    ranks: Mapping[str, NDArray[np.int64]]
    """By "neural", "blend", "blend_running" and the name of each counter, (T,)."""

    def __len__(self) -> int:
        return len(self.key_Q)

    @property
    def slice_Q(self) -> NDArray[np.int64]:
        """The period in which each was asked."""
        return self.key_Q >> 32

    def figures(self, name: str) -> dict[str, float | None]:
        """Every metric's mean over the queries; of new items' recall, over those whose target is one.

        Also recall of the targets that lie in their query's context and of those that do not, over the queries that
        have such ones: "repeat_recall@20", "explore_recall@20", ..
        """
        rank_T = self.ranks[name]
        means = {metric: float(of(rank_T, self.offset_R).mean()) for metric, of in METRICS.items()}
        is_new_Q = _any(self.new_T, self.offset_R)
        hit_Q = recall(20)(rank_T, self.offset_R)
        parts = dict(zip(PARTS, (self.repeat_T, ~self.repeat_T), strict=True))
        split = {
            f"{part}_recall@{cutoff}": _mean_recall(rank_T, self.offset_R, is_meant_T, cutoff)
            for part, is_meant_T in parts.items()
            for cutoff in CUTOFFS
        }
        asked = {f"{part}_queries": int(_any(is_meant_T, self.offset_R).sum()) for part, is_meant_T in parts.items()}
        return {**means, NEW: float(hit_Q[is_new_Q].mean()) if is_new_Q.any() else None, **split, **asked}

    def take(self, index_B: NDArray[np.integer]) -> "Answers":
        """These queries, in this order."""
        length_B = np.diff(self.offset_R)[index_B]
        flat_T = ranges(self.offset_R[:-1][index_B], length_B)
        return Answers(
            self.key_Q[index_B],
            self.session_Q[index_B],
            self.ts_Q[index_B],
            offsets(length_B),
            self.new_T[flat_T],
            self.repeat_T[flat_T],
            {name: rank_T[flat_T] for name, rank_T in self.ranks.items()},
        )

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all; ranks are kept up to 65,535."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        for name, rank_T in self.ranks.items():
            arrays[f"rank/{name}"] = np.minimum(rank_T, _HIGHEST).astype(np.uint16)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> "Answers":
        """What ``save`` wrote."""
        with np.load(path) as kept:
            arrays: dict[str, NDArray[Any]] = dict(kept)
        ranks = {name.removeprefix("rank/"): array for name, array in arrays.items() if name.startswith("rank/")}
        if lacking := set(_PLAIN) - set(arrays):
            raise ConfigError(f"{path} was kept by an older version, without {', '.join(lacking)}: run it anew")
        plain = {name: arrays[name] for name in _PLAIN}
        return cls(**plain, ranks={name: rank_T.astype(np.int64) for name, rank_T in ranks.items()})


@dataclass(frozen=True)
class Blend:
    """Weights and temperatures, as a stream moves them."""

    weights: Weights
    calibration: Calibration
    split: Split | None
    """Its side of repeats, where it has one."""

    @classmethod
    def even(cls, counters: Sequence[str], config: BlendConfig) -> "Blend":
        """Before any query."""
        return cls(Weights.even(counters), Calibration.plain(counters), split_of(config, counters))

    def moved(
        self,
        p: Mapping[str, NDArray[np.float64]],
        slope: Mapping[str, NDArray[np.float64]],
        repeated: OnRepeats | None,
        config: BlendConfig,
    ) -> "Blend":
        """After these queries, (Q,) by expert, in the order in which an increment moves them."""
        calibration = recalibrate(self.calibration, self.weights, p, slope) if config.calibrate else self.calibration
        weights, split = update(self.weights, p, config.eta, config.share).weights, self.split
        if split is not None and repeated is not None:
            split, calibration = split.moved(calibration, repeated, config)
        return Blend(weights, calibration, split)

    def of(self, version: Recommender) -> Recommender:
        """This version, answering with these weights."""
        return version.remixed(self.weights, self.calibration.exponents, self.split)


def in_order(asked: Queries) -> Queries:
    """The queries in ledger order."""
    return asked.take(np.lexsort((asked.row_Q, asked.shard_Q)))


def running(asked: Queries, version: Recommender, blend: Blend, config: BlendConfig) -> NDArray[np.int64]:
    """Ranks of the targets, (T,), by the version's blend while its weights move; the queries are in ledger order."""
    ranks = [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(asked), _STRIDE):
        chunk = asked.take(np.arange(first, min(first + _STRIDE, len(asked))))
        judged = blend.of(version).judge(chunk.contexts, chunk.target_T, chunk.offset_R)
        ranks.append(judged.rank[BLEND])
        p, slope = (per_query(of, chunk.offset_R) for of in (judged.probability, judged.slope))
        repeated = None if judged.repeated is None else judged.repeated.per_query(chunk.offset_R)
        blend = blend.moved(p, slope, repeated, config)
    return np.concatenate(ranks)


def answered(asked: Queries, ranks: Mapping[str, NDArray[np.int64]], shelf: Shelf, new_T: NDArray[np.bool_]) -> Answers:
    """The answers to queries in ledger order, named by the shelf's periods."""
    key_Q = (shelf.period_of(asked.shard_Q) << 32) | asked.row_Q
    return Answers(
        key_Q, asked.contexts.session_Q, asked.contexts.as_of_Q, asked.offset_R, new_T, asked.repeats(), dict(ranks)
    )


def concatenate(parts: Sequence[Answers]) -> Answers:
    """All of these, in this order; at least one."""
    first = parts[0]
    return Answers(
        np.concatenate([part.key_Q for part in parts]),
        np.concatenate([part.session_Q for part in parts]),
        np.concatenate([part.ts_Q for part in parts]),
        offsets(np.concatenate([np.diff(part.offset_R) for part in parts])),
        np.concatenate([part.new_T for part in parts]),
        np.concatenate([part.repeat_T for part in parts]),
        {name: np.concatenate([part.ranks[name] for part in parts]) for name in first.ranks},
    )


def born(shelf: Shelf, catalogue: Catalogue) -> NDArray[np.int64]:
    """The period in which each item of the catalogue, by number, is first met."""
    return shelf.born(catalogue.raw_ids(np.arange(len(catalogue))))


def known(asked: Queries, born_I: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """The queries that the protocol asks: a context item and a target were met before this period."""
    contexts = asked.contexts
    context_Q = _any(born_I[contexts.item_T] < period, contexts.offset_R)
    return np.flatnonzero(context_Q & _any(born_I[asked.target_T] < period, asked.offset_R))


def _mean_recall(
    rank_T: NDArray[np.int64], offset_R: NDArray[np.int64], is_meant_T: NDArray[np.bool_], cutoff: int
) -> float | None:
    """Mean over the queries that have such targets of the share of these that is found; None where there are none."""
    query_T = np.repeat(np.arange(len(offset_R) - 1), np.diff(offset_R))
    meant_Q = np.bincount(query_T[is_meant_T], minlength=len(offset_R) - 1)
    found_Q = np.bincount(query_T[is_meant_T & (rank_T <= cutoff)], minlength=len(offset_R) - 1)
    asked_Q = meant_Q > 0
    return float((found_Q[asked_Q] / meant_Q[asked_Q]).mean()) if asked_Q.any() else None


def _any(holds_T: NDArray[np.bool_], offset_R: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each query, whether it holds for one of its entries."""
    before = np.concatenate([[0], np.cumsum(holds_T)])
    return np.asarray(before[offset_R[1:]] > before[offset_R[:-1]])
