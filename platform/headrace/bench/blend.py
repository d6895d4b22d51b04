"""``headrace bench blend``: how near the blend's weights come to the best fixed mixture in hindsight.

Every cut's queries are scored by the learner before it trains, as an increment does. Of each query is kept what every
expert gives to its target, and of a sample also what they give to the items that could outrank it: the best of each
expert, of the blend as it stands, and of an even one (so ranks of a mixture far from these are from below). From these,
mixtures are compared that share everything but their weights: Soft-Bayes query by query, as in production fixed over a
cut, and the best fixed ones, by log loss (expectation-maximisation) and by MRR@20 (a search along coordinates). Targets
are the first of each query. Imports neither ray nor wandb.
Shape legend: Q queries, K experts, C candidates of a query, of which the first is the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.bench.output import print_table
from headrace.blend.weights import Weights, update
from headrace.config.answers import BlendConfig
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.evaluation.prequential import Queries
from headrace.records import CutRows
from headrace.train.offline import queries_of, replay
from headrace.train.state import LearnerState

_BEST = 60  # of each expert and of two mixtures, that are candidates for the first 20 of any mixture
_STRIDE = 500


@dataclass
class _Kept:
    """What was kept of all cuts' queries so far, in ledger order; filled by ``add``."""

    max_ranked: int
    names: tuple[str, ...] = ()
    start: tuple[float, ...] = ()
    """Weights before the first query."""
    p_QK: list[NDArray[np.float64]] = field(default_factory=list)
    """NaN where an expert abstains."""
    cut_Q: list[int] = field(default_factory=list)
    ranked: list[int] = field(default_factory=list)
    """Which queries have candidates."""
    p_CK: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, part: CutRows, state: LearnerState) -> CutRows:
        """The queries that this cut asks, as the learner answers them."""
        learner = state.learner
        if learner is None:
            return part
        asked = _single(queries_of(part, state))
        if not self.names:
            self.names, self.start = state.weights.names, state.weights.w_K
        judged = learner.judge(asked.contexts, asked.target_T, asked.offset_R)
        p_QK = np.stack([judged.probability[name] for name in self.names], axis=1)
        on_Q = np.isfinite(p_QK).any(axis=1)
        asked, p_QK = asked.take(np.flatnonzero(on_Q)), p_QK[on_Q]
        drawn_Q = np.linspace(0, len(asked) - 1, min(len(asked), self.max_ranked)).astype(np.int64)
        self.ranked += (sum(len(part) for part in self.p_QK) + drawn_Q).tolist()
        column_Q = learner.eligible.column_of(asked.target_T)[drawn_Q]
        for rows, dense in learner.probabilities(asked.contexts.take(drawn_Q)):
            mixed = sum(weight * dense[name] for name, weight in state.weights.as_mapping().items())
            even = sum(dense.values()) / len(dense)
            best = _best([*dense.values(), torch.as_tensor(mixed), torch.as_tensor(even)])
            self.p_CK += _candidates([dense[name] for name in self.names], best, column_Q[rows])
        self.p_QK.append(p_QK)
        self.cut_Q += [part.cut.number] * len(asked)
        return part


