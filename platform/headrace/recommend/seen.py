"""The items that a query's own context holds, and whether a version answers them last.

Readers of news do not come back to an article, shoppers do come back to a product: ``recommend.seen`` says which, or
leaves it to the share of repeats that the stream shows. Where seen items come last, every expert is renormalised over
the unseen ones before it is mixed.
Shape legend: Q queries of a block, R = Q + 1 offsets, S seen (query, column) pairs, T targets (flat), E eligible items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import RecommendConfig
from headrace.experts.ragged import spread
from headrace.inputs.contexts import Contexts

_MEMORY = 20_000  # targets after which the counts of repeats are halved, so that they follow the stream


@dataclass(frozen=True)
class Repeats:
    """How often the stream's targets lay in their own contexts. State; kept in the commit's facts."""

    asked: float = 0.0
    repeated: float = 0.0

    def add(self, asked: int, repeated: int) -> "Repeats":
        """With the targets of one more cut."""
        now = Repeats(self.asked + asked, self.repeated + repeated)
        return Repeats(now.asked / 2, now.repeated / 2) if now.asked > _MEMORY else now

    def seen_last(self, config: RecommendConfig) -> bool:
        """Whether seen items come last; with "auto", where a smaller share than ``repeat_share`` comes again."""
        if config.seen == "auto":
            return self.asked > 0 and self.repeated < config.repeat_share * self.asked
        return config.seen == "last"


class Seen:
    """The eligible items of each context, by column: distinct, sorted by query, then column."""

    def __init__(self, contexts: Contexts, eligible: Eligible) -> None:
        size = len(eligible)
        column_T = eligible.column_of(contexts.item_T)
        row_T = np.repeat(np.arange(len(contexts)), contexts.length_Q)
        self._key_S = np.unique(row_T[column_T >= 0] * size + column_T[column_T >= 0])
        count_Q = np.bincount(self._key_S // size, minlength=len(contexts))
        if (count_Q == size).any():  # nothing would be left to answer first
            self._key_S = self._key_S[count_Q[self._key_S // size] < size]
            count_Q[count_Q == size] = 0
        self.count_Q = count_Q
        self._size = size
        self.row_S, self.column_S = np.divmod(self._key_S, size)
        self._begin_R = np.concatenate([[0], np.cumsum(count_Q)])

    def holds(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these (query, column) pairs are seen."""
        return self.place(row_T, column_T) >= 0

    def place(self, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where these (query, column) pairs stand among the seen ones; -1: nowhere."""
        if not len(self._key_S):
            return np.full(len(row_T), -1, dtype=np.int64)
        key_T = row_T * self._size + column_T
        at_T = np.minimum(np.searchsorted(self._key_S, key_T), len(self._key_S) - 1)
        return np.where(self._key_S[at_T] == key_T, at_T, -1)

    def mass(self, p_E: NDArray[np.float32]) -> NDArray[np.float64]:
        """What a shared vector gives to the seen items of each query, ``(Q,)``."""
        mass_Q = np.bincount(self.row_S, weights=p_E[self.column_S], minlength=len(self.count_Q))
        return mass_Q.astype(np.float64)  # without any pair they are integers

    def count_at_least(
        self, p_E: NDArray[np.float32], row_T: NDArray[np.int64], bound_T: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """For each query of ``row_T``, how many of its seen items a shared vector gives at least this bound."""
        p_S = p_E[self.column_S]
        begin_T, end_T = self._begin_R[row_T], self._begin_R[row_T + 1]
        of_T, flat_T = spread(begin_T, end_T - begin_T)
        return np.bincount(of_T[p_S[flat_T] >= bound_T[of_T]], minlength=len(bound_T)).astype(np.int64)
