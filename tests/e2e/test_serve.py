"""``headrace serve`` and ``headrace ask`` against a store whose trainer is gone, as their user would type them."""

import subprocess
import sys
from pathlib import Path

from serving_kit import publish_version

from headrace.store.fence import take_epoch
from headrace.store.store import Store

COMMAND = [sys.executable, "-m", "headrace.cli"]


def test_a_store_is_served_without_a_trainer_until_a_signal(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    publish_version(store, 7, list(range(100, 160)), take_epoch(store))
    with subprocess.Popen(
        [*COMMAND, "serve", "--store", store.uri, "serve.port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as service:
        assert service.stdout is not None
        first, second = service.stdout.readline(), service.stdout.readline()
        assert first.startswith(f"version 7 of {store.uri} answers at http://"), first
        address = second.split("--address ")[1].split()[0]
        asked = subprocess.run(
            [*COMMAND, "ask", "101", "102", "--address", address], capture_output=True, text=True, check=True
        )
        assert len(asked.stdout.splitlines()) == 12
        assert "version 7, replica" in asked.stdout
        service.terminate()
        rest, code = service.stdout.read(), service.wait()
    assert rest == "stopping: requests under way are answered first\n"
    assert code == 0
