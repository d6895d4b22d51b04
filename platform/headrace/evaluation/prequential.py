"""Score first, train after: the honest online metric.

Every version that matters answers the queries of a cut before anything learns from it: live (what users get), frozen
(what they would get had nothing been updated), trusted (what a roll back would serve, while live is compared to it),
the learner and each of its experts. Ranks of one group of queries are computed where the rows are and gathered, so that
all ranks hold the same figures, in ledger order.
Shape legend: Q queries, R = Q + 1 offsets, T targets (flat), K voters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.blend.split import OnRepeats
from headrace.blend.weights import per_query
from headrace.evaluation.coherence import Coherence, best_coherence, draw_controls
from headrace.evaluation.metrics import METRICS
from headrace.evaluation.sequential import CONTESTS
from headrace.inputs.contexts import Contexts, offsets, ranges
from headrace.recommend.recommender import BLEND, Judged, Recommender
from headrace.recommend.votes import Heard
from headrace.records import hash64_array

Arrays = Mapping[str, NDArray[Any]]
Gather = Callable[[Arrays], list[Arrays]]
"""Every rank's arrays, in rank order, on every rank."""
_CUTOFF = 20
_CHUNK = 1024
"""Queries that all versions answer before the next ones are asked: what counters say is kept for so long."""


@dataclass(frozen=True)
class Queries:
    """Questions that the cut's own events ask, each with the targets that answer it. Made from one rank's rows."""

    contexts: Contexts
    target_T: NDArray[np.int64]
    """Item numbers."""
    offset_R: NDArray[np.int64]
    shard_Q: NDArray[np.int64]
    row_Q: NDArray[np.int64]
    event_Q: NDArray[np.uint64]
    """Hash of the event id of the (first) target."""

    def __len__(self) -> int:
        return len(self.row_Q)

    def repeats(self) -> NDArray[np.bool_]:
        """Which targets lie in their own query's context, (T,)."""
        contexts = self.contexts
        held_T = (np.repeat(np.arange(len(contexts)), contexts.length_Q) << 32) | contexts.item_T
        asked_T = (np.repeat(np.arange(len(self)), np.diff(self.offset_R)) << 32) | self.target_T
        return np.isin(asked_T, held_T)

    def count_repeats(self) -> tuple[int, int]:
        """Targets, and how many of them lie in their own query's context."""
        return len(self.target_T), int(self.repeats().sum())

    def take(self, index_B: NDArray[np.integer]) -> "Queries":
        """These queries, in this order."""
        length_B = np.diff(self.offset_R)[index_B]
        return Queries(
            self.contexts.take(index_B),
            self.target_T[ranges(self.offset_R[:-1][index_B], length_B)],
            offsets(length_B),
            self.shard_Q[index_B],
            self.row_Q[index_B],
            self.event_Q[index_B],
        )


@dataclass(frozen=True)
class Scored:
    """A cut's figures, alike on every rank. Read by the gate, the blend's weights and the commit."""

    num_queries: int
    num_known: int
    """Queries with a context item and a target that the learner knows: what the ADER protocol averages over."""
    metrics: dict[str, dict[str, float]]
    """By "live", "frozen", "learner" and the name of each of the learner's experts, over all queries."""
    metrics_known: dict[str, dict[str, float]]
    """The same over the known ones."""
    probability: dict[str, NDArray[np.float64]]
    """For each of the learner's experts, (Q,) in ledger order: the target's probability (mean over its eligible
    targets); nan where the expert abstained or no target was eligible."""
    slope: dict[str, NDArray[np.float64]]
    """Of that probability by the logarithm of the expert's exponent, (Q,), likewise; see ``Judged``."""
    faults: dict[str, int]
    """By expert of the learner, where there are any: queries on which it failed, or its vote was not a probability."""
    gains: Mapping[str, NDArray[np.int8]]
    """Of the blend and the neural expert, (T,) in rank order: live's hit at 20 less trusted's; empty where trusted was
    not asked."""
    target_T: NDArray[np.int64]
    """The items that these targets are."""
    item_T: NDArray[np.int64]
    """The same in ledger order of their queries."""
    ranks: Mapping[str, NDArray[np.int64]]
    """By name, as ``metrics``: the rank of every target, (T,), in the order of ``item_T``."""
    coherence: Coherence | None
    """None where there is nothing to compare."""
    repeated: OnRepeats | None = None
    """Where the learner's blend is split: the side of repeats, (Q,) in ledger order; ``probability`` and ``slope`` are
    then of the other side."""


