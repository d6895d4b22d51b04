"""What a version answers; no Ray, no network.

A batch is answered from one version: users and ids are looked up, scored and named again inside it, so that no answer
mixes two.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from headrace.bundles.bundle import Loaded
from headrace.recommend.recommender import Top
from headrace.serving.context import Asked, look_up
from headrace.serving.request import ItemId, Question, shown

_MAY_BE_LEFT_OUT = ("shares", "num_recent", "unknown_context")
_POPULAR = "these are the popular ones"


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
    """Why the answer is what is popular, in words; None where items or the user's past were used."""
    as_of_ms: int
    """Event time as of which it was asked."""
    shares: dict[str, list[float]] | None = None
    """By expert, what it contributes to each score: they sum to the scores. None, and not sent, unless asked for."""
    num_recent: int | None = None
    """How many of the user's known events the answer was made from. None, and not sent, where no user was named."""
    unknown_context: list[str] | None = None
    """Columns of the request's context that this version's model is not told of; they were ignored. None: none."""

    def to_json(self) -> bytes:
        """The body of the response."""
        content = asdict(self)
        return json.dumps(
            {name: value for name, value in content.items() if value is not None or name not in _MAY_BE_LEFT_OUT}
        ).encode()


def answer(loaded: Loaded, questions: Sequence[Question], now_ms: int, replica: str) -> list[Answer]:
    """The answers to a batch, all from one version. ``now_ms`` is the wall clock's.

    A question without a time is asked as of the version's watermark plus the time since the version was made.
    """
    default_ms = loaded.bundle.watermark_ms + max(0, now_ms - loaded.bundle.wall_ms)
    as_of = [default_ms if question.as_of_ms is None else question.as_of_ms for question in questions]
    asked = look_up(loaded, questions, as_of)
    k = max(question.k for question in questions)
    explain = any(question.explain for question in questions)
    top = loaded.recommender.top(asked.contexts, k, asked.exclude, explain=explain)
    return [_answer(loaded, question, asked, top, row, replica) for row, question in enumerate(questions)]


def _answer(loaded: Loaded, question: Question, asked: Asked, top: Top, row: int, replica: str) -> Answer:
    there_K = top.number_QK[row, : question.k] >= 0
    shares = {name: share_QK[row, : question.k][there_K].tolist() for name, share_QK in top.shares.items()}
    unknown = [item for item, number in zip(question.items, asked.number[row], strict=True) if number < 0]
    return Answer(
        loaded.catalogue.raw_ids(top.number_QK[row, : question.k][there_K]),
        top.score_QK[row, : question.k][there_K].tolist(),
        loaded.version,
        replica,
        list(dict.fromkeys(unknown)),
        _fallback(loaded, question, asked.is_known[row]) if top.fallback_Q[row] else None,
        int(asked.contexts.as_of_Q[row]),
        shares if question.explain else None,
        None if question.user is None else asked.num_recent[row],
        sorted(question.context.keys() - set(loaded.features)) or None,
    )


def _fallback(loaded: Loaded, question: Question, is_known: bool) -> str:
    """Why the context held nothing that this version knows."""
    items = "none of the newest items is known" if question.items else "no items were sent"
    if question.user is None:
        return f"{items}: {_POPULAR}"
    user = f"user {shown(question.user)}"
    if loaded.columns.user_id is None:
        return f"the log names no users, and {items}: {_POPULAR}"
    if not is_known:
        return f"nothing is known of {user}, and {items}: {_POPULAR}"
    return f"nothing that counts is known of {user} before that time, and {items}: {_POPULAR}"
