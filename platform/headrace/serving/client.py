"""A steady trickle of real requests to a running application, each logged as it was met. No retries, no Ray.

It waits until every replica has a version, then asks at a fixed rate over one kept connection. A share of the answers
is recomputed with the bundle that they name, in a thread of its own, so that the rate does not suffer; those are logged
once that is known. In memory there are counts only; the log grows by some 150 bytes a request.
"""

import contextlib
import http
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bundles.bundle import Loader
from headrace.bundles.publish import read_bundle, read_pointer
from headrace.clock import monotonic_s
from headrace.errors import StoreError
from headrace.records import generator
from headrace.serving.check import Checker
from headrace.serving.connection import Connection
from headrace.serving.request import ItemId
from headrace.store.store import Store
from headrace.tracking.report import Requests

SLOW_S = 1.0
CHECKED = 100
"""One answer in so many is recomputed."""

Sessions = Callable[[int], list[ItemId]]
"""The item ids, oldest first, of the n-th request."""


@dataclass(frozen=True)
class Exchange:
    """One request and how it was met. Made by ``Client``, kept in requests.jsonl, read by tracking/report.py."""

    sent_monotonic_s: float
    received_monotonic_s: float
    status: int | None
    """None: no connection, or it broke."""
    version: int | None
    replica: str | None
    mixed: bool | None = None
    """Whether recomputing it with the bundle that it names gave something else; None: not recomputed."""

    @property
    def latency_s(self) -> float:
        """From sending to the whole answer."""
        return self.received_monotonic_s - self.sent_monotonic_s

    @property
    def failed(self) -> bool:
        """Not 2xx, or no connection."""
        return self.status is None or not 200 <= self.status < 300

    @property
    def slow(self) -> bool:
        """Slower than a second."""
        return self.latency_s > SLOW_S


class StoreSessions:
    """Made-up sessions of items that the served version knows; the same ones for the same seed and items."""

    _FRESH = 100  # sessions drawn from one reading of the catalogue

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._seed = seed
        self._loader = Loader(store)
        self._ids: list[ItemId] = []

    def __call__(self, number: int) -> list[ItemId]:
        """One to eight items, the popular ones more often."""
        if number % self._FRESH == 0 or not self._ids:
            self._read()
        draw = generator(self._seed, "client", number)
        places = (len(self._ids) * draw.random(int(draw.integers(1, 9))) ** 2).astype(np.int64)
        return [self._ids[place] for place in places]

    def _read(self) -> None:
        try:
            pointer = read_pointer(self._store)
            if pointer is not None:
                self._ids = self._loader.load_ids(read_bundle(self._store, pointer.version, pointer.sha256))
        except (OSError, StoreError):
            return  # the ids of before will do


class Client:
    """Asks from a thread of its own until it is stopped; earlier exchanges of the same log are kept."""

    def __init__(
        self,
        address: str,
        sessions: Sessions,
        rps: float,
        log: Path,
        num_replicas: int = 1,
        checker: Checker | None = None,
        check_every: int = CHECKED,
    ) -> None:
        self._address = address
        self._sessions = sessions
        self._period_s = 1.0 / rps
        self._log = log
        self._num_replicas = num_replicas
        self._checker = checker
        self._check_every = check_every
        self._requests = Requests(read_log(log))
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._checks: queue.Queue[tuple[Exchange, bytes, dict[str, Any]] | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=target, name=f"client-{target.__name__}", daemon=True)
            for target in (self._ask, self._check)
        ]

    def start(self) -> None:
        """Begin to ask, as soon as every replica has a version."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the request in flight end, recompute what waits, and close the log."""
        self._stopping.set()
        self._threads[0].join()
        self._checks.put(None)
        self._threads[1].join()

    def requests(self, newest_versions: int | None = None) -> Requests:
        """What was met so far, earlier exchanges of this log included; see ``Requests.copy``."""
        with self._lock:
            return self._requests.copy(newest_versions)

    def _ask(self) -> None:
        connection = Connection(self._address)
        if not self._ready(connection):
            return
        begun_s, number = monotonic_s(), self._requests.total
        turn = 0
        while not self._stopping.wait(max(0.0, begun_s + turn * self._period_s - monotonic_s())):
            request = json.dumps({"items": self._sessions(number), "k": 20}).encode()
            exchange, response = exchange_over(connection, request)
            if self._checker is not None and not exchange.failed and number % self._check_every == 0:
                self._checks.put((exchange, request, response))
            else:
                self._keep(exchange)
            number, turn = number + 1, turn + 1
            if begun_s + turn * self._period_s < monotonic_s() - self._period_s:
                begun_s, turn = monotonic_s(), 0  # what was missed is not made up for
        connection.close()

    def _ready(self, connection: Connection) -> bool:
        """Wait until every replica has said that it has a version; False when stopped before."""
        ready: set[str] = set()
        while len(ready) < self._num_replicas:
            status, content = connection.call("GET", "/v1/version")
            if status == http.HTTPStatus.OK:
                ready.add(json.loads(content)["replica"])
            if self._stopping.wait(0.02 if ready else 0.1):
                return False
        return True

    def _check(self) -> None:
        while (waiting := self._checks.get()) is not None:
            exchange, request, response = waiting
            assert self._checker is not None
            self._keep(replace(exchange, mixed=self._checker.is_mixed(request, response)))

    def _keep(self, exchange: Exchange) -> None:
        with self._lock, self._log.open("a") as log:
            self._requests.add(exchange)
            log.write(json.dumps(asdict(exchange)) + "\n")


def exchange_over(connection: Connection, request: bytes) -> tuple[Exchange, dict[str, Any]]:
    """Send one request, once; how it was met, and the answer (empty where it failed)."""
    sent_s = monotonic_s()
    status, content = connection.call("POST", "/v1/recall", request)
    received_s = monotonic_s()
    answered = status == http.HTTPStatus.OK
    response: dict[str, Any] = json.loads(content) if answered else {}
    return Exchange(sent_s, received_s, status, response.get("version"), response.get("replica")), response


def read_log(log: Path) -> Iterator[Exchange]:
    """The exchanges in a log; none where there is no log. A line that a kill cut short is left out, and ended."""
    if not log.exists():
        return
    with log.open("r+") as lines:
        line = "\n"
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                yield Exchange(**json.loads(line))
        if not line.endswith("\n"):
            lines.seek(0, os.SEEK_END)
            lines.write("\n")
