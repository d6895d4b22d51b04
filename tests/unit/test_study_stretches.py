"""A log in event time: who is updated when, on which rows, and asked what."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from study_kit import WORDS, recipe_file

from headrace.bench import stream
from headrace.bench.study.results import Study
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.stretches import Stretches
from headrace.bench.study.variants import STREAM_REFERENCES, variant
from headrace.errors import ConfigError
from headrace.feed.landing import Landing, shard_name
from headrace.store.store import Store
from headrace.train.offline import Learner, replay

torch.set_num_threads(1)
CPU = torch.device("cpu")
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1000 * DAY_MS + 5 * HOUR_MS + 1_234_000
SLICES = "feed.replay={slice_s=14400,first_slice_s=86400}"
"""Of four hours, after a first day."""
CLOCKS = ("train_s", "cpu_s", "increment_s", "peak_mb")


class StoppedError(Exception):
    """Somebody killed the run."""


def clicks(day: int) -> pa.Table:
    """A session of four clicks every quarter of an hour, along a ring that moves on from day to day."""
    draw = np.random.default_rng(day)
    session = np.arange(4 * 96) // 4
    start = 10 * day + draw.integers(20, size=96)
    return pa.table(
        {
            "item_id": start[session] + np.arange(4 * 96) % 4,
            "ts": START_MS + day * DAY_MS + session * 900_000 + np.arange(4 * 96) % 4 * 1000,
            "session_id": session + 1000 * day,
            "user_id": session,
            "event": ["click"] * (4 * 96),
        }
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    landing = Landing(str(tmp_path_factory.mktemp("log")))
    for day in range(4):
        landing.land(shard_name(day), clicks(day))
    return Path(landing.uri)


class Bench:
    """One folder of a study over a small log."""

    def __init__(self, folder: Path, log: Path, *words: str) -> None:
        self.words = [*WORDS, SLICES, *words, f"feed.path={log}"]
        self.recipe = recipe_file(folder)
        self.study = Study(folder / "out")
        self.shelf = Shelf(self.variant("default").recipe, folder / "out" / "log")

    def variant(self, name: str):
        return variant(name, self.recipe, self.words, STREAM_REFERENCES)

    def run(self, name: str, tell=lambda row: None, shelf=None):
        chosen = self.variant(name)
        Stretches(chosen, shelf or self.shelf, self.study.cells(chosen), CPU, tell).run(shelf is None)
        return [{key: value for key, value in row.items() if key not in CLOCKS} for row in self.study.rows()[name]]


@pytest.fixture
def bench(tmp_path, log) -> Bench:
    return Bench(tmp_path, log)


@pytest.fixture
def trained(monkeypatch):
    """Rows of every increment, by the order in which they were trained."""
    rows = []
    train = Learner.train

    def watch(self, part, *given, **named):
        rows.append((part.cut.number, part.cut.num_rows))
        return train(self, part, *given, **named)

    monkeypatch.setattr(Learner, "train", watch)
    return rows


def test_slices_lie_in_stretches_of_a_day_counted_from_the_warm_ups_end(bench):
    # slices are multiples of four hours, and the warm-up ends within one, whose rest is the next day's first slice
    assert len(bench.shelf) == 1 + 3 * 6 + 1
    assert bench.shelf.stretches(86400).tolist() == [1] + [2] * 7 + [3] * 6 + [4] * 6
    daily = bench.shelf.grouped(86400)
    assert len(daily) == 4
    assert sum(daily.part(period).cut.num_rows for period in range(4)) == 4 * 384
    assert bench.shelf.since(7, None) == 0
    assert bench.shelf.since(7, 86400) == 0, "the warm-up reaches into the day before it"
    assert bench.shelf.since(14, 86400) == 8, "six slices a day"
    assert bench.shelf.since(14, 3600) == 13


def test_everybody_is_asked_the_same_queries(bench):
    names = ("online", "retrain_hourly_warm", "retrain_daily", "retrain_daily_warm", "frozen")
    rows = {name: bench.run(name) for name in names}
    for number in (2, 3, 4):
        asked = [bench.study.ranks(name, 1, number) for name in names]
        assert len(asked[0]) > 200
        for other in asked[1:]:
            np.testing.assert_array_equal(other.key_Q, asked[0].key_Q)
            np.testing.assert_array_equal(other.new_T, asked[0].new_T)
            np.testing.assert_array_equal(other.ts_Q, asked[0].ts_Q)
    assert rows["online"] == rows["retrain_hourly_warm"], "slices are longer than an hour, so that both do the same"
    assert rows["frozen"][2]["recall@20"] < rows["retrain_daily"][2]["recall@20"] < 1.0
    assert rows["online"][2]["new_item_recall@20"] > rows["retrain_daily_warm"][2]["new_item_recall@20"]


def test_retrainers_are_trained_when_and_on_what_they_say(bench, trained):
    bench.run("retrain_daily_warm")
    assert [number for number, _ in trained] == [0, 1, 2, 3]
    daily = [rows for _, rows in trained]
    trained.clear()
    bench.run("retrain_daily")
    assert trained == [(0, sum(daily[:days])) for days in (1, 2, 3)]


def test_a_cold_retrainer_looks_back_as_far_as_items_live(tmp_path, log, trained):
    bench = Bench(tmp_path, log, "catalogue.alive_s=86400")
    bench.run("retrain_daily")
    daily = [bench.shelf.grouped(86400).part(day).cut.num_rows for day in range(4)]
    assert trained[0] == (0, daily[0])
    assert all(rows < sum(daily[:days]) for days, (_, rows) in zip((2, 3), trained[1:], strict=True))


@pytest.mark.parametrize("name", ["online", "retrain_daily"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(bench, tmp_path, log, name, monkeypatch):
    (tmp_path / "other").mkdir()
    expected = Bench(tmp_path / "other", log).run(name)
    train, left = Learner.train, [9 if name == "online" else 2]

    def stop(self, part, *given, **named):
        left[0] -= 1
        if not left[0]:
            raise StoppedError
        return train(self, part, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train", stop)
        with pytest.raises(StoppedError):
            bench.run(name)
    told = []
    assert bench.run(name, told.append) == expected
    assert [row["cycle"] for row in told] == [3, 4]


def test_days_may_follow_another_time(bench):
    first = bench.run("online", shelf=bench.shelf.upto(6))
    assert [row["cycle"] for row in first] == [2]
    assert bench.run("online")[:1] == first


def test_the_command_follows_up_to_the_end_of_a_day(tmp_path, log):
    options = {"data": log, "folder": tmp_path / "out", "recipe": recipe_file(tmp_path), "overrides": [*WORDS, SLICES]}
    made = stream.run(methods="online,retrain_daily_warm", increments=8, tuned=2, **options)
    assert set(made["means"]["online"]) == {"days 2", "days 3", "days 2-3"}
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["cycle"] for row in rows["online"]] == [2, 3]
    assert {"neural", "popular", "own_items"} == set(rows["online"][0]["experts"])
    assert rows["online"][0]["increment_s"]["max"] > 0
    over = made["blend_over_best_counter"]["online"]
    assert over["counter"] == "popular"
    assert over["recall@20"]["low"] <= over["recall@20"]["mean"] <= over["recall@20"]["high"]
    both = made["means"]["online"]["days 2-3"]["neural"]["recall@20"]
    asked = [row["queries"] for row in rows["online"]]
    by_hand = np.average([row["recall@20"] for row in rows["online"]], weights=asked)
    assert both == pytest.approx(by_hand), "every query weighs the same"
    assert "By day: the neural expert alone" in (tmp_path / "out" / "table.md").read_text()


def test_a_folder_holds_one_kind_of_study_and_a_log_needs_slices(tmp_path, log):
    from headrace.bench import continual

    options = {"data": log, "folder": tmp_path / "out", "recipe": recipe_file(tmp_path)}
    stream.run(increments=1, overrides=[*WORDS, SLICES], **options)
    with pytest.raises(ConfigError, match="holds what bench stream did"):
        continual.run(cycles="1", overrides=[*WORDS, SLICES], **options)
    whole = {**options, "folder": tmp_path / "other"}
    with pytest.raises(ConfigError, match="more than the warm-up"):
        stream.run(overrides=[*WORDS, "feed.replay={slice_s=300,first_slice_s=864000}"], **whole)


def test_a_window_is_what_the_ledger_would_give_and_is_trained_at_its_cost(bench, tmp_path):
    name = 'online+feed.window={kind="pit",buckets=3,window_s=86400}'
    made = bench.variant(name).recipe
    kept = list(replay(made, CPU, 8))
    shelf = bench.shelf.windowed(made.feed.window)
    windows = [shelf.part(number).cut.window for number in range(9)]
    first_cuts = [window.first for window in windows]
    assert first_cuts == [commit.facts["window"]["first_cut"] for commit in kept]
    assert first_cuts[-1] > 0
    learner, again = Learner(made, CPU, Store(str(tmp_path / "store"))), []
    for number in range(9):
        commit = learner.train(shelf.part(number))
        again.append(commit.facts["window"]["again"])
    assert again == [commit.facts["window"]["again"] for commit in kept]
    assert max(again) > 0
    names = (name, 'online+feed.window={kind="all",window_s=86400}', 'online+feed.window={kind="sample",share=0.33}')
    rows = {one: bench.run(one, shelf=bench.shelf.upto(7)) for one in names}
    asked = [row["queries"] for row in rows.values() for row in row]
    assert len(set(asked)) == 1
    figures = {one: bench.study.rows()[one][0] for one in names}
    assert all(row["cpu_s"] > 0 for row in figures.values())
    assert len({row["mrr@20"] for row in figures.values()}) == 3, "R@20 is the same: only items never met are missed"


def test_what_the_gate_rejected_is_told_with_its_reason(tmp_path, log):
    bench = Bench(tmp_path, log, "gate.max_update_ratio=1e-9")
    rows = bench.run("online")
    assert [len(row["rejected"]) for row in rows] == [6, 6, 6], "the warm-up, which answers first, is never rejected"
    assert all("1e-09" in reason for row in rows for reason in row["rejected"])


def test_the_side_feed_is_told_as_it_would_have_been(tmp_path, log):
    side = Landing(str(tmp_path / "side"))
    ts = [0, START_MS + DAY_MS + 1, START_MS + DAY_MS + 2, START_MS + 9 * DAY_MS]
    side.land("items.parquet", pa.table({"item_id": [1, 2, 3, 4], "ts": ts, "make": ["a", "b", "c", "d"]}))
    bench = Bench(tmp_path, log, f"feed.items_path={side.uri}", 'catalogue.attributes=["make"]')
    told = [bench.shelf.part(period).told for period in range(len(bench.shelf))]
    found = {period: rows.item_N.tolist() for period, rows in enumerate(told) if rows is not None}
    begun = int(np.flatnonzero(bench.shelf.first_ms >= START_MS + DAY_MS + 2)[0])
    assert found == {0: [1], begun: [2, 3]}, "before the first shard that begins after them; the last one never"
    assert bench.shelf.first(begun + 1, begun).told.item_N.tolist() == [1, 2, 3]
    assert bench.shelf.first(begun).told.item_N.tolist() == [1]
    bare = Landing(str(tmp_path / "bare"))
    bare.land("items.parquet", pa.table({"item_id": [5], "ts": [5]}))
    bench.words.append(f"feed.items_path={bare.uri}")
    with pytest.raises(ConfigError, match="lacks the column 'make'"):
        Shelf(bench.variant("default").recipe, tmp_path / "again")
