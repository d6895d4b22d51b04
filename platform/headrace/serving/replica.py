"""A replica without Ray: it follows the pointer, swaps versions, and answers batches from one reference.

A version becomes current after its parts were verified and it has answered recorded requests once, so that nobody waits
for its first answers; what was current before is let go when its last batch is done. What goes wrong on the way to a
new version is reported by ``status`` and changes nothing for those who ask: no trainer, no new version, no store.
"""

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from headrace.bundles.bundle import Loaded
from headrace.bundles.watch import Watcher
from headrace.clock import wall_ms
from headrace.errors import HeadraceError
from headrace.memory import TRIM_EVERY, trim
from headrace.serving.batcher import Batcher
from headrace.serving.request import Question, RequestError, parse
from headrace.serving.service import Answer, answer
from headrace.serving.slot import Slot
from headrace.store.store import Store

RETRY_AFTER_S = 1
"""What whoever gets a 503 is told to wait."""
_RECENT = 32  # questions kept for warming


class NotReadyError(HeadraceError):
    """There is no version to answer with yet."""


@dataclass(frozen=True)
class Reply:
    """How one HTTP request is met. Made by ``respond``, sent by the deployment."""

    status: int
    body: bytes
    """JSON."""

    @property
    def headers(self) -> dict[str, str]:
        """Beside those that every answer has."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == HTTPStatus.SERVICE_UNAVAILABLE else {}


class Replica:
    """``refresh`` belongs to one background thread, ``answer_batch`` to one other; the rest is for any."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._watcher = Watcher(store)
        self._slot: Slot[Loaded] = Slot()
        self._recent: deque[Question] = deque(maxlen=_RECENT)
        self._num_swaps = 0

    @property
    def problem(self) -> str | None:
        """What stands between this replica and the newest version, in words."""
        return self._watcher.problem

    def refresh(self) -> bool:
        """Look at the pointer; load, warm and swap in what is new. Whether it did; a store that is away only waits."""
        bundle = self._watcher.poll()
        loaded = None if bundle is None else self._watcher.load(bundle)
        if loaded is None:
            return False
        answer(loaded, list(self._recent.copy()) or [Question()], wall_ms(), self.name)
        if self._num_swaps % TRIM_EVERY == 0:  # first before there is anything to answer with, since that takes longest
            trim()
        self._slot.put(loaded)
        self._num_swaps += 1
        return True

    def answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer all of them from the version that is current now; NotReadyError before the first one."""
        with self._slot.use() as loaded:
            if loaded is None:
                raise NotReadyError("no version is published yet: ask again when the warm-up is done")
            self._recent.extend(questions)
            return answer(loaded, questions, wall_ms(), self.name)

    def status(self) -> dict[str, object]:
        """What ``GET /v1/version`` says; ``version`` is None before the first."""
        with self._slot.use() as loaded:
            bundle = None if loaded is None else loaded.bundle
            return {
                "version": None if bundle is None else bundle.version,
                "replica": self.name,
                "state_digest": None if bundle is None else bundle.state_digest,
                "cut": None if bundle is None else bundle.cut,
                "watermark_ms": None if bundle is None else bundle.watermark_ms,
                "num_items": None if loaded is None else loaded.recommender.num_items,
                "num_eligible": None if loaded is None else len(loaded.recommender.eligible),
                "num_swaps": self._num_swaps,
                "problem": self.problem,
                "pid": os.getpid(),
            }


async def respond(replica: Replica, batcher: Batcher[Question, Answer], method: str, path: str, body: bytes) -> Reply:
    """How a replica meets one HTTP request."""
    try:
        match path:
            case "/v1/recall" if method == "POST":
                return Reply(HTTPStatus.OK, (await batcher.ask(parse(body))).to_json())
            case "/v1/version" if method == "GET":
                status = replica.status()
                ready = status["version"] is not None
                return _as_json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, status)
            case "/healthz" if method == "GET":
                return _as_json(HTTPStatus.OK, {"status": "ok", "replica": replica.name})
            case "/v1/recall" | "/v1/version" | "/healthz":
                right = "POST" if path == "/v1/recall" else "GET"
                raise RequestError(f"received {method} {path}; use {right}", HTTPStatus.METHOD_NOT_ALLOWED)
            case _:
                raise RequestError(
                    f"nothing at {path}; there are POST /v1/recall, GET /v1/version and GET /healthz",
                    HTTPStatus.NOT_FOUND,
                )
    except RequestError as error:
        return _as_json(error.status, {"error": str(error)})
    except NotReadyError as error:
        return _as_json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})


def _as_json(status: int, content: Mapping[str, object]) -> Reply:
    return Reply(status, json.dumps(content).encode())
