"""A block's side of repeats: what every expert says of the items that each context holds, as one part of the score.

Every query has a few such items, so all is flat pairs in float64, summed in order: a query's bits depend on it alone.
Shape legend: Q queries of a block, S seen (query, column) pairs, T targets (flat), K experts in the order of weights.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headrace.blend.split import OnRepeats, Split, bucket
from headrace.blend.weights import NEURAL, UNIFORM
from headrace.recommend.seen import Seen
from headrace.recommend.votes import Vote, slope


class Repeated:
    """Made by the recommender for one block, from votes over all items.

    ``logit_S``: of the pairs of ``seen``. ``neural_Q``: whether the model votes. ``length_Q``: events of each context.
    """

    def __init__(
        self,
        split: Split,
        seen: Seen,
        logit_S: NDArray[np.float64],
        neural_Q: NDArray[np.bool_],
        votes: Mapping[str, Vote],
        length_Q: NDArray[np.int64],
    ) -> None:
        self._seen = seen
        self._length_Q = length_Q
        self.share_Q = np.where(seen.count_Q > 0, split.share(length_Q), 0.0)
        """r: the part of the score that these items have, all together."""
        said = {NEURAL: _exponentials(logit_S, neural_Q, seen.row_S)}
        for name, vote in votes.items():
            on_S = vote.active_Q[seen.row_S] if vote is not None else np.zeros(len(seen.row_S), dtype=np.bool_)
            said[name] = np.zeros(len(seen.row_S))
            if vote is not None:
                said[name][on_S] = vote.probability(seen.row_S[on_S], seen.column_S[on_S])
        said[UNIFORM] = np.ones(len(seen.row_S))
        total = {name: self._sum(said_S) for name, said_S in said.items()}
        self._p = {name: said_S / np.maximum(total[name], 1e-300)[seen.row_S] for name, said_S in said.items()}
        self._active = {name: total_Q > 0.0 for name, total_Q in total.items()}
        weight_of = split.weights.as_mapping()
        weight_QK = np.stack([self._active[name] * weight_of[name] for name in said], axis=1)
        weight_QK *= (self.share_Q / np.maximum(weight_QK.sum(axis=1), 1e-300))[:, None]
        self._part = {name: weight_QK[seen.row_S, place] * self._p[name] for place, name in enumerate(said)}
        self.score_S = np.sum(list(self._part.values()), axis=0)

    def shares(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """What each expert contributes to these scores, by name, ``(T,)``; 0 where the item is not seen."""
        at_T = self._seen.place(row_T, column_T)
        return {name: np.where(at_T >= 0, np.append(part_S, 0.0)[at_T], 0.0) for name, part_S in self._part.items()}

    def judge(
        self, index_T: NDArray[np.int64], row_T: NDArray[np.int64], column_T: NDArray[np.int64], into: OnRepeats
    ) -> None:
        """The block's part of ``into``, at ``index_T``: targets that may be answered."""
        at_T = self._seen.place(row_T, column_T)
        counted_T = self._seen.count_Q[row_T] > 0
        for told_B, of_T in ((into.asked_B, counted_T), (into.repeated_B, at_T >= 0)):
            told_B += np.bincount(bucket(self._length_Q[row_T[of_T]]), minlength=len(told_B))
        for name, p_S in self._p.items():
            on_T = np.flatnonzero((at_T >= 0) & self._active[name][row_T])
            p_T = p_S[at_T[on_T]]
            into.probability[name][index_T[on_T]] = p_T
            if name in into.slope:
                entropy_Q = self._sum(-p_S * np.log(np.maximum(p_S, 1e-300)))
                into.slope[name][index_T[on_T]] = slope(p_T, entropy_Q[row_T[on_T]])

    def _sum(self, value_S: NDArray[np.float64]) -> NDArray[np.float64]:
        """Over the pairs of each query."""
        sums: NDArray[np.float64] = np.bincount(self._seen.row_S, value_S, len(self._length_Q)).astype(np.float64)
        return sums


def _exponentials(
    logit_S: NDArray[np.float64], neural_Q: NDArray[np.bool_], row_S: NDArray[np.int64]
) -> NDArray[np.float64]:
    """In proportion to the model's probabilities of the pairs of each query; zeros where it has no vote."""
    highest_Q = np.full(len(neural_Q), -np.inf)
    np.maximum.at(highest_Q, row_S, logit_S)
    on_S = neural_Q[row_S] & np.isfinite(highest_Q[row_S])
    return np.exp(np.where(on_S, logit_S - np.where(on_S, highest_Q[row_S], 0.0), -np.inf))
