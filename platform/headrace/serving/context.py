"""What questions are asked from: the items that they send, after what the version knows of their users.

Contexts are built as evaluation builds its own, from a log of events, so that a question that names a user gets the
answer that was scored. Shape legend: N events of a batch, Q questions, X excluded items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.bundles.bundle import Loaded
from headrace.history.past import newest_session, of_session
from headrace.history.segments import Columns
from headrace.inputs.contexts import Contexts, EventLog, build_contexts
from headrace.inputs.told import Codes, tell, tell_one
from headrace.serving.request import ItemId, Question


@dataclass(frozen=True)
class Asked:
    """A batch of questions in a version's own numbers. Made by ``look_up``, read by serving/service.py."""

    contexts: Contexts
    exclude: list[NDArray[np.int64]]
    """Of each question, (X,): item numbers that must not be answered; -1 for unknown items."""
    number: list[NDArray[np.int64]]
    """Of each question, the items that it sends; -1 for unknown ones."""
    is_known: list[bool]
    """Whether anything is known of each question's user, at whatever time."""
    num_recent: list[int]
    """How many of its context's events are the user's."""


def look_up(loaded: Loaded, questions: Sequence[Question], as_of: Sequence[int]) -> Asked:
    """Everything that these questions say and that this version knows; ``as_of`` is event time, ms."""
    past_of = _pasts(loaded, questions)
    pasts = [None if question.owner is None else past_of.get(question.owner) for question in questions]
    numbers = [_numbers(loaded, question.items) for question in questions]
    chosen = [_chosen(loaded, *asked) for asked in zip(questions, pasts, as_of, strict=True)]
    recent = [rows for rows, _ in chosen]
    told_Q = np.array([tell_one(loaded.features, question.context) for question in questions], dtype=np.int64)
    contexts = build_contexts(
        _log(recent, numbers, as_of, _met(loaded, numbers, told_Q)),
        np.arange(len(questions), dtype=np.uint64),
        np.array(as_of, dtype=np.int64),
        np.array([session for _, session in chosen], dtype=np.uint64),
        loaded.recommender.max_events,
        told_Q,
    )
    num_sent = [len(number_L) for number_L in numbers]
    return Asked(
        contexts,
        [_excluded(loaded, *asked) for asked in zip(questions, pasts, numbers, strict=True)],
        numbers,
        [past is not None for past in pasts],
        [max(0, int(length) - sent) for length, sent in zip(contexts.length_Q, num_sent, strict=True)],
    )


def _pasts(loaded: Loaded, questions: Sequence[Question]) -> dict[int, Columns]:
    owners = [question.owner for question in questions if question.owner is not None]
    if not owners:
        return {}
    assert loaded.past is not None, "a version that users are looked up in is loaded with its history"
    return loaded.past.of(owners)


def _chosen(loaded: Loaded, question: Question, past: Columns | None, as_of_ms: int) -> tuple[Columns | None, int]:
    """The rows of the past that the context begins with, and the session that asks.

    With ``inputs.context = "session"`` they are one session's: the one that the question names, else the newest. Where
    the log names no sessions, a question cannot either.
    """
    session = question.session
    if past is None or loaded.inputs.context == "user":
        return past, session
    if not session or loaded.columns.session_id is None:
        session = newest_session(past, as_of_ms) or 0
    return of_session(past, session), session


def _met(loaded: Loaded, numbers: Sequence[NDArray[np.int64]], told_Q: NDArray[np.int64]) -> list[Codes]:
    """What is told of each question's items, which were met as it says."""
    length_Q = [len(number_L) for number_L in numbers]
    about_items = loaded.catalogue.listing.told(loaded.attributes, np.concatenate(numbers))
    told_N = tell(np.repeat(told_Q, length_Q), about_items, tuple(about_items), first=1 + len(loaded.features))
    return np.split(told_N, np.cumsum(length_Q)[:-1])


def _log(
    recent: Sequence[Columns | None],
    numbers: Sequence[NDArray[np.int64]],
    as_of: Sequence[int],
    told: Sequence[Codes],
) -> EventLog:
    """One log of all questions' events, by place of the question: what is known first, then what was sent."""
    key, ts, item, kind = [], [], [], []
    for place, (rows, number_L, as_of_ms, told_L) in enumerate(zip(recent, numbers, as_of, told, strict=True)):
        if rows is not None:
            key.append(np.full(len(rows["ts"]), place, dtype=np.uint64))
            ts.append(rows["ts"])
            item.append(rows["item"].astype(np.int64))
            kind.append(rows["kind"])
        key.append(np.full(len(number_L), place, dtype=np.uint64))
        ts.append(np.full(len(number_L), as_of_ms - 1, dtype=np.int64))
        item.append(number_L)
        kind.append(told_L)
    key_N, ts_N = np.concatenate(key), np.concatenate(ts)
    order_N = np.lexsort((ts_N, key_N))  # stable
    return EventLog(key_N[order_N], ts_N[order_N], np.concatenate(item)[order_N], np.concatenate(kind)[order_N])


def _excluded(
    loaded: Loaded, question: Question, past: Columns | None, number_L: NDArray[np.int64]
) -> NDArray[np.int64]:
    number_X = _numbers(loaded, question.exclude)
    if not question.exclude_seen:
        return number_X
    seen = [number_L] if past is None else [number_L, past["item"].astype(np.int64)]
    return np.concatenate([number_X, *seen])


def _numbers(loaded: Loaded, ids: Sequence[ItemId]) -> NDArray[np.int64]:
    array = np.empty(len(ids), dtype=object)
    array[:] = ids
    return loaded.catalogue.numbers(array)