def run(
    *,
    data: Path,
    increments: int | None = None,
    ranked: int = 500,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/globo.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Replay ``increments`` cuts after the warm-up (None: all), with ``ranked`` queries of each ranked; print both.

    Losses are nats a query; R@20 and MRR@20 are shares, over the ranked queries whose target may be answered.
    """
    made = load_recipe([str(recipe)], [*overrides, f"feed.path={data}", "evaluation.frozen_every=1000000000"])
    kept = _Kept(ranked)
    for _ in replay(made, torch.device(device), increments, kept.add):
        pass
    if not kept.ranked:
        raise ConfigError(f"{data} gave no increment that could be scored: it needs more than the warm-up")
    p_QK, cut_Q, ranked_P = np.concatenate(kept.p_QK), np.array(kept.cut_Q), np.array(kept.ranked)
    moving_QK, fixed_QK, strided_QK = _moved(p_QK, cut_Q, Weights(kept.names, kept.start), made.blend)
    by_loss_K = _best_by_loss(p_QK)
    by_rank_K = _best_by_rank(kept.p_CK, by_loss_K)
    mixtures = {
        "Soft-Bayes, query by query": moving_QK,
        f"Soft-Bayes, every {_STRIDE} queries": strided_QK,
        "Soft-Bayes, fixed over a cut": fixed_QK,
        "best fixed, by log loss": np.broadcast_to(by_loss_K, p_QK.shape),
        "best fixed, by MRR@20": np.broadcast_to(by_rank_K, p_QK.shape),
    }
    for k, name in enumerate(kept.names):
        mixtures[f"{name} alone"] = np.broadcast_to(np.eye(len(kept.names))[k], p_QK.shape)
    figures = {label: _figures(w_QK, p_QK, ranked_P, kept.p_CK) for label, w_QK in mixtures.items()}
    weights = {"best by loss": by_loss_K, "best by MRR@20": by_rank_K, "last": moving_QK[-1]}
    _print(figures, weights, kept.names)
    return {
        "queries": len(p_QK),
        "ranked": len(ranked_P),
        "mixtures": figures,
        "loss_above_best_fixed": _loss(moving_QK, p_QK) - _loss(mixtures["best fixed, by log loss"], p_QK),
        "weights": {label: dict(zip(kept.names, w_K.tolist(), strict=True)) for label, w_K in weights.items()},
    }


def _single(asked: Queries) -> Queries:
    """In ledger order, each with its first target alone."""
    asked = asked.take(np.lexsort((asked.row_Q, asked.shard_Q)))
    first_Q = asked.offset_R[:-1]
    return Queries(
        asked.contexts,
        asked.target_T[first_Q],
        np.arange(len(asked) + 1),
        asked.shard_Q,
        asked.row_Q,
        asked.event_Q,
    )


def _best(scores: list[torch.Tensor]) -> list[NDArray[np.int64]]:
    """The columns of the highest scores of each query, ``(Q, B)`` for each of these."""
    return [score_QE.topk(min(_BEST, score_QE.shape[1]), dim=1).indices.cpu().numpy() for score_QE in scores]


def _candidates(
    dense: list[torch.Tensor], best: list[NDArray[np.int64]], column_Q: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """For each query of a block ``(C, K)``: the target's probabilities, then those of all others among the best."""
    found = []
    for row, column in enumerate(column_Q.tolist()):
        others = np.setdiff1d(np.concatenate([index_QB[row] for index_QB in best]), [column])
        chosen_C = np.concatenate([[column], others])
        found.append(np.stack([p_QE[row].cpu().numpy()[chosen_C] for p_QE in dense], axis=1))
    return found


def _moved(
    p_QK: NDArray[np.float64], cut_Q: NDArray[np.int64], start: Weights, blend: BlendConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The weights ``(Q, K)`` with which each query is answered: moved by query, fixed over its cut, every stride."""
    weights, moving = start, []
    for p_K in p_QK:
        moving.append(weights.w_K)
        named = dict(zip(start.names, p_K[:, None], strict=True))
        weights = update(weights, named, blend.eta, blend.share).weights
    moving_QK = np.array(moving)
    first_Q = np.searchsorted(cut_Q, cut_Q, side="left")
    asked_Q = np.arange(len(cut_Q)) - first_Q
    return moving_QK, moving_QK[first_Q], moving_QK[first_Q + asked_Q // _STRIDE * _STRIDE]


def _active(w_QK: NDArray[np.float64], p_QK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights renormalised over the experts that vote on each query."""
    held_QK = np.where(np.isfinite(p_QK), w_QK, 0.0)
    active_QK: NDArray[np.float64] = held_QK / np.maximum(held_QK.sum(axis=1, keepdims=True), 1e-300)
    return active_QK


def _best_by_loss(p_QK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fixed weights with the least log loss."""
    weight_K: NDArray[np.float64] = np.full(p_QK.shape[1], 1 / p_QK.shape[1])
    known_QK = np.nan_to_num(p_QK)
    votes_QK = np.isfinite(p_QK)
    for _ in range(500):
        mass_Q = votes_QK @ weight_K  # abstainers keep their weight: the others move within the mass they hold
        posterior_QK = weight_K * known_QK / np.maximum(known_QK @ weight_K, 1e-300)[:, None]
        kept_QK = np.where(votes_QK, posterior_QK * mass_Q[:, None], weight_K)
        mean_K: NDArray[np.float64] = kept_QK.mean(axis=0)
        weight_K = mean_K / mean_K.sum()
    return weight_K


def _best_by_rank(p_CK: list[NDArray[np.float32]], start_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fixed weights with the highest MRR@20, by moves of mass from one expert to another, large ones first."""
    weight_K, best = start_K, _mrr(p_CK, start_K)
    for step in (0.2, 0.1, 0.05, 0.02):
        improved = True
        while improved:
            improved = False
            for k in range(len(weight_K)):
                for sign in (step, -step):
                    tried_K = weight_K.copy()
                    tried_K[k] = max(tried_K[k] + sign, 1e-4)
                    tried_K /= tried_K.sum()
                    value = _mrr(p_CK, tried_K)
                    if value > best:
                        weight_K, best, improved = tried_K, value, True
    return weight_K


def _mrr(p_CK: list[NDArray[np.float32]], weight_K: NDArray[np.float64]) -> float:
    rank_P = _ranks(p_CK, np.broadcast_to(weight_K, (len(p_CK), len(weight_K))))
    return float(np.where(rank_P <= 20, 1.0 / rank_P, 0.0).mean())


def _ranks(p_CK: list[NDArray[np.float32]], w_PK: NDArray[np.float64]) -> NDArray[np.int64]:
    ranks = []
    for p, w_K in zip(p_CK, w_PK, strict=True):
        score_C = p @ w_K.astype(np.float32)
        ranks.append(np.count_nonzero(score_C >= score_C[0]))
    return np.array(ranks)


def _loss(w_QK: NDArray[np.float64], p_QK: NDArray[np.float64]) -> float:
    """Nats a query."""
    mixed_Q = (_active(w_QK, p_QK) * np.nan_to_num(p_QK)).sum(axis=1)
    with np.errstate(divide="ignore"):
        return float(-np.log(mixed_Q).mean())


def _figures(
    w_QK: NDArray[np.float64],
    p_QK: NDArray[np.float64],
    ranked_P: NDArray[np.int64],
    p_CK: list[NDArray[np.float32]],
) -> dict[str, float | None]:
    loss = _loss(w_QK, p_QK)
    rank_P = _ranks(p_CK, w_QK[ranked_P])
    return {
        "loss": loss if np.isfinite(loss) else None,
        "recall@20": float((rank_P <= 20).mean()),
        "mrr@20": float(np.where(rank_P <= 20, 1.0 / rank_P, 0.0).mean()),
    }


def _print(
    figures: dict[str, dict[str, float | None]], weights: dict[str, NDArray[np.float64]], names: tuple[str, ...]
) -> None:
    def loss(value: float | None) -> str:
        return "infinite" if value is None else f"{value:.4f}"

    print_table(
        "mixtures of the same experts",
        ("weights", "log loss", "R@20", "MRR@20"),
        [
            [label, loss(row["loss"]), f"{100 * (row['recall@20'] or 0):.2f}", f"{100 * (row['mrr@20'] or 0):.2f}"]
            for label, row in figures.items()
        ],
    )
    print_table(
        "weights", ("expert", *weights), [[n, *(f"{w[k]:.3f}" for w in weights.values())] for k, n in enumerate(names)]
    )
