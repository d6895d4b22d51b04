"""What the counting experts say about a block of queries, in the form that ranking and mixing need.

A vote is checked before it counts: one that is not finite, or negative, is an abstention, and is counted as a fault;
so is an expert that raises. Nobody who asks shall meet an error because one of several voices fails.
Probabilities are raised to the expert's exponent (blend/calibration.py) and normalised again. Where seen items come
last, a vote is renormalised over the unseen ones; one that has nothing for them abstains.
Shape legend: Q queries of a block, R = Q + 1 offsets, T targets (flat) or ragged entries, E eligible items.
"""

import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.catalogue.eligible import Eligible
from headrace.experts.base import Expert, Shared, Sparse
from headrace.experts.ragged import spread
from headrace.inputs.contexts import Contexts
from headrace.recommend.seen import Seen

_log = logging.getLogger(__name__)
_TOLD: set[str] = set()
"""Experts whose failure this process has told of; versions come and go, and need not tell again."""

MISS = int(np.iinfo(np.int64).max)
"""The rank of a target that cannot be answered: beyond every cutoff."""
_TINY = np.float32(1e-30)  # its logarithm stands for that of 0, which is multiplied by 0
_LEAST = 1e-6  # of a shared vector's mass that must be left to the unseen, so that it can be renormalised


class SharedTable:
    """One probability vector for every query, and what ranking needs of it; the same from block to block."""

    def __init__(self, said_E: NDArray[np.float32], exponent: float) -> None:
        self.said_E = said_E
        """As the expert says it."""
        self.sound = bool(np.isfinite(said_E).all()) and bool((said_E >= 0.0).all())
        self.p_E = _sharpened(said_E, exponent) if self.sound else said_E
        self._ascending_E: NDArray[np.float32] | None = None
        self._spread_E: NDArray[np.float32] | None = None

    @property
    def spread_E(self) -> NDArray[np.float32]:
        """Each item's term of the entropy, nats."""
        if self._spread_E is None:
            self._spread_E = -self.p_E * np.log(np.maximum(self.p_E, _TINY))
        return self._spread_E

    def count_at_least(self, bound_T: NDArray[np.float32]) -> NDArray[np.int64]:
        """How many items have at least this probability, as the expert says it."""
        if self._ascending_E is None:
            self._ascending_E = np.sort(self.said_E)
        return len(self.said_E) - np.searchsorted(self._ascending_E, bound_T, side="left").astype(np.int64)


