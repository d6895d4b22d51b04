"""The side feed: files that say what items are, from the folder to what is answered, and back after a restart."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from loop_kit import Stream, events, lawful, recipe

from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.catalogue.attributes import UNKNOWN, Listing
from headrace.catalogue.eligible import NEVER
from headrace.catalogue.ids import Catalogue
from headrace.commit.chain import Chain
from headrace.config.feed import CatalogueConfig
from headrace.errors import DataError
from headrace.feed.items import ItemsFolder, ItemsLog, parse_items, read_items
from headrace.feed.landing import Landing
from headrace.feed.quarantine import ask_release, set_aside
from headrace.records import CutRows, ItemRows
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.train.offline import replay
from headrace.train.state import LearnerState

HOUR_MS = 3_600_000
WORDS = (
    'catalogue.attributes=["kind"]',
    "feed.items_path=items",
    "evaluation.eval_share=0",
    "model.dropout=0.0",
)


def table(*rows: dict[str, Any]) -> pa.Table:
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in columns})


def told(*rows: tuple[int, int, str, str]) -> ItemRows:
    """Of (ts, retired, name, kind)."""
    ts, retired, name, kind = zip(*rows, strict=True)
    text = [np.array(column, dtype=object) for column in (name, kind)]
    return ItemRows(np.arange(len(rows)), np.array(ts), np.array(retired, dtype=bool), text[0], {"kind": text[1]})


def as_bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    return bytes(sink.getvalue())


def test_a_file_is_read_with_what_it_has() -> None:
    rows = parse_items(as_bytes(pa.table({"item_id": [3, 4], "ts": [10, 20]})))
    assert rows.item_N.tolist() == [3, 4]
    assert rows.retired_N.tolist() == [False, False]
    assert rows.name_N.tolist() == ["", ""]
    assert rows.attributes == {}
    whole = parse_items(
        as_bytes(pa.table({"item_id": ["a"], "ts": [10], "status": ["retired"], "name": ["A"], "size": [4]}))
    )
    assert whole.item_N.tolist() == ["a"]
    assert whole.retired_N.tolist() == [True]
    assert whole.attributes["size"].tolist() == ["4"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"ts": [1]}, "lacks the column 'item_id'"),
        ({"item_id": [1]}, "lacks the column 'ts'"),
        ({"item_id": [None], "ts": [1]}, "no item_id"),
        ({"item_id": [1], "ts": [1], "status": ["gone"]}, "the status in row 0 is 'gone'"),
        ({"item_id": [1], "ts": [1], "size": [[1]]}, "'size'"),
    ],
)
def test_what_cannot_be_used_is_said_in_words(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_items(as_bytes(pa.table(columns)))


def test_files_are_taken_once_they_settle_and_bad_ones_are_set_aside(tmp_path: Path) -> None:
    landing = Landing(str(tmp_path))
    folder = ItemsFolder(landing, ["kind"])
    landing.land("items-0.parquet", table({"item_id": 1, "ts": 5, "kind": "a"}))
    landing.land("items-1.parquet", table({"item_id": 2, "ts": 5}))
    landing.land("items-2.parquet", table({"item_id": "x", "ts": 5, "kind": "a"}))
    (tmp_path / "items-3.parquet").write_bytes(b"half a file")
    folder.poll(0.0)
    assert folder.take(None) == ()
    folder.poll(1.0)
    assert folder.waiting_since_s == 1.0
    (file,) = folder.take("int64")
    assert file.uri.endswith("items-0.parquet")
    lacking, mistyped = folder.unusable()
    assert "lacks the column 'kind'" in lacking.reason
    assert "string, but int64" in mistyped.reason
    folder.poll(2.0)
    assert folder.take("int64") == ()
    assert folder.unusable() == []
    folder.poll(20.0)
    (half,) = folder.unusable()
    assert half.uri.endswith("items-3.parquet")
    assert (half.size_bytes, "cannot be read as Parquet" in half.reason) == (11, True)
    again = ItemsFolder(landing, ["kind"])
    again.start([file.uri])
    for now_s in range(2):
        again.poll(float(now_s))
    assert [taken.uri for taken in again.take("int64")] == []
    rows = read_items([file])
    assert rows is not None
    assert rows.item_N.tolist() == [1]
    landing.land("items-0.parquet", table({"item_id": 9, "ts": 5, "kind": "a"}))
    with pytest.raises(DataError, match="has changed"):
        read_items([file])


def test_the_latest_row_counts_and_an_older_one_says_nothing() -> None:
    listing = Listing(["kind"])
    listing.grow(3)
    listing.apply(np.array([0, 0, 1]), told((5, 0, "new", "a"), (4, 1, "old", "b"), (5, 1, "", "")))
    assert listing.ts_I.tolist() == [5, 5, NEVER]
    assert listing.retired_I.tolist() == [False, True, False]
    assert (listing.name(0), listing.name(1)) == ("new", None)
    assert listing.values(0) == {"kind": "a"}
    assert listing.values(1) == {}
    listing.apply(np.array([0, 1]), told((4, 1, "old", "b"), (6, 0, "back", "b")))
    assert listing.retired_I.tolist() == [False, False, False]
    assert listing.values(1) == {"kind": "b"}
    assert listing.code_IA[2].tolist() == [UNKNOWN]


def test_a_listing_comes_back_and_takes_other_attributes() -> None:
    catalogue = Catalogue(["kind"])
    catalogue.admit(np.array([9]))
    assert set(catalogue.state()) == {"items", "slots", "ids/00000"}, "nothing was told"
    catalogue.tell(told((5, 0, "é", "a"), (5, 1, "", "b")))
    stored = {name: load_arrays(dump_arrays(part)) for name, part in catalogue.state().items()}
    again = Catalogue.from_state(stored)
    assert {name: dump_arrays(part) for name, part in again.state().items()} == {
        name: dump_arrays(part) for name, part in catalogue.state().items()
    }
    other = again.listing.of(["size", "kind"])
    assert other.values(1) == {"kind": "a"}
    assert other.name(1) == "é"
    assert other.code_IA[:, 0].tolist() == [UNKNOWN] * 3
    assert again.listing.of(["kind"]) is again.listing


def test_listed_items_hold_rows_and_are_answered_and_retired_ones_are_not() -> None:
    catalogue = Catalogue(["kind"])
    catalogue.admit(np.array([0, 1, 2]))
    catalogue.observe(np.array([0, 1]), np.array([9, 9]))
    catalogue.tell(told((9, 1, "", ""), (9, 0, "", ""), (3, 0, "", "")))
    assert catalogue.eligible(9, None).number_E.tolist() == [], "nobody holds a row yet"
    catalogue.settle(9, CatalogueConfig(min_events=5))
    assert catalogue.slot_I.tolist() == [-1, 0, 1]
    assert catalogue.eligible(9_000, 1000).number_E.tolist() == [1, 2]
    assert catalogue.touched(catalogue.eligible(9, None)).number_E.tolist() == [1]
    catalogue.tell(told((10, 0, "", "")))
    catalogue.settle(9, CatalogueConfig(min_events=5))
    assert catalogue.slot_I.tolist() == [2, 0, 1], "reinstated"


def stream_of(folder: Path, *overrides: str) -> Stream:
    stream = Stream(folder, recipe(*WORDS, *overrides))
    for index in range(4):
        stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * HOUR_MS))
    return stream


def shop(*, new: int = 1000) -> pa.Table:
    """All fifty items that the events know, by kind, and one that nobody has touched."""
    known = [{"item_id": n, "ts": 1, "kind": str(n % 5), "name": f"item {n}"} for n in range(50)]
    return table(*known, {"item_id": new, "ts": 1, "kind": "3", "name": "brand new"})


def test_an_untouched_item_is_answered_by_the_next_bundle_and_a_retired_one_is_not(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    stream.items.land("items-0.parquet", shop())
    states: list[LearnerState] = []
    first = stream.advance(until=0, change=states.append)[0]
    loaded = load_bundle(stream.store, bundle_of(first))
    number = int(loaded.catalogue.numbers(np.array([1000]))[0])
    assert number in loaded.recommender.eligible.number_E
    assert loaded.catalogue.listing.name(number) == "brand new"
    catalogue, weight = states[0].catalogue, states[0].model.table.weight
    row = weight[int(catalogue.slot_I[number])].detach().numpy()
    kinds = catalogue.listing.code_IA[:, 0]
    alike = [n for n in range(50) if kinds[n] == kinds[number] and catalogue.count_I[n]]
    others = [n for n in range(50) if kinds[n] != kinds[number] and catalogue.count_I[n]]
    mean_of = lambda numbers: weight[catalogue.slot_I[numbers]].detach().numpy().mean(axis=0)  # noqa: E731
    assert row @ mean_of(alike) / np.linalg.norm(mean_of(alike)) > row @ mean_of(others) / np.linalg.norm(
        mean_of(others)
    )
    stream.items.land("items-1.parquet", table({"item_id": 1000, "ts": 2, "status": "retired", "kind": "3"}))
    stream.land(events(80, seed=9, start_ms=9 * HOUR_MS))
    last = stream.advance()[-1]
    assert number not in load_bundle(stream.store, bundle_of(last)).recommender.eligible.number_E


def test_a_run_that_stops_after_every_increment_ends_with_the_same_state(tmp_path: Path) -> None:
    def landed(folder: Path) -> Stream:
        stream = stream_of(folder, "catalogue.max_items=45")
        stream.items.land("items-0.parquet", shop())
        return stream

    undisturbed = landed(tmp_path / "a").advance()
    disturbed = landed(tmp_path / "b")
    for cut in range(4):
        disturbed.advance(until=cut)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest
    assert all(lawful(m) for m in undisturbed)
    pair = landed(tmp_path / "c").advance_pair()
    assert lawful(pair[-1])


def test_what_the_side_feed_says_outlives_a_rejected_increment(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    stream.advance()
    spam = events(300, seed=5, start_ms=5 * HOUR_MS)
    stream.items.land("items-0.parquet", shop())
    stream.land(spam.set_column(0, "item_id", pa.array(np.full(300, 7))))
    stream.land(events(80, seed=6, start_ms=6 * HOUR_MS))
    states: list[LearnerState] = []
    rejected, after = stream.advance(change=states.append)
    assert (rejected.verdict, after.verdict) == ("reject", "publish")
    catalogue = states[0].catalogue
    assert int(catalogue.numbers(np.array([1000]))[0]) in states[0].eligible.number_E


def test_stopped_after_a_rejected_increment_or_not_what_is_live_answers_alike(tmp_path: Path) -> None:
    def told(folder: Path) -> Stream:
        stream = stream_of(folder)
        stream.advance()
        spam = events(300, seed=5, start_ms=5 * HOUR_MS)
        gone = [{"item_id": n, "ts": 2, "status": "retired", "kind": ""} for n in (1, 2, 3)]
        stream.items.land("items-0.parquet", table(*gone))
        stream.land(spam.set_column(0, "item_id", pa.array(np.full(300, 7))))
        stream.land(events(80, seed=6, start_ms=6 * HOUR_MS))
        return stream

    once, stopped = told(tmp_path / "a"), told(tmp_path / "b")
    rejected, after = once.advance()
    assert rejected.verdict == "reject"
    stopped.advance(until=rejected.cut)
    (again,) = stopped.advance()
    assert again.facts["metrics"] == after.facts["metrics"]
    assert again.state_digest == after.state_digest


def test_retiring_most_of_the_shop_is_not_taken_for_poison(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    stream.advance()
    gone = [{"item_id": n, "ts": 2, "status": "retired", "kind": ""} for n in range(40)]
    stream.items.land("items-0.parquet", table(*gone))
    stream.land(events(80, seed=6, start_ms=6 * HOUR_MS))
    states: list[LearnerState] = []
    (after,) = stream.advance(change=states.append)
    assert after.verdict == "publish"
    assert after.facts["num_eligible"] <= 10
    assert not np.isin(states[0].catalogue.numbers(np.arange(40)), states[0].eligible.number_E).any()


def test_the_side_feed_alone_makes_a_cut_after_a_while(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "feed.cut=events")
    before = stream.advance()[-1]
    stream.items.land("items-0.parquet", shop())
    (after,) = stream.advance()
    assert (before.verdict, after.verdict) == ("publish", "publish")
    assert after.facts["events"] == 0
    assert after.facts["num_eligible"] > before.facts["num_eligible"]
    assert lawful(after)


def test_a_file_that_cannot_be_used_is_listed_released_and_then_in_force(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    lacking = table({"item_id": 1000, "ts": 1, "status": "active"})
    stream.items.land("items-0.parquet", lacking)
    before = stream.advance()[-1]
    (aside,) = set_aside(stream.store)
    assert (aside.where, aside.kind, aside.state) == ("items-0.parquet", "file", "set aside")
    assert "lacks the column 'kind'" in aside.reason
    assert lawful(before)
    stream.items.land("items-0.parquet", lacking.append_column("kind", pa.array(["3"])))
    stream.land(events(80, seed=6, start_ms=6 * HOUR_MS))
    ignored = stream.advance()[-1]
    assert ignored.facts["num_eligible"] == before.facts["num_eligible"]
    ask_release(stream.store, aside.number)
    stream.land(events(80, seed=7, start_ms=7 * HOUR_MS))
    states: list[LearnerState] = []
    after = stream.advance(change=states.append)[-1]
    number = int(states[0].catalogue.numbers(np.array([1000]))[0])
    assert states[0].catalogue.listing.values(number) == {"kind": "3"}
    assert lawful(after)
    assert [listed.state for listed in set_aside(stream.store)] == ["released"]


def test_a_replayed_logs_side_feed_is_held_back_until_the_stream_has_reached_it(tmp_path: Path) -> None:
    log, side = Landing(str(tmp_path / "log")), Landing(str(tmp_path / "side"))
    for hour in range(4):
        log.land(f"log-{hour}.parquet", events(100, hour, hour * HOUR_MS))
    side.land("one.parquet", table(*({"item_id": 1000 + hour, "ts": hour * HOUR_MS, "kind": "1"} for hour in (3, 1))))
    side.land("two.parquet", table({"item_id": 2000, "ts": 2 * HOUR_MS - 1, "kind": "2"}, {"item_id": 2001, "ts": -1}))
    words = (*WORDS, "feed.replay.slice_s=3600", f"feed.path={log.uri}", f"feed.items_path={side.uri}")
    told: list[list[int]] = []

    def note(part: CutRows, _: LearnerState) -> CutRows:
        told.append([] if part.told is None else part.told.item_N.tolist())
        return part

    list(replay(recipe(*words, "catalogue.attributes=[]"), torch.device("cpu"), None, note))
    assert told == [[2001], [1000 + 1], [2000], [1000 + 3]]


def test_a_replayer_that_starts_again_lands_the_side_feed_once(tmp_path: Path) -> None:
    side, own = Landing(str(tmp_path / "side")), Landing(str(tmp_path / "own"))
    side.land("one.parquet", table(*({"item_id": n, "ts": 10 * n} for n in range(5))))
    first, again = ItemsLog(side, own), ItemsLog(side, own)
    first.land(0, 15)
    first.land(1, 16)
    again.pass_over(16)
    again.land(2, 30)
    assert [name for name, _ in own.list_new(())] == ["items-000000.parquet", "items-000002.parquet"]
    ids = [pq.read_table(own.uri_of(name))["item_id"].to_pylist() for name, _ in own.list_new(())]
    assert ids == [[0, 1], [2, 3]]


def test_a_side_feed_that_cannot_be_replayed_is_named(tmp_path: Path) -> None:
    side = Landing(str(tmp_path / "side"))
    with pytest.raises(DataError, match=r"no \.parquet file in"):
        ItemsLog(side, side).land(0, 5)
    side.land("bad.parquet", table({"item_id": 1}))
    with pytest.raises(DataError, match=r"bad\.parquet: it lacks the column 'ts'"):
        ItemsLog(side, side).land(0, 5)
