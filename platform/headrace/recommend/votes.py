"""What the counting experts say about a block of queries, in the form that ranking and mixing need.

A vote is checked before it counts: one that is not finite, or negative, is an abstention, and is counted as a fault.
Shape legend: Q queries of a block, R = Q + 1 offsets, T targets (flat) or ragged entries, E eligible items.
"""

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.catalogue.eligible import Eligible
from headrace.experts.base import Expert, Shared, Sparse
from headrace.inputs.contexts import Contexts

MISS = int(np.iinfo(np.int64).max)
"""The rank of a target that cannot be answered: beyond every cutoff."""


class SharedVote:
    """One probability vector for every query."""

    def __init__(self, p_E: NDArray[np.float32]) -> None:
        self.p_E = p_E
        self.sound = bool(np.isfinite(p_E).all()) and bool((p_E >= 0.0).all())
        self._ascending_E: NDArray[np.float32] | None = None

    def active(self, num_queries: int) -> NDArray[np.bool_]:
        """Whether it votes, per query."""
        return np.full(num_queries, self.sound)

    def probability(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of these columns, each for its query."""
        return self.p_E[column_T].astype(np.float64)

    def rank(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """1 + the number of other items with at least this probability."""
        if self._ascending_E is None:
            self._ascending_E = np.sort(self.p_E)
        return len(self.p_E) - np.searchsorted(self._ascending_E, self.p_E[column_T], side="left").astype(np.int64)


class SparseVote:
    """A sparse row for each query; an empty row abstains."""

    def __init__(self, sparse: Sparse, num_items: int) -> None:
        self._num_items = num_items
        length_Q = np.diff(sparse.offset_R)
        row_T = np.repeat(np.arange(len(length_Q)), length_Q)
        good_T = np.isfinite(sparse.p_T) & (sparse.p_T >= 0.0)
        self.unsound_Q = np.bincount(row_T[~good_T], minlength=len(length_Q)) > 0
        self._active_Q = (length_Q > 0) & ~self.unsound_Q
        keep_T = self._active_Q[row_T]
        order_T = np.lexsort((sparse.column_T[keep_T], row_T[keep_T]))
        self.row_T = row_T[keep_T][order_T]
        self.column_T = sparse.column_T[keep_T][order_T]
        self.p_T = sparse.p_T[keep_T][order_T]

    def active(self, num_queries: int) -> NDArray[np.bool_]:
        """Whether it votes, per query."""
        return self._active_Q

    def probability(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of these columns, each for its query; 0 for those it does not name."""
        key_T = row_T * self._num_items + column_T
        entry_T = self.row_T * self._num_items + self.column_T
        if not len(entry_T):
            return np.zeros(len(row_T), dtype=np.float64)
        at_T = np.minimum(np.searchsorted(entry_T, key_T), len(entry_T) - 1)
        return np.where(entry_T[at_T] == key_T, self.p_T[at_T], 0.0).astype(np.float64)

    def rank(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """1 + the number of other items with at least this probability: all of them where it is 0."""
        p_T = self.probability(row_T, column_T)
        begin_T = np.searchsorted(self.row_T, row_T, side="left")
        end_T = np.searchsorted(self.row_T, row_T, side="right")
        above = [np.count_nonzero(self.p_T[b:e] >= p) for b, e, p in zip(begin_T, end_T, p_T, strict=True)]
        return np.where(p_T > 0.0, np.array(above, dtype=np.int64), self._num_items)

    def add_to(self, score_QE: Tensor, weight_Q: NDArray[np.float32]) -> None:
        """Add its weighted probabilities, in place."""
        value_T = torch.from_numpy(self.p_T * weight_Q[self.row_T]).to(score_QE.device)
        row_T, column_T = (torch.from_numpy(array).to(score_QE.device) for array in (self.row_T, self.column_T))
        score_QE.index_put_((row_T, column_T), value_T, accumulate=True)


Vote = SharedVote | SparseVote | None
"""None: abstains on all."""


class Voters:
    """The counting experts of one version. Remembers shared vectors, since they stay the same from block to block."""

    def __init__(self, experts: list[Expert], eligible: Eligible) -> None:
        self._experts = experts
        self._eligible = eligible
        self._shared: dict[str, SharedVote] = {}
        self.faults: Counter[str] = Counter()
        """Queries on which an expert's vote was not a probability, by name."""

    def ask(self, contexts: Contexts, query_QD: NDArray[np.float32]) -> dict[str, Vote]:
        """Every expert's vote on these queries, by name, in the recipe's order."""
        return {expert.name: self._ask(expert, contexts, query_QD) for expert in self._experts}

    def _ask(self, expert: Expert, contexts: Contexts, query_QD: NDArray[np.float32]) -> Vote:
        match expert.probabilities(contexts, query_QD, self._eligible):
            case None:
                return None
            case Shared(p_E):
                known = self._shared.get(expert.name)
                if known is None or known.p_E is not p_E:
                    known = self._shared[expert.name] = SharedVote(p_E)
                self.faults[expert.name] += 0 if known.sound else len(contexts)
                return known
            case Sparse() as sparse:
                vote = SparseVote(sparse, len(self._eligible))
                self.faults[expert.name] += int(vote.unsound_Q.sum())
                return vote
