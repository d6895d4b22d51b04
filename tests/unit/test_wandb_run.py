"""Runs mirrored to W&B, offline, and read back from what it wrote."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.commit.summary import Summary
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.config.run import TrackingConfig
from headrace.tracking.wandb_run import WandbRun, mode_of, row_of

COUNTS = {"publish": 1, "hold": 0, "reject": 0}


def _commit(cut, version=None, verdict="publish", live=0.5):
    scores = {"recall@20": live, "mrr@20": live / 2}
    return Summary(
        cut=cut,
        epoch=1,
        version=version,
        verdict=verdict,
        reason="",
        state_digest=f"digest-{cut}",
        events=200,
        fates={},
        counters={},
        queries=20,
        scores={"live": scores, "learner": scores, "frozen": None},
        expert_scores={"neural": {"recall@20": 0.25, "mrr@20": None}},
        faults={},
        weights={"neural": 0.75, "uniform": 0.25},
        wall_ms=0,
        seconds={"feed": 5.0, "train": 0.5, "score": 0.25},
    )


def _recipe(folder: Path, *words: str) -> Recipe:
    return load_recipe([], [f"run.dir={folder}", "run.name=a shop/1", "tracking.mode=offline", *words])


def _read(folder: Path) -> list[dict]:
    """Every record that W&B wrote into this folder of a run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _of(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder after two starts: cuts 0 to 2, a kill after cut 2 was taken back, cuts 2 and 3."""
    folder = tmp_path_factory.mktemp("run")
    past, answer = {"item_id": 17, "name": None}, {"item_id": 42, "name": "tea", "score": 0.5}
    samples = [{"past": [past], "num_before": 0, "answers": [answer]}]
    (folder / "report.json").write_text(json.dumps({"samples": samples}))
    for starts, cuts in enumerate([(0, 1, 2), (2, 3)]):
        tracker = WandbRun()
        tracker.start(_recipe(folder), folder)
        for cut in cuts:
            tracker.increment(_commit(cut, cut + 1 if cut != 1 else None, "hold" if cut == 1 else "publish"), 1.5)
        tracker.close(folder / "report.json", failed=starts == 0)
        assert tracker.folder is not None
        (folder / f"start-{starts}").symlink_to(tracker.folder)
        (folder / "report.html").write_text("<p>from the second start on</p>")
    return folder


@pytest.fixture(scope="module")
def starts(run_dir: Path) -> list[list[dict]]:
    """Every record of both."""
    return [_read(run_dir / f"start-{start}") for start in range(2)]


def test_two_starts_are_two_runs_in_one_group_within_the_runs_folder(run_dir: Path, starts: list[list[dict]]) -> None:
    runs = [_of(records, "run")[0] for records in starts]
    assert len({run["run_id"] for run in runs}) == 2
    assert {run["run_group"] for run in runs} == {(run_dir / "wandb_group.txt").read_text().strip()}
    assert {(run["project"], run["display_name"]) for run in runs} == {("headrace", "a shop/1")}
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert folders == sorted((run_dir / f"start-{start}").resolve() for start in range(2))
    assert runs[0]["config"]["update"]["feed"]["max_events"] == 50000


def test_metrics_stand_against_increments_and_begin_where_the_start_does(
    run_dir: Path, starts: list[list[dict]]
) -> None:
    for records, cuts in zip(starts, [[0, 1, 2], [2, 3]], strict=True):
        assert {"glob_name": "*", "step_metric": "increment"}.items() <= _of(records, "metric")[-1].items()
        rows = [history["item"] for history in _of(records, "history")]
        scored = [row for row in rows if "recall_at_20/live" in row]
        assert [row["increment"] for row in scored] == cuts
        assert [row["state_digest"] for row in scored] == [f"digest-{cut}" for cut in cuts]
        assert {row["recall_at_20/live"] for row in scored} == {0.5}
        assert scored[-1]["version"] == cuts[-1] + 1
        assert scored[-1]["bundle"] == f"{run_dir}/store/bundles/{cuts[-1] + 1:010d}.json"
        assert scored[-1]["verdicts/hold"] == (1 if 1 in cuts else 0)
        assert "version" not in next((row for row in scored if row["increment"] == 1), {})
        assert rows[-1]["increment"] == cuts[-1]
        assert (rows[-1]["samples._type"], rows[-1]["samples.nrows"]) == ("table-file", 1)
        assert _of(records, "exit")[0].get("exit_code", 0) == (1 if cuts[0] == 0 else 0)


def test_the_report_and_its_page_are_an_artifact(run_dir: Path, starts: list[list[dict]]) -> None:
    for records, names in zip(starts, [{"report.json"}, {"report.json", "report.html"}], strict=True):
        (report,) = [artifact for artifact in _of(records, "artifact") if artifact["type"] == "report"]
        contents = report["manifest"]["contents"]
        assert {content["path"] for content in contents} == names
        assert all(content["local_path"].startswith(str(run_dir / "wandb")) for content in contents)


def test_a_row_has_what_is_known_under_the_reports_names() -> None:
    assert row_of(_commit(3, 7), None, COUNTS, "/store") == {
        "increment": 3,
        "events": 200,
        "queries": 20,
        "train_s": 0.5,
        "increment_s": 0.75,
        "state_digest": "digest-3",
        "version": 7,
        "bundle": "/store/bundles/0000000007.json",
        "recall_at_20/live": 0.5,
        "recall_at_20/learner": 0.5,
        "recall_at_20/experts/neural": 0.25,
        "mrr_at_20/live": 0.25,
        "mrr_at_20/learner": 0.25,
        "blend_weights/neural": 0.75,
        "blend_weights/uniform": 0.25,
        "verdicts/publish": 1,
        "verdicts/hold": 0,
        "verdicts/reject": 0,
    }
    assert row_of(_commit(3), 2.5, COUNTS, "/store")["freshness_s"] == 2.5


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "online"),
        ("online", {}, "offline"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
    ],
)
def test_only_who_is_logged_in_is_online(
    mode: str, environment: dict[str, str], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {"NETRC": str(tmp_path / "netrc"), **environment}
    assert mode_of(TrackingConfig(mode=mode), environment) == expected
    assert ("wandb login" in caplog.text) == (mode == "online" and expected == "offline")
    assert mode_of(TrackingConfig(enabled=False, mode=mode), environment) == "disabled"


def test_a_login_in_netrc_counts_for_its_own_host(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / "netrc").chmod(0o600)
    environment = {"NETRC": str(tmp_path / "netrc")}
    assert mode_of(TrackingConfig(), environment) == "online"
    assert mode_of(TrackingConfig(), {**environment, "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"


def test_where_wandb_cannot_be_reached_the_run_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    tried = []
    init = wandb.init

    def unreachable(**words):
        tried.append(words["mode"])
        if words["mode"] == "online":
            raise TimeoutError("no route")
        return init(**words)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_API_KEY", "no such key")
    tracker = WandbRun()
    tracker.start(_recipe(tmp_path, "tracking.mode=online"), tmp_path)
    tracker.close(tmp_path / "report.json", failed=False)
    assert tried == ["online", "offline"]
    assert tracker.folder is not None
    assert tracker.folder.name.startswith("offline-run-")
    assert "no route" in caplog.text


def test_a_broken_wandb_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    before = dict(os.environ)
    tracker = WandbRun()
    tracker.start(_recipe(tmp_path), tmp_path)
    for cut in range(3):
        tracker.increment(_commit(cut), None)
    tracker.close(tmp_path / "report.json", failed=False)
    assert caplog.text.count("W&B tracking ends here") == 1
    assert tracker.folder is None
    assert dict(os.environ) == before


def test_a_folder_that_cannot_be_written_and_a_report_that_cannot_be_read_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.json").write_text("no JSON")
    for folder in (tmp_path / "none" / "run", tmp_path):  # the first is not there
        tracker = WandbRun()
        tracker.start(_recipe(folder), folder)
        tracker.increment(_commit(0, 1), None)
        tracker.close(folder / "report.json", failed=False)
    assert [record.levelno for record in caplog.records if "W&B" in record.message] == [logging.WARNING] * 2
    assert "JSONDecodeError" in caplog.text


def test_disabled_means_that_nothing_is_made(tmp_path: Path) -> None:
    tracker = WandbRun()
    tracker.start(_recipe(tmp_path, "tracking.mode=disabled"), tmp_path)
    tracker.increment(_commit(0), None)
    tracker.close(tmp_path / "report.json", failed=False)
    assert list(tmp_path.iterdir()) == []
