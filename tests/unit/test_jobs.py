import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.store.fence import take_epoch
from headrace.store.store import Store

JOBS = Path(__file__).resolve().parents[2] / "jobs"
ENTRY_POINTS = sorted(JOBS.glob("*.py"))


def _load(name):
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", JOBS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def submit(tmp_path):
    def call(name, *words):
        return subprocess.run(
            [sys.executable, str(JOBS / f"{name}.py"), *map(str, words)], cwd=tmp_path, capture_output=True, text=True
        )

    return call


@pytest.fixture
def backfill(monkeypatch):
    """The entry point with a command line that notes its words."""
    module = _load("backfill")
    seen = []
    monkeypatch.setattr(module, "app", seen.append)
    module.seen = seen
    return module


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=lambda path: path.stem)
def test_an_entry_point_is_short_and_says_how_it_is_submitted(path):
    assert len(path.read_text().splitlines()) <= 30
    assert "ray job submit" in _load(path.stem).__doc__


def test_importing_them_all_starts_nothing(tmp_path):
    program = (
        "import runpy, sys\n"
        f"for path in {[str(path) for path in ENTRY_POINTS]!r}:\n    runpy.run_path(path, run_name='looked_at')\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("evaluate", [], "--data"),
        ("evaluate", ["--data", "nowhere", "--colour"], "--colour"),
        ("train", ["nowhere.toml"], "nowhere.toml"),
        ("backfill", ["nowhere.toml"], "nowhere.toml"),
        ("backfill", ["run.dri=x"], "run.dir"),
        ("backfill", ["run.dir=."], "begins afresh"),
    ],
)
def test_misuse_is_said_in_words(submit, name, words, said):
    done = submit(name, *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_backfill_never_takes_a_store_from_a_run(submit, tmp_path):
    take_epoch(Store(str(tmp_path / "store")))
    done = submit("backfill", f"run.dir={tmp_path / 'new'}", f"store.uri={tmp_path / 'store'}")
    assert done.returncode == 2, done.stderr
    assert "a run has used" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_backfill_is_a_run_without_replicas_whatever_the_words_say(backfill, tmp_path):
    words = [f"run.dir={tmp_path / 'new'}", "feed.path=/landing", "serve.enabled=true"]
    backfill.backfill(words)
    assert backfill.seen == [["run", *words, "serve.enabled=false", "run.ray_address=auto"]]
    assert not (tmp_path / "new").exists()
