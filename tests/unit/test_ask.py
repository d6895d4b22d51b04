"""``headrace ask`` and ``headrace status``: against a real socket and a real store, without Ray."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from loop_kit import Stream, events, recipe
from serving_kit import publish_version
from typer.testing import CliRunner

from headrace import cli
from headrace.bundles.bundle import Loaded, load_bundle
from headrace.bundles.publish import read_bundle
from headrace.clock import wall_ms
from headrace.errors import ConfigError
from headrace.serving.ask import UnansweredError, ask, in_lines
from headrace.serving.request import RequestError, parse
from headrace.serving.service import answer
from headrace.store.fence import StoreLock, take_epoch
from headrace.store.store import Store


def _handler(loaded: Loaded) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                status, content = 200, answer(loaded, [parse(body)], wall_ms(), "here")[0].to_json()
            except RequestError as error:
                status, content = error.status, json.dumps({"error": str(error)}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _service(folder: Path, ids: list[int] | list[str]) -> Iterator[str]:
    store = Store(str(folder))
    publish_version(store, 1, ids, take_epoch(store))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(load_bundle(store, read_bundle(store, 1), with_past=False)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def numbered(tmp_path: Path) -> Iterator[str]:
    yield from _service(tmp_path, list(range(100, 140)))


@pytest.fixture
def named(tmp_path: Path) -> Iterator[str]:
    yield from _service(tmp_path, [str(number) for number in range(100, 140)])


def test_ids_of_digits_are_found_whatever_the_log_holds(numbered: str, named: str) -> None:
    for address, kind in ((numbered, int), (named, str)):
        found = ask(address, ["101", "102"], k=3)
        assert found["unknown"] == []
        assert [type(item) for item in found["items"]] == [kind] * 3


def test_lines_name_items_shares_and_the_version(numbered: str) -> None:
    lines = list(in_lines(ask(numbered, ["101", "nonsense"], k=2, explain=True)))
    assert lines[0].split() == ["item", "score", "neural", "popular", "uniform"]
    assert lines[-2] == "version 1, replica here"
    assert lines[-1] == "not known to this version: nonsense"


def test_a_service_that_refuses_is_quoted_and_one_that_is_not_there_is_named(numbered: str) -> None:
    with pytest.raises(UnansweredError, match='says 400: "k" is 0'):
        ask(numbered, ["101"], k=0)
    with pytest.raises(ConfigError, match="nobody answers at"):
        ask("http://127.0.0.1:9", ["101"])


def test_a_full_queue_is_told_in_the_services_words() -> None:
    class Full(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(503)
            self.send_header("Content-Length", "17")
            self.end_headers()
            self.wfile.write(b"Request dropped: ")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UnansweredError, match="says 503: Request dropped"):
            ask(f"http://127.0.0.1:{server.server_port}", ["101"])
        server.shutdown()


def test_the_command_needs_something_to_go_by(numbered: str) -> None:
    run = CliRunner().invoke(cli.app, ["ask", "--address", numbered])
    assert run.exit_code == 2
    assert "nothing to go by" in run.output
    run = CliRunner().invoke(cli.app, ["ask", "101", "--address", numbered, "-k", "2"])
    assert run.exit_code == 0
    assert len(run.output.splitlines()) == 4


def test_status_says_how_a_store_stands(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe())
    for seed in range(3):
        stream.land(events(300, seed=seed))
    stream.advance(until=1)
    with StoreLock(stream.store):
        shown = CliRunner().invoke(cli.app, ["status", "--store", stream.store.uri]).output
    assert "holds the store" in shown
    assert "none holds" not in shown
    row = dict(line.split("  ", 1) for line in shown.splitlines())
    assert row["served version"].strip() == "2 (cut 1)"
    assert row["newest commit"].strip().startswith("cut 1 (publish), ")
    assert "none holds the store" in CliRunner().invoke(cli.app, ["status", "--store", stream.store.uri]).output


def test_status_of_an_empty_store_is_a_mistake_in_words(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli.app, ["status", "--store", str(tmp_path)])
    assert shown.exit_code == 2
    assert "no commits" in shown.output
