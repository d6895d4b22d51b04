"""The similar-sessions expert: sessions that held the same items say what else they held.

VMIS-kNN (Serenade: Kersbergen, Sprangers, Schelter, SIGMOD 2022). Of each recent item of a context, the newest
``sessions_per_item`` sessions are compared: similarity is the sum of the shared items' recency (1 over the rank) and
rarity (idf), over the fourth root of the session's length. The ``neighbours`` most similar ones vote for their items,
by rarity and by nearness to the newest shared one. The asking session is never a neighbour.

The table is the sessions alone, those that went quiet first in front, bounded in events; the index from items to
sessions is made from it after each increment. A session that goes on moves to the end with its past.
Shape legend: S sessions, J = S + 1 offsets, N events, H events in the index, I items by number, Q queries, T recent
items of the queries, F their sessions, C pairs of query and session, G events of neighbours, E eligible items, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import SimilarSessionsConfig
from headrace.experts.base import Arrays, Counted, Sparse
from headrace.experts.ragged import Cells, Columns, cells, recent_items, spread, stable_order, vote
from headrace.inputs.contexts import Contexts, offsets

_MAX_LENGTH = 100
"""Distinct items that a session keeps: the newest."""
_LOW_BITS = 16
_LOW = np.uint64((1 << _LOW_BITS) - 1)
_ROOT = 0.25
_SLOPE = 0.5
"""An item n steps from the newest shared one weighs 1 / (1 + slope (n - 1))."""


@dataclass(frozen=True)
class Sessions:
    """Sessions as ragged rows of distinct items, each session's in the order of their last visits."""

    session_S: NDArray[np.uint64]
    ts_S: NDArray[np.int64]
    """Event time of the newest event, ms."""
    offset_J: NDArray[np.int64]
    item_N: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.session_S)

    @property
    def length_S(self) -> NDArray[np.int64]:
        """Items of each session."""
        return np.diff(self.offset_J)

    def among(self, session_U: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which sessions are one of these, of which there is at least one, and which ascend."""
        may_be = np.zeros(1 << _LOW_BITS, dtype=np.bool_)  # by their lowest bits most are told apart without a search
        may_be[(session_U & _LOW).astype(np.int64)] = True
        is_one_S = may_be[(self.session_S & _LOW).astype(np.int64)]
        some = np.flatnonzero(is_one_S)
        place = np.minimum(np.searchsorted(session_U, self.session_S[some]), len(session_U) - 1)
        is_one_S[some] = session_U[place] == self.session_S[some]
        return is_one_S

    def where(self, keep_S: NDArray[np.bool_]) -> "Sessions":
        """Those to keep, in their order."""
        length_S = self.length_S
        kept_N = np.repeat(keep_S, length_S)
        return Sessions(self.session_S[keep_S], self.ts_S[keep_S], offsets(length_S[keep_S]), self.item_N[kept_N])

    def followed_by(self, other: "Sessions") -> "Sessions":
        """These, then the others."""
        return Sessions(
            np.concatenate([self.session_S, other.session_S]),
            np.concatenate([self.ts_S, other.ts_S]),
            offsets(np.concatenate([self.length_S, other.length_S])),
            np.concatenate([self.item_N, other.item_N]),
        )

    def newest(self, max_events: int) -> "Sessions":
        """As many of the last ones as hold at most ``max_events`` items."""
        first = int(np.searchsorted(self.offset_J, self.offset_J[-1] - max_events))
        return self if first == 0 else self.where(np.arange(len(self)) >= first)


def group_events(session_N: NDArray[np.uint64], ts_N: NDArray[np.int64], item_N: NDArray[np.int32]) -> Sessions:
    """Events as sessions, those that went quiet first in front; events of equal times stay in the order given."""
    session_S, of_N = np.unique(session_N, return_inverse=True)
    ts_S = np.zeros(len(session_S), dtype=np.int64)
    np.maximum.at(ts_S, of_N, ts_N)
    by_time_S = np.lexsort((session_S, ts_S))
    place_S = np.empty(len(session_S), dtype=np.int64)
    place_S[by_time_S] = np.arange(len(session_S))
    order_N = np.lexsort((ts_N, place_S[of_N]))[::-1]  # newest first, so that the first visit met is the last one
    place_N, item_N = place_S[of_N][order_N], item_N[order_N]
    number_N = item_N.astype(np.int64)
    visits = cells(place_N, number_N, np.zeros(len(place_N)), int(number_N.max(initial=0)) + 1)
    last_N = np.sort(visits.first_C)
    place_N, item_N = place_N[last_N], item_N[last_N]  # sessions descend, and so do the times in each
    nth_N = np.arange(len(place_N)) - np.searchsorted(-place_N, -place_N, side="left")
    kept_N = np.flatnonzero(nth_N < _MAX_LENGTH)[::-1]
    length_S = np.bincount(place_N[kept_N], minlength=len(session_S))
    return Sessions(session_S[by_time_S], ts_S[by_time_S], offsets(length_S.astype(np.int64)), item_N[kept_N])


class SimilarSessions:
    """Past sessions, and which of them are near a context."""

    def __init__(self, config: SimilarSessionsConfig) -> None:
        self.name = config.name
        self.config = config
        self._columns = Columns()
        nothing = np.zeros(0, dtype=np.int64)
        self._table = Sessions(np.zeros(0, dtype=np.uint64), nothing, offsets(nothing), np.zeros(0, dtype=np.int32))
        self._index()

    def reduce(self, counted: Counted) -> Arrays:
        """One rank's rows; a session's rows are all on one rank."""
        return {"session": counted.session_N, "ts": counted.ts_N, "item": counted.number_N.astype(np.int32)}

    def apply(self, deltas: Sequence[Arrays], watermark_ms: int) -> None:
        """Put the rows' sessions behind all others, those that go on with their past; forget the first ones."""
        session_N, ts_N, item_N = (np.concatenate([d[name] for d in deltas]) for name in ("session", "ts", "item"))
        if not len(session_N):
            return
        goes_on_S = self._table.among(np.unique(session_N))
        past = self._table.where(goes_on_S)
        moved = group_events(
            np.concatenate([np.repeat(past.session_S, past.length_S), session_N]),
            np.concatenate([np.repeat(past.ts_S, past.length_S), ts_N]),
            np.concatenate([past.item_N, item_N]),
        )
        self._table = self._table.where(~goes_on_S).followed_by(moved).newest(self.config.max_events)
        self._index()

    def probabilities(self, contexts: Contexts, query_QD: NDArray[np.float32] | None, eligible: Eligible) -> Sparse:
        """The votes of each context's neighbours; a context without any abstains. Ask in blocks of some dozens."""
        near, step_C = self._neighbours(contexts)
        of_G, flat_G = spread(self._table.offset_J[:-1][near.column_C], self._table.length_S[near.column_C])
        item_G = self._table.item_N[flat_G].astype(np.int64)
        steps_G = np.abs(flat_G - step_C[of_G])
        value_G = near.total_C[of_G] * self._idf_I[item_G] / (1.0 + _SLOPE * np.maximum(steps_G - 1, 0))
        column_G = self._columns.of(item_G, eligible)
        return vote(near.row_C[of_G], column_G, value_G, len(contexts), len(eligible))

    def state(self) -> Arrays:
        """The sessions, in their order."""
        table = self._table
        length_S = table.length_S.astype(np.int32)
        return {"session": table.session_S, "ts": table.ts_S, "length": length_S, "item": table.item_N}

    def load(self, state: Arrays) -> None:
        """Take over what ``state`` gave."""
        offset_J = offsets(state["length"].astype(np.int64))
        self._table = Sessions(state["session"], state["ts"], offset_J, state["item"])
        self._index()

    @property
    def size_bytes(self) -> int:
        """Memory of the sessions and their index."""
        table = self._table
        held = (table.session_S, table.ts_S, table.offset_J, table.item_N)
        derived = (self._slot_H, self._place_H, self._end_I, self._count_I, self._idf_I, self._root_S)
        return sum(int(array.nbytes) for array in (*held, *derived))

    def _index(self) -> None:
        """Items to the sessions that hold them, oldest first; sessions of one item say nothing and are left out."""
        table = self._table
        length_S = table.length_S
        told_N = np.repeat(length_S > 1, length_S)
        place_H = np.flatnonzero(told_N).astype(np.int32)
        slot_H = np.repeat(np.arange(len(table), dtype=np.int32), length_S)[told_N]
        item_H = table.item_N[told_N].astype(np.int64)
        order_H = stable_order(item_H)
        self._slot_H, self._place_H = slot_H[order_H], place_H[order_H]
        self._count_I = np.bincount(item_H, minlength=1 + int(table.item_N.max(initial=-1))).astype(np.int64)
        self._end_I = np.cumsum(self._count_I)
        self._idf_I = np.log((1.0 + np.count_nonzero(length_S > 1)) / np.maximum(self._count_I, 1))
        self._root_S = np.maximum(length_S, 1) ** _ROOT

    def _neighbours(self, contexts: Contexts) -> tuple[Cells, NDArray[np.int64]]:
        """Rows are queries, columns sessions, totals similarities; and where each one's newest shared item lies."""
        recent = recent_items(contexts, self.config.last, len(self._count_I))
        weight_T = self._idf_I[recent.item_T] / recent.rank_T
        taken_T = np.minimum(self._count_I[recent.item_T], self.config.sessions_per_item)
        of_F, flat_F = spread(self._end_I[recent.item_T] - taken_T, taken_T)
        query_F, slot_F = recent.query_T[of_F], self._slot_H[flat_F].astype(np.int64)
        own_F = self._table.session_S[slot_F] == contexts.session_Q[query_F]
        query_F, slot_F, of_F, flat_F = query_F[~own_F], slot_F[~own_F], of_F[~own_F], flat_F[~own_F]
        found = cells(query_F, slot_F, weight_T[of_F], max(len(self._table), 1))
        similar_C = found.total_C / self._root_S[found.column_C]
        best = _best(found.row_C, similar_C, self.config.neighbours, len(contexts))
        place_C = self._place_H[flat_F[found.first_C[best]]].astype(np.int64)  # recent items come newest first
        return Cells(found.row_C[best], found.column_C[best], similar_C[best], found.first_C[best]), place_C


def _best(query_C: NDArray[np.int64], similar_C: NDArray[np.float64], most: int, num_queries: int) -> NDArray[np.int64]:
    """Ascending places of each query's ``most`` highest; of equal ones the later, which are the more recent."""
    begin_R = np.searchsorted(query_C, np.arange(num_queries + 1))
    lowest_Q = np.full(num_queries, -np.inf)
    for query in np.flatnonzero(np.diff(begin_R) > most):
        begin, end = begin_R[query], begin_R[query + 1]
        lowest_Q[query] = np.partition(similar_C[begin:end], end - begin - most)[end - begin - most]
    lowest_C = lowest_Q[query_C]
    keep_C = similar_C > lowest_C
    left_Q = most - np.bincount(query_C[keep_C], minlength=num_queries)
    tied_C = np.flatnonzero(similar_C == lowest_C)
    end_T = np.searchsorted(query_C[tied_C], query_C[tied_C], side="right")
    keep_C[tied_C[end_T - np.arange(len(tied_C)) <= left_Q[query_C[tied_C]]]] = True
    return np.flatnonzero(keep_C)