class SharedVote:
    """A shared table's vote on a block."""

    def __init__(self, table: SharedTable, num_queries: int, seen: Seen | None) -> None:
        self.p_E = table.p_E
        self.left_Q = np.ones(num_queries) if seen is None or not table.sound else 1.0 - seen.mass(table.p_E)
        """What its probabilities over the unseen items of each query sum to."""
        self.active_Q = np.asarray(self.left_Q > _LEAST) & table.sound
        self.num_unsound = 0 if table.sound else num_queries
        """Queries on which it is no probability."""
        self._table = table
        self._seen = seen

    def probability(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of these columns, each unseen and for its query, which must be active."""
        return self.p_E[column_T] / self.left_Q[row_T]

    def entropy(self, num_queries: int) -> NDArray[np.float64]:
        """Of its probabilities over the unseen items of each query, nats; of active queries."""
        total_Q = np.full(num_queries, float(self._table.spread_E.sum(dtype=np.float64)))
        if self._seen is not None:
            total_Q -= self._seen.mass(self._table.spread_E)
        left_Q = np.maximum(self.left_Q, _LEAST)
        return total_Q / left_Q + np.log(left_Q)

    def rank(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """1 + the number of other items with at least this probability: all of them for a seen one."""
        said_E = self._table.said_E  # raised to a power, small ones could tie at 0
        bound_T = said_E[column_T]
        rank_T = self._table.count_at_least(bound_T)
        if self._seen is None:
            return rank_T
        rank_T -= self._seen.count_at_least(said_E, row_T, bound_T)
        return np.where(self._seen.holds(row_T, column_T), len(self.p_E), rank_T)


class SparseVote:
    """A sparse row for each query; an empty row abstains."""

    def __init__(self, sparse: Sparse, num_items: int, seen: Seen | None, exponent: float = 1.0) -> None:
        self._num_items = num_items
        length_Q = np.diff(sparse.offset_R)
        row_T = np.repeat(np.arange(len(length_Q)), length_Q)
        good_T = np.isfinite(sparse.p_T) & (sparse.p_T >= 0.0)
        unsound_Q = np.bincount(row_T[~good_T], minlength=len(length_Q)) > 0
        self.num_unsound = int(unsound_Q.sum())
        """Queries on which it is no probability."""
        keep_T = ~unsound_Q[row_T]
        if seen is not None:
            keep_T &= ~seen.holds(row_T, sparse.column_T)
        row_T, column_T, p_T = row_T[keep_T], sparse.column_T[keep_T], sparse.p_T[keep_T]
        said_T = p_T  # raised to a power, small ones could tie at 0
        if exponent != 1.0:
            p_T = p_T**exponent
        if seen is None and exponent == 1.0:
            self.active_Q = np.bincount(row_T, minlength=len(length_Q)) > 0
        else:
            left_Q = np.bincount(row_T, weights=p_T, minlength=len(length_Q))
            self.active_Q = left_Q > 0.0
            p_T = (p_T / np.where(self.active_Q, left_Q, 1.0)[row_T]).astype(np.float32)
        key_T = row_T * num_items + column_T
        if not (key_T[1:] > key_T[:-1]).all():  # experts need not sort, but most do
            order_T = np.argsort(key_T, kind="stable")
            row_T, column_T, key_T = row_T[order_T], column_T[order_T], key_T[order_T]
            p_T, said_T = p_T[order_T], said_T[order_T]
        self.row_T, self.column_T, self.p_T, self._key_T, self._said_T = row_T, column_T, p_T, key_T, said_T

    def probability(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of these columns, each for its query; 0 for those it does not name."""
        return self._at(self.p_T, row_T, column_T).astype(np.float64)

    def _at(
        self, value_T: NDArray[np.float32], row_T: NDArray[np.int64], column_T: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not len(self._key_T):
            return np.zeros(len(row_T), dtype=np.float32)
        key_T = row_T * self._num_items + column_T
        at_T = np.minimum(np.searchsorted(self._key_T, key_T), len(self._key_T) - 1)
        return np.where(self._key_T[at_T] == key_T, value_T[at_T], np.float32(0.0))

    def entropy(self, num_queries: int) -> NDArray[np.float64]:
        """Of each query's probabilities, nats."""
        spread_T = -self.p_T * np.log(np.maximum(self.p_T, _TINY))
        return np.bincount(self.row_T, weights=spread_T, minlength=num_queries).astype(np.float64)

    def rank(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """1 + the number of other items with at least this probability: all of them where it is 0."""
        said_T = self._at(self._said_T, row_T, column_T)
        begin_T = np.searchsorted(self.row_T, row_T, side="left")
        end_T = np.searchsorted(self.row_T, row_T, side="right")
        of_T, flat_T = spread(begin_T, end_T - begin_T)
        above_T = np.bincount(of_T[self._said_T[flat_T] >= said_T[of_T]], minlength=len(said_T))
        return np.where(said_T > 0.0, above_T, self._num_items)

    def add_to(self, score_QE: Tensor, weight_Q: NDArray[np.float32]) -> None:
        """Add its weighted probabilities, in place."""
        value_T = torch.from_numpy(self.p_T * weight_Q[self.row_T]).to(score_QE.device)
        row_T, column_T = (torch.from_numpy(array).to(score_QE.device) for array in (self.row_T, self.column_T))
        score_QE.index_put_((row_T, column_T), value_T, accumulate=True)


Vote = SharedVote | SparseVote | None
"""None: abstains on all."""
Heard = Mapping[str, Shared | Sparse | None]
"""What each counter says about a block of queries, by name, before any version makes a vote of it."""


def slope(p_T: NDArray[np.float64], entropy_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of these probabilities by the logarithm of their expert's exponent."""
    return p_T * (np.log(np.maximum(p_T, 1e-300)) + entropy_T)


def _sharpened(p_E: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    if exponent == 1.0:
        return p_E
    raised_E: NDArray[np.float64] = p_E.astype(np.float64) ** exponent
    sharpened_E: NDArray[np.float32] = (raised_E / raised_E.sum()).astype(np.float32)
    return sharpened_E


class Voters:
    """The counting experts of one version. Remembers shared vectors, since they stay the same from block to block."""

    def __init__(self, experts: list[Expert], eligible: Eligible, exponents: Mapping[str, float]) -> None:
        self._experts = experts
        self._exponents = exponents
        self._eligible = eligible
        self._shared: dict[str, SharedTable] = {}
        self.faults: Counter[str] = Counter()
        """Queries on which an expert's vote was not a probability, by name."""

    def hear(self, contexts: Contexts, query_QD: NDArray[np.float32]) -> Heard:
        """What every expert says about these queries, by name, in the recipe's order."""
        return {expert.name: self._hear(expert, contexts, query_QD) for expert in self._experts}

    def votes(self, heard: Heard, num_queries: int, seen: Seen | None) -> dict[str, Vote]:
        """Every expert's vote, of what was heard."""
        votes = {name: self._vote(name, said, num_queries, seen) for name, said in heard.items()}
        for name, vote in votes.items():
            self.faults[name] += vote.num_unsound if vote is not None else 0
        return votes

    def again(self, heard: Heard, num_queries: int, seen: Seen | None) -> dict[str, Vote]:
        """The same votes over other items; faults have been counted."""
        return {name: self._vote(name, said, num_queries, seen) for name, said in heard.items()}

    def _hear(self, expert: Expert, contexts: Contexts, query_QD: NDArray[np.float32]) -> Shared | Sparse | None:
        try:
            return expert.probabilities(contexts, query_QD, self._eligible)
        except Exception:  # noqa: BLE001 (whatever it is, the others can answer)
            if expert.name not in _TOLD:
                _TOLD.add(expert.name)
                _log.exception("expert %s failed; it is left out, and this is said once", expert.name)
            self.faults[expert.name] += len(contexts)
            return None

    def _vote(self, name: str, said: Shared | Sparse | None, num_queries: int, seen: Seen | None) -> Vote:
        exponent = self._exponents.get(name, 1.0)
        match said:
            case None:
                return None
            case Shared(p_E):
                table = self._shared.get(name)
                if table is None or table.said_E is not p_E:
                    table = self._shared[name] = SharedTable(p_E, exponent)
                return SharedVote(table, num_queries, seen)
            case Sparse() as sparse:
                return SparseVote(sparse, len(self._eligible), seen, exponent)
