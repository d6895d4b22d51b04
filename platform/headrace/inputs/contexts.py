"""From events (as numbers) and an as-of time to contexts, and from contexts to the padded arrays that a model reads.

Events with equal time stamps of one owner are a set: a context holds strictly earlier events only, so that members of a
set are never context for one another. Shape legend: N events, Q queries, R = Q + 1 offsets, T ragged entries, B batch,
L length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.inputs.told import Codes, request_of


@dataclass(frozen=True)
class EventLog:
    """Events sorted by (key, ts, order of arrival). The key is what contexts are gathered by: a session or a user."""

    key_N: NDArray[np.uint64]
    ts_N: NDArray[np.int64]
    item_N: NDArray[np.int64]
    """Item numbers."""
    kind_N: Codes
    """What is told of each event (inputs/told.py)."""


@dataclass(frozen=True)
class Contexts:
    """Q ragged contexts, each with its events oldest first. Read by models, experts and the recommender."""

    item_T: NDArray[np.int64]
    ts_T: NDArray[np.int64]
    kind_T: Codes
    offset_R: NDArray[np.int64]
    as_of_Q: NDArray[np.int64]
    """Event time at which the question is asked, ms."""
    session_Q: NDArray[np.uint64]
    """The session that asks (0: unknown), so that no expert counts a session for its own query."""
    told_Q: NDArray[np.int64]
    """What is told of the request (inputs/told.py)."""

    def __len__(self) -> int:
        return len(self.as_of_Q)

    @property
    def length_Q(self) -> NDArray[np.int64]:
        """Events in each context."""
        return np.diff(self.offset_R)

    def take(self, index_B: NDArray[np.integer]) -> "Contexts":
        """These contexts, in this order."""
        length_B = self.length_Q[index_B]
        flat_T = ranges(self.offset_R[:-1][index_B], length_B)
        return Contexts(
            self.item_T[flat_T],
            self.ts_T[flat_T],
            self.kind_T[flat_T],
            offsets(length_B),
            self.as_of_Q[index_B],
            self.session_Q[index_B],
            self.told_Q[index_B],
        )

    def before(self, row_P: NDArray[np.int64], back_P: NDArray[np.int64]) -> "Contexts":
        """The context of each question ``back_P`` events before the end of row ``row_P``, asked when the next came."""
        taken = self if len(row_P) == len(self) and (row_P == np.arange(len(self))).all() else self.take(row_P)
        if not back_P.any():
            return taken
        length_P = np.maximum(taken.length_Q - back_P, 0)
        flat_T = ranges(taken.offset_R[:-1], length_P)
        next_P = np.minimum(taken.offset_R[:-1] + length_P, max(0, len(taken.ts_T) - 1))
        as_of_P, told_P = taken.as_of_Q, taken.told_Q
        if len(taken.ts_T):
            is_within_P = length_P < taken.length_Q
            as_of_P = np.where(is_within_P, taken.ts_T[next_P], as_of_P)
            told_P = np.where(is_within_P, request_of(taken.kind_T[next_P]), told_P)
        events = (taken.item_T[flat_T], taken.ts_T[flat_T], taken.kind_T[flat_T])
        return Contexts(*events, offsets(length_P), as_of_P, taken.session_Q, told_P)

    def known(self, slot_I: NDArray[np.int64]) -> "Contexts":
        """The same queries without the items that have no row in this version's ``slot_I``."""
        keep_T = has_row(self.item_T, slot_I)
        if keep_T.all():
            return self
        kept_before = np.concatenate([[0], np.cumsum(keep_T)])
        return Contexts(
            self.item_T[keep_T],
            self.ts_T[keep_T],
            self.kind_T[keep_T],
            kept_before[self.offset_R],
            self.as_of_Q,
            self.session_Q,
            self.told_Q,
        )


@dataclass(frozen=True)
class ModelInputs:
    """A batch of contexts as a model reads them: right-aligned, so that the newest event is in the last column."""

    slot_BL: NDArray[np.int64]
    """Rows of the item table; -1 where there is no event (on the left)."""
    ts_BL: NDArray[np.int64]
    kind_BL: Codes
    as_of_B: NDArray[np.int64]
    told_B: NDArray[np.int64]

    def take(self, index_B: NDArray[np.integer]) -> "ModelInputs":
        """These rows, in this order."""
        return ModelInputs(*(array_B[index_B] for array_B in self.__dict__.values()))

    def known(self, known_V: NDArray[np.bool_]) -> tuple["ModelInputs", NDArray[np.int64]]:
        """The same without events on rows that are not known; what is left moves up to the newest, in its order.

        Rows beyond ``known_V`` are not known. Beside it: how many of the n newest events are left, by n, (B, L + 1).
        """
        is_event_BL = (self.slot_BL >= 0) & (self.slot_BL < len(known_V))
        is_event_BL[is_event_BL] = known_V[self.slot_BL[is_event_BL]]
        newer_BR = np.cumsum(np.pad(is_event_BL[:, ::-1], ((0, 0), (1, 0))), axis=1, dtype=np.int64)
        if np.array_equal(is_event_BL, self.slot_BL >= 0):
            return self, newer_BR
        order_BL = np.argsort(is_event_BL, axis=1, kind="stable")
        slot_BL, ts_BL, kind_BL = (
            np.take_along_axis(array_BL, order_BL, axis=1)
            for array_BL in (np.where(is_event_BL, self.slot_BL, -1), self.ts_BL, self.kind_BL)
        )
        return ModelInputs(slot_BL, ts_BL, kind_BL, self.as_of_B, self.told_B), newer_BR


