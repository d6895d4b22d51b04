"""The co-visit expert: items met close together, counted both ways, faded by event time.

A counted row is paired with the events before it in its context; an item met twice in a row is its own neighbour (one
answer in ten, in a shop). Pairs are kept sorted by item and neighbour, so an increment is one merge. An item's row may
grow to twice ``max_per_item`` before it is cut back to its best: newcomers get time to prove themselves, and the bytes
stay bounded. Item-to-item counts are Linden et al.'s (IEEE Internet Computing, 2003), weights of one over the distance
as in arXiv 1803.09587, and where neighbours are few, popularity speaks (Dirichlet smoothing).
Shape legend: I items by number, J = I + 1 offsets, P pairs, N rows, U distinct numbers of a delta, Q queries, T recent
items or pairs of the queries, F neighbours of the recent items, E eligible items, B its most popular ones, D width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import CovisitConfig
from headrace.experts.base import Arrays, Counted, Sparse
from headrace.experts.ragged import Columns, Recent, cells, highest, recent_items, spread, steps_back, vote
from headrace.inputs.contexts import Contexts, offsets

_HALF = 32  # a pair is one integer: the item in the upper bits, its neighbour in the lower
_LOWER = (1 << _HALF) - 1
_FAINT = 2.0**-6
"""Fading pairs below this are forgotten: what met once, side by side, after six half-lives."""
_NUM_PRIOR = 50
"""Eligible items that stand for popularity where neighbours are few."""
_NOISE = 1e-9  # what is left of a pair after its only session is taken out


class Covisit:
    """Which items are met together, and how much."""

    def __init__(self, config: CovisitConfig) -> None:
        self.name = config.name
        self.config = config
        self._columns = Columns()
        self._pair_P = np.zeros(0, dtype=np.int64)
        self._weight_P = np.zeros(0, dtype=np.float64)
        self._length_I = np.zeros(0, dtype=np.int64)
        self._count_I = np.zeros(0, dtype=np.float64)
        self._reference_ms = 0
        self._index()

    def reduce(self, counted: Counted) -> Arrays:
        """One rank's pairs and counts, as seen from its newest row's time."""
        reference_ms = int(counted.ts_N.max(initial=0))
        weight_N = counted.weight_N.astype(np.float64) * self._fade(counted.ts_N, reference_ms)
        contexts = counted.contexts
        length_N = np.minimum(contexts.length_Q, self.config.window)
        row_T, flat_T = spread(contexts.offset_R[1:] - length_N, length_N)
        before_T, number_T = contexts.item_T[flat_T], counted.number_N[row_T]
        weight_T = weight_N[row_T] / (contexts.offset_R[1:][row_T] - flat_T)
        pairs = cells(
            np.concatenate([before_T, number_T]),
            np.concatenate([number_T, before_T]),
            np.concatenate([weight_T, weight_T]),
            1 + int(max(before_T.max(initial=0), number_T.max(initial=0))),
        )
        number_U, inverse_N = np.unique(counted.number_N, return_inverse=True)
        return {
            "pair": (pairs.row_C << _HALF) | pairs.column_C,
            "weight": pairs.total_C,
            "number": number_U.astype(np.int64),
            "count": np.bincount(inverse_N, weights=weight_N, minlength=len(number_U)),
            "reference_ms": np.array([reference_ms], dtype=np.int64),
        }

    def apply(self, deltas: Sequence[Arrays], watermark_ms: int) -> None:
        """Fade what is there to the watermark, add the deltas in the order given, and forget what is beyond bounds."""
        filled = [delta for delta in deltas if len(delta["number"])]
        if not filled:
            return
        reference_ms = max(watermark_ms, self._reference_ms)
        kept = self._fade(np.array([self._reference_ms], dtype=np.int64), reference_ms)
        largest = max(int(max(d["number"].max(), d["pair"].max(initial=0) >> _HALF)) for d in filled)
        count_I = np.zeros(max(len(self._count_I), 1 + largest), dtype=np.float64)
        count_I[: len(self._count_I)] = self._count_I * kept
        self._weight_P = self._weight_P * kept
        self._length_I = np.concatenate([self._length_I, np.zeros(len(count_I) - len(self._length_I), dtype=np.int64)])
        for delta in filled:
            fade = self._fade(delta["reference_ms"], reference_ms)
            count_I[delta["number"]] += delta["count"] * fade
            self._merge(delta["pair"], delta["weight"] * fade)
        self._count_I, self._reference_ms = count_I, reference_ms
        if self.config.half_life_s is not None:
            self._keep(self._weight_P >= _FAINT)
        self._cut_back()
        self._index()

    def probabilities(self, contexts: Contexts, query_QD: NDArray[np.float32] | None, eligible: Eligible) -> Sparse:
        """The neighbours of each context's recent items, shrunk to popularity; a context of unknown items abstains.

        What the asking session itself may have added to a pair is taken out; popularity, which is shared, keeps it.
        """
        recent = recent_items(contexts, self.config.last, len(self._count_I))
        of_F, flat_F = spread(self._offset_J[recent.item_T], self._length_I[recent.item_T])
        weight_F = self._weight_P[flat_F] - self._own(contexts, recent, len(flat_F))
        weight_F[weight_F < _NOISE] = 0.0
        total_T = np.bincount(of_F, weights=weight_F, minlength=len(recent.item_T))
        share_T = 1.0 / (recent.rank_T * (total_T + self.config.shrink))
        prior_Q = np.bincount(recent.query_T, weights=share_T, minlength=len(contexts)) * self.config.shrink
        column_B, popularity_B = self._prior(eligible)
        asked_Q = np.flatnonzero(prior_Q)
        neighbour_F = self._columns.of(self._pair_P[flat_F] & _LOWER, eligible)
        query_F = np.concatenate([recent.query_T[of_F], np.repeat(asked_Q, len(column_B))])
        column_F = np.concatenate([neighbour_F, np.tile(column_B, len(asked_Q))])
        value_F = np.concatenate([weight_F * share_T[of_F], np.outer(prior_Q[asked_Q], popularity_B).ravel()])
        return vote(query_F, column_F, value_F, len(contexts), len(eligible))

    def state(self) -> Arrays:
        """Pairs by item, counts, and the time that they are seen from."""
        return {
            "neighbour": (self._pair_P & _LOWER).astype(np.int32),
            "length": self._length_I.astype(np.int32),
            "weight": self._weight_P,
            "count": self._count_I,
            "reference_ms": np.array([self._reference_ms], dtype=np.int64),
        }

    def load(self, state: Arrays) -> None:
        """Take over what ``state`` gave."""
        self._length_I = state["length"].astype(np.int64)
        item_P = np.repeat(np.arange(len(self._length_I)), self._length_I)
        self._pair_P = (item_P << _HALF) | state["neighbour"].astype(np.int64)
        self._weight_P = state["weight"].astype(np.float64)
        self._count_I = state["count"].astype(np.float64)
        self._reference_ms = int(state["reference_ms"][0])
        self._index()

    @property
    def size_bytes(self) -> int:
        """Memory of pairs, counts, and what is derived from them."""
        arrays = (self._pair_P, self._weight_P, self._length_I, self._count_I, self._offset_J)
        return sum(int(array.nbytes) for array in arrays)

    def _fade(self, ts_N: NDArray[np.int64], reference_ms: int) -> NDArray[np.float64]:
        if self.config.half_life_s is None:
            return np.ones(len(ts_N), dtype=np.float64)
        return np.exp2((ts_N - reference_ms) / (1000.0 * self.config.half_life_s))

    def _find(self, pair_T: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where these pairs lie, or would, and whether they are there."""
        place_T = np.searchsorted(self._pair_P, pair_T).astype(np.int64)
        there_T = place_T < len(self._pair_P)
        there_T[there_T] = self._pair_P[place_T[there_T]] == pair_T[there_T]
        return place_T, there_T

    def _merge(self, pair_T: NDArray[np.int64], weight_T: NDArray[np.float64]) -> None:
        """Add ascending distinct pairs."""
        place_T, there_T = self._find(pair_T)
        self._weight_P[place_T[there_T]] += weight_T[there_T]
        place_T, pair_T, weight_T = place_T[~there_T], pair_T[~there_T], weight_T[~there_T]
        self._pair_P = np.insert(self._pair_P, place_T, pair_T)
        self._weight_P = np.insert(self._weight_P, place_T, weight_T)
        self._length_I += np.bincount(pair_T >> _HALF, minlength=len(self._length_I))

    def _keep(self, keep_P: NDArray[np.bool_]) -> None:
        self._pair_P, self._weight_P = self._pair_P[keep_P], self._weight_P[keep_P]
        self._length_I = np.bincount(self._pair_P >> _HALF, minlength=len(self._count_I)).astype(np.int64)

    def _cut_back(self) -> None:
        """Rows that have grown beyond twice their size keep their best; of equal ones those with higher numbers."""
        most = self.config.max_per_item
        long_I = np.flatnonzero(self._length_I > 2 * most)
        if not len(long_I):
            return
        keep_P = np.ones(len(self._pair_P), dtype=np.bool_)
        end_I = np.cumsum(self._length_I)
        for begin, end in zip((end_I - self._length_I)[long_I], end_I[long_I], strict=True):
            keep_P[begin:end] = False
            keep_P[begin + highest(self._weight_P[begin:end], most)] = True
        self._keep(keep_P)

    def _index(self) -> None:
        """What is derived from the table: where each item's row begins; and no prior yet."""
        self._offset_J = offsets(self._length_I)
        self._memo: tuple[Eligible, NDArray[np.int64], NDArray[np.float64]] | None = None

    def _prior(self, eligible: Eligible) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Columns of the most popular eligible items and their shares of all counts, ``(B,)`` each."""
        if self._memo is None or self._memo[0] is not eligible:
            known_E = eligible.number_E < len(self._count_I)
            count_E = np.zeros(len(eligible), dtype=np.float64)
            count_E[known_E] = self._count_I[eligible.number_E[known_E]]
            best_B = highest(count_E, _NUM_PRIOR)
            self._memo = (eligible, best_B, count_E[best_B] / max(float(count_E.sum()), _NOISE))
        return self._memo[1], self._memo[2]

    def _own(self, contexts: Contexts, recent: Recent, num_entries: int) -> NDArray[np.float64]:
        """What the asking sessions themselves have added to their recent items' pairs, ``(F,)``.

        They have added what lies in their context up to the time of the counts, as far as its events count alike.
        """
        query_T, _ = steps_back(contexts)
        place_T = np.arange(len(query_T)) - contexts.offset_R[query_T]
        counted_T = (contexts.session_Q[query_T] != 0) & (contexts.ts_T <= self._reference_ms)
        later_T = np.flatnonzero(counted_T & (place_T > 0))
        own_F = np.zeros(num_entries, dtype=np.float64)
        if not len(later_T) or not len(recent.item_T):
            return own_F
        size_T = np.minimum(place_T[later_T], self.config.window)
        nth_T, earlier_T = spread(later_T - size_T, size_T)
        later_T = later_T[nth_T]
        weight_T = self._fade(contexts.ts_T[later_T], self._reference_ms) / (later_T - earlier_T)
        left_T = contexts.item_T[np.concatenate([earlier_T, later_T])]
        right_T = contexts.item_T[np.concatenate([later_T, earlier_T])]
        query_T = np.concatenate([query_T[later_T], query_T[later_T]])
        row_T = _row_of(recent, query_T, left_T)
        pair_T, there_T = self._find((left_T << _HALF) | right_T)
        some_T = np.flatnonzero(there_T & (row_T >= 0))
        begin_T = offsets(self._length_I[recent.item_T])[:-1]
        at_T = begin_T[row_T[some_T]] + pair_T[some_T] - self._offset_J[left_T[some_T]]
        own_T = np.concatenate([weight_T, weight_T])[some_T]
        return np.bincount(at_T, weights=own_T, minlength=num_entries).astype(np.float64)


def _row_of(recent: Recent, query_T: NDArray[np.int64], item_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which recent item each (query, item) is; -1 where it is none."""
    key_T = (recent.query_T << _HALF) | recent.item_T
    order_T = np.argsort(key_T)
    wanted_T = (query_T << _HALF) | item_T
    at_T = order_T[np.minimum(np.searchsorted(key_T, wanted_T, sorter=order_T), len(key_T) - 1)]
    return np.where(key_T[at_T] == wanted_T, at_T, -1)
