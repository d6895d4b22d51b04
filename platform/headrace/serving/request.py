"""What a request may say: the keys of ``POST /v1/recall``, checked and refused in words; no version, no network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from headrace.errors import HeadraceError
from headrace.records import hash64

MAX_K = 1000
MAX_IDS = 10_000
"""Ids in ``items`` or ``exclude`` of one request."""
MAX_BODY_BYTES = 2**20
_KEYS = ("items", "user_id", "k", "exclude", "exclude_seen", "ts", "session_id", "context", "explain")
_SHOWN = 80  # characters of a received value in an error

ItemId = int | str
Scalar = str | int | float | bool | None


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

    items: tuple[ItemId, ...] = ()
    """Oldest first; newer than anything that is known of the user."""
    k: int = 20
    exclude: tuple[ItemId, ...] = ()
    as_of_ms: int | None = None
    """Event time; None: now."""
    session: int = 0
    """Hash of the session that asks; 0 where it is unknown."""
    explain: bool = False
    """Whether to say what each expert contributes to every score."""
    user: int | str | None = None
    """Who asks, as in the log; None where that is not said."""
    exclude_seen: bool = False
    """Whether to leave out whatever is known of the user's past, and ``items``."""
    context: Mapping[str, Scalar] = field(default_factory=dict)
    """How ``items`` were met: values by column of the log."""
    known_owner: int | None = None
    """Whose past is looked up, by the hash that history keeps it under, where nobody knows the user's own name."""

    @property
    def owner(self) -> int | None:
        """What the user's events are kept under: hashed as the log's are when they land."""
        return self.known_owner if self.user is None else hash64("user", self.user)


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
        raise RequestError(f"received {shown(raw)}; send a JSON object with the keys {', '.join(_KEYS)}")
    if unknown := sorted(set(raw) - set(_KEYS)):
        raise RequestError(f"no such key: {', '.join(unknown)}; the keys are {', '.join(_KEYS)}")
    user = _identity(raw, "user_id")
    if "items" not in raw and user is None:
        raise RequestError(
            '"items" and "user_id" are missing; send the session\'s item ids, oldest first (an empty list is fine), or '
            "the user, or both"
        )
    session = _identity(raw, "session_id")
    return Question(
        _ids(raw, "items"),
        _k(raw),
        _ids(raw, "exclude"),
        _ts(raw),
        0 if session is None else hash64("session", session),
        _flag(raw, "explain"),
        user,
        _flag(raw, "exclude_seen"),
        _context(raw),
    )


def _ids(raw: Mapping[str, Any], key: str) -> tuple[ItemId, ...]:
    ids = raw.get(key, [])
    if not isinstance(ids, list):
        raise RequestError(f'"{key}" is {shown(ids)}; send a list of item ids')
    if len(ids) > MAX_IDS:
        raise RequestError(f'"{key}" holds {len(ids)} ids; send at most {MAX_IDS}')
    for place, item in enumerate(ids):
        if not isinstance(item, int | str) or isinstance(item, bool):
            raise RequestError(f'"{key}"[{place}] is {shown(item)}; item ids are integers or strings, as in the log')
    return tuple(ids)


def _context(raw: Mapping[str, Any]) -> dict[str, Scalar]:
    said = raw.get("context", {})
    if not isinstance(said, dict):
        raise RequestError(f'"context" is {shown(said)}; send an object such as {{"device": "phone"}}')
    for column, value in said.items():
        if not isinstance(value, str | int | float | None):
            raise RequestError(
                f'"context"[{json.dumps(column)}] is {shown(value)}; send a word, a number, true or false'
            )
    return said


def _k(raw: Mapping[str, Any]) -> int:
    k = raw.get("k", 20)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise RequestError(f'"k" is {shown(k)}; send a whole number from 1 to {MAX_K}')
    return k


def _ts(raw: Mapping[str, Any]) -> int | None:
    ts = raw.get("ts")
    if ts is None or (isinstance(ts, int) and not isinstance(ts, bool) and abs(ts) < 2**62):
        return ts
    hint = 'send milliseconds since the epoch, or a string such as "2026-01-31T12:00:00Z"'
    if not isinstance(ts, str):
        raise RequestError(f'"ts" is {shown(ts)}; {hint}')
    try:
        moment = datetime.fromisoformat(ts)
    except ValueError as error:
        raise RequestError(f'"ts" is {shown(ts)}; {hint}') from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _identity(raw: Mapping[str, Any], key: str) -> int | str | None:
    """A session or a user; the bounds are those of 64 bits, signed or not, since that is what a log can hold."""
    identity = raw.get(key)
    if identity is None or isinstance(identity, str):
        return identity
    if not isinstance(identity, int) or isinstance(identity, bool) or not -(2**63) <= identity < 2**64:
        raise RequestError(f'"{key}" is {shown(identity)}; send an integer of 64 bits or a string, as in the log')
    return identity


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    flag = raw.get(key, False)
    if not isinstance(flag, bool):
        raise RequestError(f'"{key}" is {shown(flag)}; send true or false')
    return flag


def shown(value: object) -> str:
    """A received value for a sentence: as JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