def sample(queries: Queries, max_queries: int | None, seed: int, gather: Gather) -> Queries:
    """This rank's share of the ``max_queries`` with the smallest hash of their event, over all ranks together."""
    if max_queries is None:
        return queries
    draw_Q = hash64_array(queries.event_Q, seed, "queries")
    smallest = np.sort(draw_Q)[: max_queries + 1]  # one more, which the threshold is
    all_drawn = np.sort(np.concatenate([part["draw"] for part in gather({"draw": smallest})]))
    if len(all_drawn) <= max_queries:
        return queries
    return queries.take(np.flatnonzero(draw_Q < all_drawn[max_queries]))


def score(
    queries: Queries,
    live: Recommender,
    learner: Recommender,
    frozen: Recommender | None,
    gather: Gather,
    trusted: Recommender | None = None,
) -> Scored:
    """Rank every query's targets with each version; figures are means over all ranks' queries."""
    faults = learner.faults
    asked = [version for version in (learner, live, frozen, trusted) if version is not None]
    versions = {id(version): version for version in asked}  # live is often the learner
    judged = _judge(versions, queries, learner, draw_controls(queries.target_T, gather))
    own = judged[id(learner)]
    failed = [learner.faults.get(name, 0) - faults.get(name, 0) for name in own.probability]
    rank_of = {name: rank_T for name, rank_T in own.rank.items() if name != BLEND}
    rank_of["learner"], rank_of["live"] = own.rank[BLEND], judged[id(live)].rank[BLEND]
    if frozen is not None:
        rank_of["frozen"] = judged[id(frozen)].rank[BLEND]
    gained = _gained(judged[id(live)], judged[id(trusted)]) if trusted is not None else {}
    above = _above(queries, (judged[id(version)] for version in (learner, live, trusted) if version is not None))
    mine: dict[str, NDArray[Any]] = {
        "shard": queries.shard_Q,
        "row": queries.row_Q,
        "length": np.diff(queries.offset_R),
        "known": known(queries, learner),
        "failed": np.array(failed, dtype=np.int64),
        **{f"rank/{name}": rank_T for name, rank_T in rank_of.items()},
        **{f"p/{name}": p_Q for name, p_Q in per_query(own.probability, queries.offset_R).items()},
        **{f"slope/{name}": slope_Q for name, slope_Q in per_query(own.slope, queries.offset_R).items()},
        "target": queries.target_T,
        **{f"gained/{name}": gained_T for name, gained_T in gained.items()},
        **{f"above/{name}": above_Q for name, above_Q in above.items()},
    }
    if own.repeated is not None:
        mine |= _flat(own.repeated.per_query(queries.offset_R))
    parts = gather(mine)
    summary = _summary(parts, list(rank_of), list(own.probability), list(own.slope), list(gained), list(above))
    return summary if own.repeated is None else replace(summary, repeated=_repeated(parts, own.repeated))


def _judge(
    versions: Mapping[int, Recommender], queries: Queries, learner: Recommender, controls: NDArray[np.int64]
) -> dict[int, Judged]:
    """What each version makes of the queries: ranks alone, but for the learner. Shared counters are asked once."""
    judged: dict[int, list[Judged]] = {key: [] for key in versions}
    for first in range(0, max(len(queries), 1), _CHUNK):
        chunk = queries.take(np.arange(first, min(first + _CHUNK, len(queries))))
        heard: dict[int, dict[int, Heard]] = {id(version.experts): {} for version in versions.values()}
        for key, version in versions.items():
            said = heard[id(version.experts)]
            ranks_only = version is not learner
            answer = version.judge(chunk.contexts, chunk.target_T, chunk.offset_R, said, ranks_only, controls)
            judged[key].append(answer)
    return {key: Judged.joined(parts) for key, parts in judged.items()}


def _gained(live: Judged, trusted: Judged) -> dict[str, NDArray[np.int8]]:
    """For each target, live's hit at 20 less trusted's."""
    return {name: (live.rank[name] <= _CUTOFF).astype(np.int8) - (trusted.rank[name] <= _CUTOFF) for name in CONTESTS}


