"""What the driver's process does without Ray: it refuses early and in words, and keeps count of what has landed."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loop_kit import Stream, events, recipe

from headrace.commit.summary import Summary
from headrace.config.feed import ColumnsConfig, ReplayConfig
from headrace.config.load import dump_recipe
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError, DataError
from headrace.feed.entries import encode
from headrace.feed.landing import Landing
from headrace.feed.ledger import LedgerReader
from headrace.feed.replayer import Replayer
from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.tracking.console import Observer
from headrace.train import driver
from headrace.train.feeder import Feeder, LandingLog
from headrace.train.follower import Follower


def test_a_shard_counts_whether_its_landing_or_its_cut_is_told_first(tmp_path: Path) -> None:
    log = LandingLog(tmp_path / "landings.jsonl")
    log.cut("a", 3, 10)
    assert log.records() == []
    log.landed("a", 1.5, 10)
    log.landed("b", 2.5, 20)
    log.landed("a", 9.0, 10)
    assert [(r.shard, r.cut, r.rows, r.landed_monotonic_s) for r in log.records()] == [
        ("a", 3, 10, 1.5),
        ("b", None, 20, 2.5),
    ]
    assert [r.shard for r in log.of_cut(3)] == ["a"]


def test_landings_survive_a_restart_and_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "landings.jsonl"
    LandingLog(path).landed("a", 1.5, 10)
    with path.open("a") as file:
        file.write('["b", 2.')
    assert [r.shard for r in LandingLog(path).records()] == ["a"]


def test_a_run_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "landing").mkdir()
    made = recipe(f"run.dir={folder}", f"feed.path={folder / 'landing'}")
    (folder / "recipe.json").write_text(dump_recipe(driver._absolute(made, folder)))
    other = recipe(f"run.dir={folder}", f"feed.path={folder / 'landing'}", "model.width=8", "seed=4")
    with pytest.raises(ConfigError, match=r"other settings \(seed, model\.width\)"):
        driver.run(other, Observer(), None)
    assert json.loads((folder / "recipe.json").read_text())["model"]["width"] == 16


class Mirror:
    """A tracker that only takes notes."""

    folder = Path("/mirror")

    def __init__(self) -> None:
        self.cuts: list[int] = []

    def start(self, recipe: Recipe, run_dir: Path) -> None: ...

    def increment(self, commit: Summary, freshness_s: float | None) -> None:
        self.cuts.append(commit.cut)

    def close(self, report: Path, failed: bool) -> None: ...


def test_a_tracker_is_told_what_this_start_commits_and_the_report_names_its_folder(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe())
    for shard in range(4):
        stream.land(events(60, seed=shard, start_ms=shard * 3_600_000))
    stream.advance(until=1)
    mirror, report = Mirror(), tmp_path / "report.json"
    log = LandingLog(tmp_path / "landings.jsonl")
    follower = Follower(stream.store, report, Observer(io.StringIO()), log, None, lambda: 0, mirror)
    stream.advance()
    follower.follow_epoch(take_epoch(stream.store).number)
    follower.start()
    follower.close()
    assert mirror.cuts == [2, 3]
    assert json.loads(report.read_text())["wandb_dir"] == "/mirror"


def test_how_a_run_is_tracked_may_change_between_two_starts(tmp_path: Path) -> None:
    driver._keep_recipe(tmp_path / "recipe.json", recipe("tracking.enabled=false"))
    driver._keep_recipe(tmp_path / "recipe.json", recipe("tracking.project=another", "tracking.mode=offline"))
    assert json.loads((tmp_path / "recipe.json").read_text())["tracking"]["project"] == "another"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "feed.path is not set"),
        (["feed.replay.slice_s=300", "feed.path=/nowhere"], "is not a folder"),
        (["feed.path=/tmp", "run.num_workers=20"], "run.num_cpus=8 is too few"),
        (
            ["feed.path=/tmp", 'run.read_labels={role="data"}'],
            "no node with the labels {'role': 'data'}: join a cluster",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        driver.run(recipe(f"run.dir={tmp_path / 'run'}", *words), Observer(), None)
    assert not (tmp_path / "run").exists()


def test_a_file_without_the_column_is_named_on_the_terminal(tmp_path: Path) -> None:
    landing, store = Landing(str(tmp_path / "landing")), Store(str(tmp_path / "store"))
    landing.land("a.parquet", pa.table({"product": [1], "ts": [1], "session_id": [1], "user_id": [1], "event": ["v"]}))
    told: list[str] = []
    log = LandingLog(tmp_path / "landings.jsonl")
    feeder = Feeder(recipe(), store, take_epoch(store), landing, None, log, told.append)
    for _ in range(3):
        feeder._poll()
    assert len(told) == 1
    assert "a.parquet is set aside" in told[0]
    assert "item_id" in told[0]


def test_rows_put_back_are_said_and_have_no_second_freshness(tmp_path: Path) -> None:
    landing, store = Landing(str(tmp_path / "landing")), Store(str(tmp_path / "store"))
    bad = events(60, seed=1, start_ms=10**7)
    landing.land("a.parquet", events(60, seed=0))
    landing.land("b.parquet", bad.set_column(1, "ts", pa.array([-5, *bad["ts"].to_pylist()[1:]])))
    told: list[str] = []
    log = LandingLog(tmp_path / "landings.jsonl")
    feeder = Feeder(recipe(), store, take_epoch(store), landing, None, log, told.append)
    for _ in range(2):
        feeder._poll()
    assert told == [f"1 rows of {tmp_path}/landing/b.parquet are dropped: the time in ts lies before 1970"]
    feeder.newest_commit = 1
    reader = LedgerReader(store)
    store.put(f"releases/{reader.cut(1).record:010d}.json", encode(reader.cut(1), 0))
    feeder = Feeder(recipe(), store, take_epoch(store), landing, None, log, told.append)
    feeder.newest_commit = 1
    feeder._poll()
    assert told[1:] == [f"number {reader.cut(1).record} of the quarantine is released: 59 rows wait again"]
    again = LedgerReader(store).cut(2)
    assert (again.num_rows, again.released) == (59, 59)
    assert [(r.shard, r.cut, r.rows) for r in log.records()] == [("a.parquet", 0, 60), ("b.parquet", 1, 59)]


def test_a_log_file_that_cannot_be_read_ends_nothing_in_silence(tmp_path: Path) -> None:
    log, landing = tmp_path / "log", Landing(str(tmp_path / "landing"))
    log.mkdir()
    for number in range(3):
        pq.write_table(events(20, seed=number, start_ms=number * 3_600_000), log / f"{number}.parquet")
    good = (log / "1.parquet").read_bytes()
    (log / "1.parquet").write_bytes(good[:100])
    replayer = Replayer(ReplayConfig(slice_s="file", ahead=10), ColumnsConfig(), Landing(str(log)), landing)
    for _ in range(2):
        with pytest.raises((DataError, pa.ArrowInvalid)):
            replayer.step(0.0, 0)
        assert not replayer.exhausted
    (log / "1.parquet").write_bytes(good)
    replayer.step(0.0, 0)
    assert replayer.exhausted
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "landing").glob("*.parquet"))]
    assert rows == [20, 20, 20]
