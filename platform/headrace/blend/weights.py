"""The blend's weights, moved by the stream with Soft-Bayes (arXiv 1901.02230).

Per query, in ledger order: ``w_k <- w_k (1 - eta + eta p_k / p_mix)``, then a small share is spread evenly, so that no
weight can die. Experts that abstain (NaN) are left out: their weights stay, and the others move within the mass that
they hold together. The regret against the best single expert is at most ``ln(K) / eta`` plus what the share costs.
The recurrence is not linear, so it runs query by query, on Python's floats: two microseconds a query.
Shape legend: K experts, Q queries, R = Q + 1 offsets, T targets (flat).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEURAL = "neural"
UNIFORM = "uniform"


def expert_names(counters: Sequence[str]) -> tuple[str, ...]:
    """Everything that is blended, in the order of weights: the model, the recipe's counters, and uniform, always."""
    return (NEURAL, *counters, UNIFORM)


@dataclass(frozen=True)
class Weights:
    """The weights of one commit: positive, summing to 1. State; made here, kept in the commit's facts."""

    names: tuple[str, ...]
    w_K: tuple[float, ...]

    @classmethod
    def even(cls, counters: Sequence[str]) -> "Weights":
        """An even start over the model, these counters and uniform."""
        names = expert_names(counters)
        return cls(names, (1.0 / len(names),) * len(names))

    @classmethod
    def from_mapping(cls, weights: Mapping[str, float]) -> "Weights":
        """The weights that a commit's facts hold, in their order."""
        return cls(tuple(weights), tuple(float(weight) for weight in weights.values()))

    def as_mapping(self) -> dict[str, float]:
        """Name to weight, as JSON keeps it to the last bit."""
        return dict(zip(self.names, self.w_K, strict=True))


@dataclass(frozen=True)
class Moved:
    """What an update did. ``left_out`` counts, by name, the queries on which an expert had no (finite) probability."""

    weights: Weights
    num_updates: int
    """Queries that moved the weights: those with an eligible target."""
    left_out: Mapping[str, int]


def per_query(p: Mapping[str, NDArray[np.float64]], offset_R: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each expert's probability of each query's targets, (T,) to (Q,): the mean over those that are not NaN."""
    counts_Q = np.diff(offset_R)
    query_T = np.repeat(np.arange(len(counts_Q)), counts_Q)
    means: dict[str, NDArray[np.float64]] = {}
    for name, p_T in p.items():
        good_T = np.isfinite(p_T)
        total_Q = np.bincount(query_T[good_T], weights=p_T[good_T], minlength=len(counts_Q))
        number_Q = np.bincount(query_T[good_T], minlength=len(counts_Q))
        means[name] = np.where(number_Q > 0, total_Q / np.maximum(number_Q, 1), np.nan)
    return means


def update(weights: Weights, p: Mapping[str, NDArray[np.float64]], eta: float, share: float) -> Moved:
    """Runs in every increment, after scoring, alike on every rank: move the weights over Q queries in ledger order.

    ``p`` names each expert's (Q,) probabilities of the targets, float64. NaN, negative and infinite ones are left out;
    a query on which all are left out, because its target is not eligible, moves nothing.
    """
    p_QK = np.stack([np.asarray(p[name], dtype=np.float64) for name in weights.names], axis=1)
    good_QK = np.isfinite(p_QK) & (p_QK >= 0.0)
    some_Q = good_QK.any(axis=1)
    left_out_K = (~good_QK[some_Q]).sum(axis=0).tolist()
    everyone = tuple(range(len(weights.names)))
    w_K = list(weights.w_K)
    for p_K, good_K in zip(p_QK[some_Q].tolist(), good_QK[some_Q].tolist(), strict=True):
        active = everyone if all(good_K) else tuple(k for k in everyone if good_K[k])
        _step(w_K, p_K, active, eta, share)
    total = math.fsum(w_K)
    moved = Weights(weights.names, tuple(weight / total for weight in w_K))
    return Moved(moved, int(some_Q.sum()), dict(zip(weights.names, left_out_K, strict=True)))


def _step(w_K: list[float], p_K: list[float], active: tuple[int, ...], eta: float, share: float) -> None:
    """One query, in place; the mass of the active experts stays what it is."""
    mass = sum(w_K[k] for k in active)
    p_mix = sum(w_K[k] * p_K[k] for k in active) / mass
    if p_mix <= 0.0:
        return
    keep = (1.0 - share) * (1.0 - eta)
    gain = (1.0 - share) * eta / p_mix
    even = share * mass / len(active)
    for k in active:
        w_K[k] = w_K[k] * (keep + gain * p_K[k]) + even
