"""What is found before Ray starts, on hosts that are not as they should be."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.config.load import load_recipe
from headrace.onboard.preflight import Host, findings, look

GOOD = Host("Linux", (3, 12), 8 * 2**30, 4 * 2**30, 50 * 2**30, {})


def words(host: Host, *overrides: str) -> list[str]:
    return [finding.words for finding in findings(load_recipe((), overrides), host)]


def test_a_good_host_is_not_talked_about() -> None:
    assert words(GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"free_memory": 2**30}, "1.0 GiB of memory are free, and some 3.0 will be used"),
        ({"free_shared": 64 * 2**20}, "64 MiB of shared memory .* --shm-size=2g"),
        ({"free_disk": 2**29}, "0.5 GiB are free where runs/"),
        ({"environment": {"RAY_ADDRESS": "10.0.0.1:6379"}}, "RAY_ADDRESS is 10.0.0.1:6379 and is not joined"),
    ],
)
def test_what_may_go_wrong_is_said_and_does_not_stop(change: dict[str, object], said: str) -> None:
    (found,) = findings(load_recipe(), replace(GOOD, **change))  # type: ignore[arg-type]
    assert not found.stops
    assert re.search(said, found.words), found.words


def test_what_cannot_work_stops() -> None:
    (found,) = findings(load_recipe(), replace(GOOD, system="Darwin"))
    assert found.stops
    assert "Linux" in found.words


def test_more_processes_need_more() -> None:
    host = replace(GOOD, free_memory=4 * 2**30)
    assert words(host) == []
    assert "some 6.6 will be used" in words(host, "run.num_workers=8")[0]


def test_a_cluster_has_memory_of_its_own() -> None:
    tight = replace(GOOD, free_memory=2**28, free_shared=0, environment={"RAY_ADDRESS": "10.0.0.1:6379"})
    assert words(tight, "run.ray_address=auto") == []


def test_this_machine_can_be_looked_at(tmp_path: Path) -> None:
    host = look(tmp_path / "not" / "there" / "yet")
    assert host.free_disk > 0
    assert host.system == "Linux"
