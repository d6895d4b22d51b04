"""Clients that ask a running application all the while, so many at once, and what they met.

Each asks again when it has its answer, after a pause: how many requests are under way is then how many clients there
are, and that is what replicas scale on. No retries.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from headrace.serving.client import Exchange, Sessions, exchange_over
from headrace.serving.connection import Connection


class Met:
    """What clients met while they asked together; it grows until they have stopped."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        """By the moment of the answer."""
        self.answers: list[tuple[bytes, dict[str, Any]]] = []
        """Requests and answers that were kept whole."""

    @property
    def num_failed(self) -> int:
        """Requests that were not answered."""
        return sum(exchange.failed for exchange in self.exchanges)

    def replicas(self, newest: int = 0) -> set[str]:
        """The replicas that answered; of the ``newest`` answers alone, where that is above 0."""
        return {exchange.replica for exchange in self.exchanges[-newest:] if exchange.replica is not None}


class Crowd:
    """Asks one application; one answer in ``keep_every`` is kept whole, to be recomputed."""

    def __init__(self, address: str, sessions: Sessions, keep_every: int = 20) -> None:
        self._address = address
        self._sessions = sessions
        self._keep_every = keep_every
        self._numbers = count()
        self._drawing = threading.Lock()

    @contextmanager
    def asking(self, num_clients: int, pause_s: float = 0.0) -> Iterator[Met]:
        """So many clients ask while the block runs; each waits ``pause_s`` between an answer and its next question."""
        met, leaving = Met(), threading.Event()
        clients = [
            threading.Thread(target=self._ask, args=(met, leaving, pause_s), name=f"client-{number}", daemon=True)
            for number in range(num_clients)
        ]
        for client in clients:
            client.start()
        try:
            yield met
        finally:
            leaving.set()
            for client in clients:
                client.join()

    def _ask(self, met: Met, leaving: threading.Event, pause_s: float) -> None:
        """Runs in each client's thread."""
        connection = Connection(self._address)
        while not leaving.wait(pause_s):
            with self._drawing:
                number = next(self._numbers)
                items = self._sessions(number)
            request = json.dumps({"items": items, "k": 20}).encode()
            exchange, answer = exchange_over(connection, request)
            met.exchanges.append(exchange)
            if answer and number % self._keep_every == 0:
                met.answers.append((request, answer))
        connection.close()
