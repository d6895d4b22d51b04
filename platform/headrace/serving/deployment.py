"""The Serve deployment: a shell around one ``Replica``, with a thread that follows the pointer.

Serve never reconfigures it: a replica that runs ``reconfigure`` leaves the routable set. Health is Serve's own check of
the process, so a store that is away, or stale versions, never take a replica out of service.
"""

import logging
import threading

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from headrace.serving.batcher import Batcher
from headrace.serving.replica import Replica, respond
from headrace.store.store import Store

_log = logging.getLogger("ray.serve")


class Recall:
    """Answers over HTTP from the newest version in a store; works with the trainer gone."""

    def __init__(self, store_uri: str, poll_s: float, max_batch: int, batch_wait_s: float) -> None:
        torch.set_num_threads(1)  # what makes answers equal to the byte, and two replicas good neighbours
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(Store(store_uri), name)
        self._batcher = Batcher(self._replica.answer_batch, max_batch, batch_wait_s)
        self._poll_s = poll_s
        self._closed = threading.Event()
        self._replica.refresh()  # a replica that comes later is ready when it is routed to
        threading.Thread(target=self._follow, name="follow-pointer", daemon=True).start()

    async def __call__(self, request: Request) -> Response:
        """Meet one request."""
        body = await request.body()
        reply = await respond(self._replica, self._batcher, request.method, request.url.path, body)
        return Response(reply.body, reply.status, reply.headers, media_type="application/json")

    def __del__(self) -> None:
        self._closed.set()

    def _follow(self) -> None:
        reported = None
        while not self._closed.wait(self._poll_s):
            try:
                self._replica.refresh()
                if self._replica.problem != reported and self._replica.problem is not None:
                    _log.warning(self._replica.problem)
                reported = self._replica.problem
            except Exception:  # noqa: BLE001 (the edge of the process: one bad version must not end the following of the next)
                _log.exception("a new version could not be taken; the old one stays")