def has_row(item_T: NDArray[np.int64], slot_I: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these items have a row of the table; numbers that are unknown (-1, or too high) have none."""
    keep_T = (item_T >= 0) & (item_T < len(slot_I))
    keep_T[keep_T] = slot_I[item_T[keep_T]] >= 0
    return keep_T


def ranges(start_Q: NDArray[np.int64], length_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """The concatenation of ``arange(start, start + length)`` for each pair."""
    before_R = offsets(length_Q)
    return np.arange(before_R[-1]) + np.repeat(start_Q - before_R[:-1], length_Q)


def offsets(length_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each ragged row begins, and the end."""
    return np.concatenate([[0], np.cumsum(length_Q)]).astype(np.int64)


def build_contexts(
    log: EventLog,
    key_Q: NDArray[np.uint64],
    as_of_Q: NDArray[np.int64],
    session_Q: NDArray[np.uint64],
    max_events: int,
    told_Q: NDArray[np.int64] | None = None,
) -> Contexts:
    """For each query, the newest ``max_events`` events of its key that are strictly earlier than its as-of time.

    Without ``told_Q``, nothing is told of the requests.
    """
    told_Q = np.zeros(len(key_Q), dtype=np.int64) if told_Q is None else told_Q
    first_Q, end_Q = span_before(log, key_Q, as_of_Q)
    start_Q = np.maximum(first_Q, end_Q - max_events)
    length_Q = end_Q - start_Q
    flat_T = ranges(start_Q, length_Q)
    events = (log.item_N[flat_T], log.ts_N[flat_T], log.kind_N[flat_T])
    return Contexts(*events, offsets(length_Q), as_of_Q, session_Q, told_Q)


def span_before(
    log: EventLog, key_Q: NDArray[np.uint64], as_of_Q: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each query, where in the log its key's events begin, and where those strictly earlier than as-of end."""
    first_Q = np.searchsorted(log.key_N, key_Q, side="left").astype(np.int64)
    last_Q = np.searchsorted(log.key_N, key_Q, side="right").astype(np.int64)
    return first_Q, _first_not_before(log.ts_N, first_Q, last_Q, as_of_Q)


def contexts_of(sequences: Sequence[Sequence[int]], as_of_ms: int, max_events: int, session: int = 0) -> Contexts:
    """Contexts of plain item numbers, oldest first, all asked at ``as_of_ms``: what a request is."""
    cut = [list(sequence)[-max_events:] for sequence in sequences]
    length_Q = np.array([len(sequence) for sequence in cut], dtype=np.int64)
    total = int(length_Q.sum())
    return Contexts(
        np.array([item for sequence in cut for item in sequence], dtype=np.int64),
        np.full(total, as_of_ms - 1, dtype=np.int64),
        np.zeros(total, dtype=np.int16),
        offsets(length_Q),
        np.full(len(cut), as_of_ms, dtype=np.int64),
        np.full(len(cut), session, dtype=np.uint64),
        np.zeros(len(cut), dtype=np.int64),
    )


def concatenate(parts: Sequence[Contexts]) -> Contexts:
    """All contexts of these, one after the other."""
    return Contexts(
        np.concatenate([part.item_T for part in parts]),
        np.concatenate([part.ts_T for part in parts]),
        np.concatenate([part.kind_T for part in parts]),
        offsets(np.concatenate([part.length_Q for part in parts])),
        np.concatenate([part.as_of_Q for part in parts]),
        np.concatenate([part.session_Q for part in parts]),
        np.concatenate([part.told_Q for part in parts]),
    )


def pad(contexts: Contexts, slot_I: NDArray[np.int64]) -> ModelInputs:
    """The padded batch; ``slot_I`` maps item numbers to rows of the item table. At least one column wide."""
    length_B = contexts.length_Q
    width = max(1, int(length_B.max(initial=0)))
    row_T = np.repeat(np.arange(len(contexts)), length_B)
    column_T = ranges(width - length_B, length_B)
    slot_BL = np.full((len(contexts), width), -1, dtype=np.int64)
    ts_BL = np.zeros((len(contexts), width), dtype=np.int64)
    kind_BL = np.zeros((len(contexts), width), dtype=contexts.kind_T.dtype)
    slot_BL[row_T, column_T] = slot_I[contexts.item_T]
    ts_BL[row_T, column_T] = contexts.ts_T
    kind_BL[row_T, column_T] = contexts.kind_T
    return ModelInputs(slot_BL, ts_BL, kind_BL, contexts.as_of_Q, contexts.told_Q)


def _first_not_before(
    ts_N: NDArray[np.int64],
    first_Q: NDArray[np.int64],
    last_Q: NDArray[np.int64],
    as_of_Q: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Vectorised binary search of each as-of time inside its own range."""
    low_Q, high_Q = first_Q.copy(), last_Q.copy()
    while (open_Q := low_Q < high_Q).any():
        middle_Q = (low_Q + high_Q) // 2
        earlier_Q = open_Q & (ts_N[np.minimum(middle_Q, len(ts_N) - 1)] < as_of_Q)
        low_Q = np.where(earlier_Q, middle_Q + 1, low_Q)
        high_Q = np.where(open_Q & ~earlier_Q, middle_Q, high_Q)
    return low_Q
