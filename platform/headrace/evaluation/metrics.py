"""Ranking metrics from ranks. Shape legend: T targets (flat), Q queries, R = Q + 1 offsets.

A query with several targets (a basket) has its recall averaged over them, its reciprocal rank taken at the first hit,
and its gain divided by the best possible one. A target that cannot be answered has a rank beyond every cutoff: a miss.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


def recall(cutoff: int) -> Metric:
    """Share of a query's targets among its first ``cutoff`` answers."""

    def per_query(rank_T: NDArray[np.int64], offset_R: NDArray[np.int64]) -> NDArray[np.float64]:
        return _sum((rank_T <= cutoff).astype(np.float64), offset_R) / np.diff(offset_R)

    return per_query


def reciprocal_rank(cutoff: int) -> Metric:
    """1 / rank of the first target found, 0 beyond ``cutoff``."""

    def per_query(rank_T: NDArray[np.int64], offset_R: NDArray[np.int64]) -> NDArray[np.float64]:
        if not len(rank_T):
            return np.zeros(len(offset_R) - 1)
        best_Q = np.minimum.reduceat(rank_T, offset_R[:-1])
        return np.where(best_Q <= cutoff, 1.0 / best_Q, 0.0)

    return per_query


def gain(cutoff: int) -> Metric:
    """NDCG with binary gains: the discounted hits over the best possible."""

    def per_query(rank_T: NDArray[np.int64], offset_R: NDArray[np.int64]) -> NDArray[np.float64]:
        found_T = np.where(rank_T <= cutoff, 1.0 / np.log2(1.0 + rank_T), 0.0)
        best_K = np.cumsum(1.0 / np.log2(2.0 + np.arange(cutoff)))
        return np.asarray(_sum(found_T, offset_R) / best_K[np.minimum(np.diff(offset_R), cutoff) - 1])

    return per_query


METRICS: dict[str, Metric] = {
    "recall@10": recall(10),
    "recall@20": recall(20),
    "recall@100": recall(100),
    "recall@500": recall(500),
    "mrr@10": reciprocal_rank(10),
    "mrr@20": reciprocal_rank(20),
    "ndcg@20": gain(20),
}
"""Each maps ranks ``(T,)`` and offsets ``(R,)`` to a value per query ``(Q,)``; every query has a target at least."""


def _sum(value_T: NDArray[np.float64], offset_R: NDArray[np.int64]) -> NDArray[np.float64]:
    before = np.concatenate([[0.0], np.cumsum(value_T)])
    return np.asarray(before[offset_R[1:]] - before[offset_R[:-1]], dtype=np.float64)
