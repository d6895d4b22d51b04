"""``headrace ask``: one question to a running service, and its answer as lines for people. No torch, no Ray."""

import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from headrace.errors import ConfigError, HeadraceError
from headrace.serving.connection import Connection
from headrace.serving.request import ItemId
from headrace.tracking.console import align


class UnansweredError(HeadraceError):
    """The service is there and did not answer the question."""


def ask(
    address: str, items: Sequence[str], user: str | None = None, **further: int | Mapping[str, str]
) -> dict[str, Any]:
    """The answer to these items and this user, with further keys of ``POST /v1/recall``.

    Words of digits are sent as integers first, and as strings where the service then knows none of the items, or
    nothing of the user: a log may have either. ConfigError where nobody listens, UnansweredError with the service's own
    words where it refuses.
    """
    connection = Connection(address)
    try:
        first: dict[str, Any] = {"items": [_number(word) for word in items], **further}
        second: dict[str, Any] = {"items": list(items), **further}
        if user is not None:
            first["user_id"], second["user_id"] = _number(user), user
        answer = _call(connection, address, first)
        if first != second and _knows_nothing(answer, items):
            again = _call(connection, address, second)
            answer = answer if _knows_nothing(again, items) else again
    finally:
        connection.close()
    return answer


def read_context(words: Sequence[str]) -> dict[str, str]:
    """``column=value``, one a word; ConfigError for another."""
    pairs = [word.partition("=") for word in words]
    if wrong := [word for word, (column, sign, _) in zip(words, pairs, strict=True) if not (column and sign)]:
        raise ConfigError(f"--context {wrong[0]}: write it as column=value, such as device=phone")
    return {column: value for column, _, value in pairs}


def _knows_nothing(answer: Mapping[str, Any], items: Sequence[str]) -> bool:
    return len(answer["unknown"]) == len(set(items)) and not answer.get("num_recent")


def in_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """A line for each answered item, then where the answer comes from."""
    shares: Mapping[str, Sequence[float]] = answer.get("shares") or {}
    header = ("item", "score", *shares)
    rows = [
        (str(item), f"{score:.5f}", *(f"{share[place] / max(score, 1e-30):.0%}" for share in shares.values()))
        for place, (item, score) in enumerate(zip(answer["items"], answer["scores"], strict=True))
    ]
    yield from align(header, rows, left=frozenset({0}))
    yield f"version {answer['version']}, replica {answer['replica']}"
    if answer["unknown"]:
        yield f"not known to this version: {', '.join(map(str, answer['unknown']))}"
    if answer.get("unknown_context"):
        yield f"its model is not told of: {', '.join(answer['unknown_context'])}"
    if answer["fallback"]:
        yield str(answer["fallback"])


def _number(word: str) -> ItemId:
    try:
        return int(word) if word == str(int(word)) else word
    except ValueError:
        return word


def _call(connection: Connection, address: str, question: Mapping[str, Any]) -> dict[str, Any]:
    status, content = connection.call("POST", "/v1/recall", json.dumps(question).encode())
    if status is None:
        raise ConfigError(
            f"nobody answers at {address}: start a run (headrace run) or a service (headrace serve), or say where it "
            "listens with --address"
        )
    try:
        answer: dict[str, Any] = json.loads(content)
    except ValueError:
        if status == HTTPStatus.SERVICE_UNAVAILABLE:  # Serve's own words, where the queue is full
            raise UnansweredError(f"{address} says {status}: {content.decode(errors='replace')[:200]}") from None
        raise ConfigError(f"{address} is not a Headrace service: it says {content[:100]!r}") from None
    if status != HTTPStatus.OK:
        raise UnansweredError(f"{address} says {status}: {answer.get('error', content[:200])}")
    return answer