def _above(queries: Queries, judged: Iterable[Judged]) -> dict[str, NDArray[np.float64]]:
    """For each query, (Q,): the share of controls that each of these answers ranks below its targets.

    NaN where the context is empty: such a query says nothing of whether items belong to their rows.
    """
    above = {str(nth): one.above_T for nth, one in enumerate(judged) if one.above_T is not None}
    asked_Q = queries.contexts.length_Q > 0
    return {name: np.where(asked_Q, of_Q, np.nan) for name, of_Q in per_query(above, queries.offset_R).items()}


def known(queries: Queries, learner: Recommender) -> NDArray[np.bool_]:
    """Of each query, ``(Q,)``: whether the learner knows an item of its context, and a target may be answered."""
    context_Q = learner.known(queries.contexts).length_Q > 0
    target_T = learner.eligible.column_of(queries.target_T) >= 0
    return np.asarray(context_Q & (np.add.reduceat(np.append(target_T, False), queries.offset_R[:-1]) > 0))


def _summary(
    parts: Sequence[Arrays],
    voters: Sequence[str],
    experts: Sequence[str],
    calibrated: Sequence[str],
    compared: Sequence[str],
    answers: Sequence[str],
) -> Scored:
    length_Q, order_Q = np.concatenate([part["length"] for part in parts]), _ledger_order(parts)
    order_T = ranges(offsets(length_Q)[:-1][order_Q], length_Q[order_Q])
    known_Q = np.concatenate([part["known"] for part in parts])[order_Q]
    metrics: dict[str, dict[str, float]] = {}
    metrics_known: dict[str, dict[str, float]] = {}
    for voter in voters if len(order_Q) else ():
        values = {name: _per_query(parts, f"rank/{voter}", name)[order_Q] for name in METRICS}
        metrics[voter] = {name: float(value_Q.mean()) for name, value_Q in values.items()}
        if known_Q.any():
            metrics_known[voter] = {name: float(value_Q[known_Q].mean()) for name, value_Q in values.items()}
    probability = {name: np.concatenate([part[f"p/{name}"] for part in parts])[order_Q] for name in experts}
    slope = {name: np.concatenate([part[f"slope/{name}"] for part in parts])[order_Q] for name in calibrated}
    gains = {name: np.concatenate([part[f"gained/{name}"] for part in parts]) for name in compared}
    target_T = np.concatenate([part["target"] for part in parts])
    ranks = {voter: np.concatenate([part[f"rank/{voter}"] for part in parts])[order_T] for voter in voters}
    failed = np.sum([part["failed"] for part in parts], axis=0).tolist()
    faults = {name: count for name, count in zip(experts, failed, strict=True) if count}
    above = {name: np.concatenate([part[f"above/{name}"] for part in parts])[order_Q] for name in answers}
    return Scored(
        len(order_Q),
        int(known_Q.sum()),
        metrics,
        metrics_known,
        probability,
        slope,
        faults,
        gains,
        target_T,
        target_T[order_T],
        ranks,
        best_coherence(above),
    )


def _ledger_order(parts: Sequence[Arrays]) -> NDArray[np.int64]:
    shard_Q, row_Q = (np.concatenate([part[name] for part in parts]) for name in ("shard", "row"))
    return np.lexsort((row_Q, shard_Q))


def _flat(told: OnRepeats) -> dict[str, NDArray[Any]]:
    """The side of repeats as arrays that can be gathered."""
    p = {f"repeated/p/{name}": p_Q for name, p_Q in told.probability.items()}
    slope = {f"repeated/slope/{name}": slope_Q for name, slope_Q in told.slope.items()}
    return {**p, **slope, "repeated/asked": told.asked_B, "repeated/again": told.repeated_B}


def _repeated(parts: Sequence[Arrays], like: OnRepeats) -> OnRepeats:
    """All ranks' side of repeats, in ledger order, of what ``_flat`` made of such as ``like``."""
    told = [
        OnRepeats(
            {name: part[f"repeated/p/{name}"] for name in like.probability},
            {name: part[f"repeated/slope/{name}"] for name in like.slope},
            part["repeated/asked"],
            part["repeated/again"],
        )
        for part in parts
    ]
    return OnRepeats.joined(told).take(_ledger_order(parts))


def _per_query(parts: Sequence[Arrays], key: str, metric: str) -> NDArray[np.float64]:
    return np.concatenate([METRICS[metric](part[key], offsets(part["length"])) for part in parts])
