"""``headrace clean``: what is shown, what is marked as in use, and that nothing is removed."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace import cli
from headrace.onboard.leftovers import Leftover, leftovers

DEAD = 999_999_999


def _process(proc: Path, number: int, *words: str) -> None:
    (proc / str(number)).mkdir(parents=True)
    (proc / str(number) / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")


def _run(runs: Path, name: str, holder: int) -> Path:
    folder = runs / name
    (folder / "store").mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    (folder / "store" / "trainer.lock").write_text(f"{holder}\n")
    (folder / "store" / "part").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def found(tmp_path: Path) -> list[Leftover]:
    proc, ray, runs = tmp_path / "proc", tmp_path / "ray", tmp_path / "runs"
    _process(proc, 41, "python", "-m", "headrace.cli", "run", "mine.toml")
    _process(proc, 42, "python", "-m", "http.server")
    _process(proc, os.getpid(), "bin/headrace", "status")  # who asks is no leftover
    (proc / "self").mkdir()
    for name in ("session_2026-11-24_10-00-00_000001_41", f"session_2026-11-23_10-00-00_000001_{DEAD}"):
        (ray / name).mkdir(parents=True)
        (ray / name / "log").write_bytes(b"y" * 500)
    (ray / "session_latest").symlink_to(ray / name)
    _run(runs, "going", 41)
    _run(runs, "done", DEAD)
    (runs / "notes").mkdir()
    return list(leftovers(runs, ray, proc))


def test_processes_runs_and_sessions_are_told_apart(found: list[Leftover]) -> None:
    told = [(left.kind, Path(left.what.split(":")[0]).name, left.in_use) for left in found]
    assert told == [
        ("process", "41", True),
        ("run", "done", False),
        ("run", "going", True),
        ("Ray session", f"session_2026-11-23_10-00-00_000001_{DEAD}", False),
        ("Ray session", "session_2026-11-24_10-00-00_000001_41", True),
    ]


def test_what_is_in_use_has_no_remedy_and_the_rest_its_size(found: list[Leftover]) -> None:
    for left in found:
        if left.kind != "process":
            assert bool(left.remedy) is not left.in_use
            assert left.size_bytes is not None
            assert left.size_bytes >= 500


def test_the_command_shows_and_removes_nothing(tmp_path: Path) -> None:
    folder = _run(tmp_path, "done", DEAD)
    shown = CliRunner().invoke(cli.app, ["clean", "--runs", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert f"rm -r {folder}" in shown.output
    assert (folder / "store" / "part").exists()
