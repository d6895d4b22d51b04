"""What a request may say, and what a version answers; no Ray, no network.

A batch is answered from one version: ids are looked up, scored and named again inside it, so that no answer mixes two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from headrace.bundles.bundle import Loaded
from headrace.errors import HeadraceError
from headrace.inputs.contexts import concatenate, contexts_of
from headrace.records import hash64

MAX_K = 1000
MAX_IDS = 10_000
"""Ids in ``items`` or ``exclude`` of one request."""
MAX_BODY_BYTES = 2**20
_KEYS = ("items", "k", "exclude", "ts", "session_id", "explain")
_SHOWN = 80  # characters of a received value in an error

ItemId = int | str


class RequestError(HeadraceError, ValueError):
    """A request that cannot be answered as it is; ``status`` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Question:
    """One valid request. Made by ``parse``, answered by ``answer``."""

    items: tuple[ItemId, ...]
    """Oldest first."""
    k: int = 20
    exclude: tuple[ItemId, ...] = ()
    as_of_ms: int | None = None
    """Event time; None: now."""
    session: int = 0
    """Hash of the session that asks; 0 where it is unknown."""
    explain: bool = False
    """Whether to say what each expert contributes to every score."""


@dataclass(frozen=True)
class Answer:
    """What is sent back. Made by ``answer``; read by users and by the run's client."""

    items: list[ItemId]
    """Best first; fewer than ``k`` where not more can be answered."""
    scores: list[float]
    """Probabilities of being next."""
    version: int
    replica: str
    unknown: list[ItemId]
    """Items of the request that this version does not know; they were ignored."""
    fallback: str | None
    """Why the answer is what is popular, in words; None where the session's items were used."""
    as_of_ms: int
    """Event time as of which it was asked."""
    shares: dict[str, list[float]] | None = None
    """By expert, what it contributes to each score: they sum to the scores. None, and not sent, unless asked for."""

    def to_json(self) -> bytes:
        """The body of the response."""
        content = asdict(self)
        if self.shares is None:
            del content["shares"]
        return json.dumps(content).encode()


def parse(body: bytes) -> Question:
    """The question in a request's JSON body; RequestError says what was received and what to send instead."""
    if len(body) > MAX_BODY_BYTES:
        raise RequestError(f"a body of {len(body)} bytes; send at most {MAX_BODY_BYTES}", 413)
    try:
        raw = json.loads(body)
        json.dumps(raw, ensure_ascii=False).encode()  # half of a surrogate pair is valid JSON and no text
    except (ValueError, RecursionError) as error:
        example = '{"items": [1, 2], "k": 20}'
        raise RequestError(f"the body is not JSON ({error}); send something like {example}") from error
    if not isinstance(raw, dict):
        raise RequestError(f"received {_shown(raw)}; send a JSON object with the keys {', '.join(_KEYS)}")
    if unknown := sorted(set(raw) - set(_KEYS)):
        raise RequestError(f"no such key: {', '.join(unknown)}; the keys are {', '.join(_KEYS)}")
    if "items" not in raw:
        raise RequestError('"items" is missing; send the session\'s item ids, oldest first (an empty list is fine)')
    return Question(_ids(raw, "items"), _k(raw), _ids(raw, "exclude"), _ts(raw), _session(raw), _explain(raw))


def answer(loaded: Loaded, questions: Sequence[Question], now_ms: int, replica: str) -> list[Answer]:
    """The answers to a batch, all from one version. ``now_ms`` is the wall clock's.

    A question without a time is asked as of the version's watermark plus the time since the version was made.
    """
    bundle, catalogue, recommender = loaded.bundle, loaded.catalogue, loaded.recommender
    default_ms = bundle.watermark_ms + max(0, now_ms - bundle.wall_ms)
    as_of = [default_ms if question.as_of_ms is None else question.as_of_ms for question in questions]
    numbers = [catalogue.numbers(_array(question.items)) for question in questions]
    contexts = concatenate(
        [
            contexts_of([number_L.tolist()], as_of_ms, recommender.max_events, question.session)
            for question, number_L, as_of_ms in zip(questions, numbers, as_of, strict=True)
        ]
    )
    exclude = [catalogue.numbers(_array(question.exclude)) for question in questions]
    k = max(question.k for question in questions)
    top = recommender.top(contexts, k, exclude, explain=any(question.explain for question in questions))
    answers = []
    for row, question in enumerate(questions):
        there_K = top.number_QK[row, : question.k] >= 0
        unknown_L = numbers[row] < 0
        answers.append(
            Answer(
                catalogue.raw_ids(top.number_QK[row, : question.k][there_K]),
                top.score_QK[row, : question.k][there_K].tolist(),
                bundle.version,
                replica,
                list(dict.fromkeys(item for item, unknown in zip(question.items, unknown_L, strict=True) if unknown)),
                _fallback(question) if top.fallback_Q[row] else None,
                as_of[row],
                {name: share_QK[row, : question.k][there_K].tolist() for name, share_QK in top.shares.items()}
                if question.explain
                else None,
            )
        )
    return answers


def _fallback(question: Question) -> str:
    if not question.items:
        return "no items were sent: these are the popular ones"
    return "none of the newest items is known: these are the popular ones"


def _array(ids: Sequence[ItemId]) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
    array = np.empty(len(ids), dtype=object)
    array[:] = ids
    return array


def _ids(raw: Mapping[str, Any], key: str) -> tuple[ItemId, ...]:
    ids = raw.get(key, [])
    if not isinstance(ids, list):
        raise RequestError(f'"{key}" is {_shown(ids)}; send a list of item ids')
    if len(ids) > MAX_IDS:
        raise RequestError(f'"{key}" holds {len(ids)} ids; send at most {MAX_IDS}')
    for place, item in enumerate(ids):
        if not isinstance(item, int | str) or isinstance(item, bool):
            raise RequestError(f'"{key}"[{place}] is {_shown(item)}; item ids are integers or strings, as in the log')
    return tuple(ids)


def _k(raw: Mapping[str, Any]) -> int:
    k = raw.get("k", 20)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise RequestError(f'"k" is {_shown(k)}; send a whole number from 1 to {MAX_K}')
    return k


def _ts(raw: Mapping[str, Any]) -> int | None:
    ts = raw.get("ts")
    if ts is None or (isinstance(ts, int) and not isinstance(ts, bool) and abs(ts) < 2**62):
        return ts
    hint = 'send milliseconds since the epoch, or a string such as "2026-01-31T12:00:00Z"'
    if not isinstance(ts, str):
        raise RequestError(f'"ts" is {_shown(ts)}; {hint}')
    try:
        moment = datetime.fromisoformat(ts)
    except ValueError as error:
        raise RequestError(f'"ts" is {_shown(ts)}; {hint}') from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _session(raw: Mapping[str, Any]) -> int:
    session = raw.get("session_id")
    if session is None:
        return 0
    if not isinstance(session, int | str) or isinstance(session, bool):
        raise RequestError(f'"session_id" is {_shown(session)}; send an integer or a string, as in the log')
    return hash64("session", session)


def _explain(raw: Mapping[str, Any]) -> bool:
    explain = raw.get("explain", False)
    if not isinstance(explain, bool):
        raise RequestError(f'"explain" is {_shown(explain)}; send true or false')
    return explain


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
