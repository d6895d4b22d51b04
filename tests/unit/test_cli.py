import errno
import json
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from headrace import __version__, cli
from headrace.commit.chain import Chain
from headrace.commit.manifest import Envelope, Manifest
from headrace.errors import ConfigError, DataError, FencedError, StoreBusyError, StoreError, TrainingError
from headrace.store.fence import take_epoch
from headrace.store.store import Store


@pytest.fixture
def headrace():
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it is given; ``driver.outcome`` is what it returns or raises."""
    fake = types.ModuleType("headrace.train.driver")
    fake.outcome = 0
    fake.RAY_ENVIRONMENT = {}

    def run(recipe, observer, serving, tracker):
        fake.recipe, fake.observer, fake.serving, fake.tracker = recipe, observer, serving, tracker
        if isinstance(fake.outcome, Exception):
            raise fake.outcome
        return fake.outcome

    fake.run = run
    import headrace.train

    monkeypatch.setitem(sys.modules, "headrace.train.driver", fake)
    monkeypatch.setattr(headrace.train, "driver", fake, raising=False)
    monkeypatch.setattr(cli, "_serving", lambda recipe: "server" if recipe.serve.enabled else None)
    return fake


@pytest.fixture
def bench_module(monkeypatch):
    """A benchmark that returns its own options."""

    def put(name):
        fake = types.ModuleType(f"headrace.bench.{name}")
        fake.run = lambda **options: {"seen": {key: str(value) for key, value in options.items()}}
        monkeypatch.setitem(sys.modules, f"headrace.bench.{name}", fake)

    return put


def _put_commit(store, cut, version, verdict="publish", reason=""):
    envelope = Envelope(epoch=1, token="t", wall_ms=0, monotonic_s=0.0, seconds={})
    facts = {"events": 200 + cut, "num_items": 50}
    manifest = Manifest(cut, None, verdict, reason, version, {}, facts, envelope)
    Chain(store).commit(manifest, take_epoch(store))
    return manifest


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["bench", "--help"], ["--version"]])
def test_help_is_light(words):
    program = (
        "import sys\n"
        "from headrace.cli import main\n"
        f"sys.argv = ['headrace', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'wandb', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_recipe_is_read_without_torch_or_ray():
    program = (
        "import sys\n"
        "from headrace.config.load import load_recipe\n"
        "load_recipe()\n"
        "assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(headrace):
    assert headrace("--version").stdout == f"headrace {__version__}\n"


def test_run_hands_over_recipe_observer_and_server(headrace, driver, tmp_path):
    recipe = tmp_path / "my.toml"
    recipe.write_text("seed = 5\n[train]\nepochs = 4\n")
    result = headrace("run", recipe, "train.batch=8", f"run.dir={tmp_path}")
    assert result.exit_code == 0
    assert (driver.recipe.seed, driver.recipe.train.epochs, driver.recipe.train.batch) == (5, 4, 8)
    assert driver.serving == "server"
    assert result.stdout.startswith(f"headrace {__version__}: run headrace in {tmp_path}\n")
    assert "libraries loaded" in result.stdout


def test_a_file_with_an_equals_sign_in_its_name_is_a_recipe(headrace, driver, tmp_path):
    recipe = tmp_path / "a=b.toml"
    recipe.write_text("seed = 5\n")
    assert headrace("run", recipe).exit_code == 0
    assert driver.recipe.seed == 5


def test_an_override_may_be_longer_than_a_file_name(headrace, driver):
    experts = ",".join(f'{{kind="popular",name="popular_{n}",half_life_s={n}}}' for n in range(1, 20))
    assert headrace("run", f"experts=[{experts}]").exit_code == 0
    assert len(driver.recipe.experts) == 19


def test_no_server_where_the_recipe_wants_none(headrace, driver):
    assert headrace("run", "serve.enabled=false").exit_code == 0
    assert driver.serving is None
    assert driver.tracker is not None


def test_no_tracker_where_the_recipe_wants_none(headrace, driver):
    assert headrace("run", "tracking.enabled=false").exit_code == 0
    assert driver.tracker is None
    assert driver.serving == "server"


def test_the_drivers_exit_status_is_the_commands(headrace, driver):
    driver.outcome = 3
    assert headrace("run").exit_code == 3


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("feed.path [red] is missing"), 2),
        (DataError("no such column"), 2),
        (StoreBusyError("another trainer"), 2),
        (StoreError("damaged"), 1),
        (FencedError("a newer run"), 1),
        (TrainingError("workers keep failing"), 1),
    ],
)
def test_errors_are_said_in_words(headrace, driver, error, status):
    driver.outcome = error
    result = headrace("run")
    assert result.exit_code == status
    assert str(error) in result.stderr
    assert "Traceback" not in result.output


def test_a_full_disk_is_said_in_words(headrace, driver):
    driver.outcome = OSError(errno.ENOSPC, "No space left on device")
    result = headrace("run")
    assert (result.exit_code, "no space is left" in result.stderr) == (1, True)
    driver.outcome = OSError(errno.EIO, "Input/output error")
    assert isinstance(headrace("run").exception, OSError)


def test_our_own_mistakes_keep_their_traceback(headrace, driver):
    driver.outcome = AssertionError("ours")
    assert isinstance(headrace("run").exception, AssertionError)


def test_a_misspelt_key_stops_before_anything_is_loaded(headrace, driver):
    result = headrace("run", "train.epoch=3")
    assert result.exit_code == 2
    assert "the nearest is train.epochs" in result.stderr
    assert not hasattr(driver, "recipe")


def test_versions_lists_the_commits(headrace, tmp_path):
    store = Store(str(tmp_path / "store"))
    first = _put_commit(store, 0, 1)
    _put_commit(store, 1, None, "hold", "churn 0.40 is above 0.30")
    for words in (["--store", tmp_path / "store"], [f"run.dir={tmp_path}"]):
        result = headrace("versions", *words)
        assert result.exit_code == 0
        lines = [line.split() for line in result.stdout.splitlines()]
        assert lines[0] == ["cut", "version", "pin", "verdict", "events", "items", "digest", "reason"]
        assert lines[1] == ["0", "1", "-", "publish", "200", "50", first.state_digest[:12]]
        assert lines[2][:6] == ["1", "-", "-", "hold", "201", "50"]
        assert lines[2][7:] == ["churn", "0.40", "is", "above", "0.30"]


def test_a_version_is_pinned_and_unpinned(headrace, tmp_path):
    store = Store(str(tmp_path))
    for cut, version in ((0, 1), (3, 2)):
        _put_commit(store, cut, version)
    assert headrace("unpin", 2, "--store", tmp_path).exit_code == 2
    assert headrace("pin", 2, "--store", tmp_path).stdout == "version 2 (cut 3) stays until it is unpinned\n"
    lines = headrace("versions", "--store", tmp_path).stdout.splitlines()
    assert [line.split()[2] for line in lines[1:3]] == ["-", "pinned"]
    assert lines[3].startswith("2 more have left the store")
    assert headrace("unpin", 2, "--store", tmp_path).exit_code == 0
    refused = headrace("pin", 7, "--store", tmp_path)
    assert (refused.exit_code, "version 7 is not in" in refused.stderr) == (2, True)


def test_versions_of_nothing(headrace, tmp_path):
    result = headrace("versions", "--store", tmp_path)
    assert result.exit_code == 2
    assert "no commits in" in result.stderr


def test_a_damaged_commit_is_said_in_words(headrace, tmp_path):
    store = Store(str(tmp_path))
    _put_commit(store, 0, 1)
    (name,) = store.names("commits")
    store.put(f"commits/{name}", store.get(f"commits/{name}").replace(b'"events": 200', b'"events": 201'))
    result = headrace("versions", "--store", tmp_path)
    assert result.exit_code == 1
    assert "does not match its own digest" in result.stderr


def test_a_benchmark_is_given_its_options_and_its_result_is_written(headrace, bench_module, tmp_path):
    bench_module("continual")
    words = ["my.toml", "train.epochs=4", "--data", tmp_path, "--cycles", "1-3", "--seeds", "2"]
    result = headrace("bench", "continual", *words, "--out", tmp_path / "results")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "results" / "continual.json").read_text())
    assert written["result"]["seen"] == {
        "data": str(tmp_path),
        "methods": "online",
        "cycles": "1-3",
        "seeds": "2",
        "sample": "1000",
        "tuned": "4",
        "device": "cpu",
        "folder": str(tmp_path / "results"),
        "recipe": "my.toml",
        "overrides": "['train.epochs=4']",
    }
    assert written["benchmark"] == "continual"
    assert written["machine"]["cores"] >= 1
    assert set(written["commit"]) == {"sha", "changed"}


def test_a_json_file_is_taken_by_its_name(headrace, bench_module, tmp_path):
    bench_module("freshness")
    assert headrace("bench", "freshness", "--seconds", "5", "--out", tmp_path / "a" / "b.json").exit_code == 0
    assert json.loads((tmp_path / "a" / "b.json").read_text())["options"]["seconds"] == 5


def test_a_benchmark_takes_one_recipe(headrace, bench_module):
    bench_module("freshness")
    result = headrace("bench", "freshness", "one.toml", "two.toml")
    assert result.exit_code == 2
    assert "one.toml, two.toml" in result.stderr
