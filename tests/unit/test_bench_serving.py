"""The crowd against a real socket, and what the benchmark of serving makes of what it met."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Thread

import pytest

from headrace.bench.crowd import Crowd, Met
from headrace.bench.serving import Phase, _row
from headrace.serving.client import Exchange

EVERY = 5
"""The service refuses every fifth question."""


@pytest.fixture
def service():
    """Address of one that names its replicas a and b in turn; and the numbers of the questions so far."""
    numbers = count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            number = next(numbers)
            content = json.dumps({"version": 7, "replica": "ab"[number % 2]}).encode()
            self.send_response(503 if number % EVERY == 0 else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def wait_for(condition):
    moment = Event()
    while not condition():
        moment.wait(0.005)


def test_a_crowd_asks_until_it_leaves_and_keeps_what_it_met(service):
    crowd = Crowd(service, lambda number: [number])
    with crowd.asking(4) as met:
        wait_for(lambda: len(met.exchanges) >= 60)
    total = len(met.exchanges)
    assert met.num_failed == total // EVERY
    assert met.replicas() == {"a", "b"}
    assert met.answers
    assert all(answer["version"] == 7 for _, answer in met.answers)
    with crowd.asking(1) as later:
        wait_for(lambda: later.exchanges)
    assert len(met.exchanges) == total, "who has left asks no more"


def test_the_newest_answers_tell_who_is_there_now():
    met = Met()
    met.exchanges += [Exchange(0, 1, 200, 1, "old")] * 10 + [Exchange(0, 1, 200, 1, "new")] * 5
    met.exchanges.append(Exchange(0, 1, None, None, None))
    assert met.replicas() == {"old", "new"}
    assert met.replicas(6) == {"new"}


class Suspicious:
    """Takes every answer of version 2 for mixed, and has lost version 3."""

    def is_mixed(self, request, response):
        return None if response["version"] == 3 else response["version"] == 2


def test_a_row_counts_what_a_phase_met():
    met = Met()
    met.exchanges += [Exchange(0.0, 0.01 * n, 200, 1 + n % 2, "ab"[n % 2]) for n in range(1, 100)]
    met.exchanges += [Exchange(0.0, 2.0, 503, None, None)]
    met.answers += [(b"", {"version": version}) for version in (1, 2, 2, 3)]
    row = _row(Phase("any", met, 9.0, None), Suspicious())
    assert (row["requests"], row["failed"], row["slow"]) == (100, 1, 1)
    assert (row["recomputed"], row["mixed"]) == (3, 2)
    assert (row["replicas"], row["versions"]) == (2, 2)
    assert row["p50_ms"] == pytest.approx(505.0)
    assert 990.0 < row["p99_ms"] < 2000.0
