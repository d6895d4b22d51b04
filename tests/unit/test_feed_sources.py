"""What lands by itself: a log in slices of event time, and the drifting stream; both go on after a kill."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.config.feed import ColumnsConfig, ReplayConfig, SyntheticConfig
from headrace.errors import DataError
from headrace.feed.landing import Landing, shard_name
from headrace.feed.replayer import Replayer
from headrace.feed.synthetic import SyntheticStream, shard_events, shard_items

T0 = 1_700_000_130_000  # 30 s after a multiple of 100 s
FAR = 10**6


def log(folder, *files):
    """Files of events at these seconds after T0; the item is the event's number."""
    folder.mkdir()
    count = itertools.count()
    for index, seconds in enumerate(files):
        table = pa.table({
            "item_id": pa.array([next(count) for _ in seconds], pa.int64()),
            "ts": pa.array([T0 + int(second * 1000) for second in seconds], pa.timestamp("ms", tz="UTC")),
            "session_id": pa.array([1] * len(seconds), pa.int64()),
            "event": pa.array(["view"] * len(seconds), pa.string()).dictionary_encode(),
        })  # fmt: skip
        pq.write_table(table, folder / f"day-{index}.parquet")
    return Landing(str(folder))


def replayer(tmp_path, source, landing="landing", **config):
    return Replayer(ReplayConfig(**config), ColumnsConfig(), source, Landing(str(tmp_path / landing)))


def landed_items(folder):
    return [pq.read_table(path)["item_id"].to_pylist() for path in sorted(folder.glob("*.parquet"))]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_slices_are_multiples_of_event_time_across_files_and_gaps(tmp_path):
    source = log(tmp_path / "log", [0, 69.9, 70, 100], [110, 169, 480], [], [481])
    landed = replayer(tmp_path, source, slice_s=100, ahead=FAR).step(0.0, 0)
    assert [shard.name for shard in landed] == [shard_name(index) for index in range(3)]
    assert landed_items(tmp_path / "landing") == [[0, 1], [2, 3, 4, 5], [6, 7]]
    assert [shard.num_rows for shard in landed] == [2, 4, 2]
    times = [shard.landed_s for shard in landed]
    assert times == sorted(times)


def test_the_first_slice_counts_from_the_first_event(tmp_path):
    source = log(tmp_path / "log", [0, 119, 120, 169, 170])
    replayer(tmp_path, source, slice_s=100, first_slice_s=120, ahead=FAR).step(0.0, 0)
    assert landed_items(tmp_path / "landing") == [[0, 1], [2, 3], [4]]


def test_late_and_unsorted_events_join_the_slice_that_is_open(tmp_path):
    source = log(tmp_path / "log", [75, 0, 80], [10, 200])
    replayer(tmp_path, source, slice_s=100, ahead=FAR).step(0.0, 0)
    assert landed_items(tmp_path / "landing") == [[1], [0, 2, 3], [4]]


def test_one_shard_a_file(tmp_path):
    source = log(tmp_path / "log", [0, 500], [], [501])
    source_of = replayer(tmp_path, source, slice_s="file", ahead=FAR)
    source_of.step(0.0, 0)
    assert landed_items(tmp_path / "landing") == [[0, 1], [2]]
    assert source_of.exhausted


def test_it_waits_for_commits(tmp_path):
    source = log(tmp_path / "log", [100 * index for index in range(5)])
    source_of = replayer(tmp_path, source, slice_s=100, ahead=2)
    assert [len(source_of.step(0.0, committed)) for committed in (0, 0, 1, 3, 3)] == [2, 0, 1, 2, 0]
    assert source_of.exhausted


def test_a_warm_up_of_many_shards_is_never_waited_for(tmp_path):
    source = log(tmp_path / "log", [100 * index for index in range(9)])
    config = ReplayConfig(slice_s=100, ahead=2)
    source_of = Replayer(config, ColumnsConfig(), source, Landing(str(tmp_path / "landing")), warmup_shards=5)
    assert [len(source_of.step(0.0, committed)) for committed in (0, 0)] == [5, 0]


def test_speed_lands_a_slice_when_it_would_be_over(tmp_path):
    source = log(tmp_path / "log", [0, 75, 280])
    source_of = replayer(tmp_path, source, slice_s=100, speed=10.0, ahead=FAR)
    assert [len(source_of.step(now_s, 0)) for now_s in (50.0, 59.9, 60.0, 79.9, 80.0)] == [1, 0, 1, 0, 1]


def test_after_a_kill_it_goes_on_with_the_same_bytes(tmp_path):
    source = log(tmp_path / "log", [0, 69, 75], [110, 480], [600])
    replayer(tmp_path, source, "whole", slice_s=100, ahead=FAR).step(0.0, 0)
    assert len(replayer(tmp_path, source, slice_s=100, ahead=2).step(0.0, 0)) == 2
    (tmp_path / "landing" / ".shard-000002.parquet.tmp").write_bytes(b"half")
    again = replayer(tmp_path, source, slice_s=100, ahead=FAR)
    assert [shard.name for shard in again.step(0.0, 0)] == [shard_name(2), shard_name(3)]
    assert contents(tmp_path / "landing") == contents(tmp_path / "whole")
    done = replayer(tmp_path, source, slice_s=100, ahead=FAR)
    assert done.step(0.0, 0) == ()
    assert done.exhausted


def test_a_log_that_is_not_there_or_lacks_a_column_says_so(tmp_path):
    with pytest.raises(DataError, match=r"feed\.path must name the folder"):
        replayer(tmp_path, Landing(str(tmp_path / "none"))).step(0.0, 0)
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"itemid": [1], "ts": [1], "session_id": [1]}), tmp_path / "log" / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'item_id'"):
        replayer(tmp_path, Landing(str(tmp_path / "log"))).step(0.0, 0)


SMALL = SyntheticConfig(num_items=400, events_per_shard=60, warmup_events=600, shard_interval_s=0.5)


def test_a_synthetic_shard_is_a_pure_function_of_seed_and_index():
    assert shard_events(SMALL, 1, 3).equals(shard_events(SMALL, 1, 3))
    assert not shard_events(SMALL, 1, 3).equals(shard_events(SMALL, 2, 3))


def test_the_synthetic_stream_has_its_sizes_and_moves_on_in_event_time():
    shards = [shard_events(SMALL, 1, index) for index in range(12)]
    assert [shard.num_rows for shard in shards] == [600] + [60] * 11
    assert shards[0].column_names == ["item_id", "ts", "session_id", "user_id", "event"]
    ts_N = pa.concat_tables(shards)["ts"].cast(pa.int64()).to_numpy()
    assert (np.diff(ts_N) >= 0).all()
    starts = [shard["ts"].cast(pa.int64())[0].as_py() // 500 for shard in shards[1:]]
    assert np.diff(starts).tolist() == [1] * 10


def test_synthetic_sessions_have_3_to_8_events_at_distinct_times_and_may_span_two_shards():
    stream = pa.concat_tables([
        shard_events(SMALL, 1, index).append_column("shard", pa.array([index] * (600 if index == 0 else 60)))
        for index in range(12)
    ])  # fmt: skip
    sessions = stream.group_by("session_id").aggregate(
        [("ts", "count"), ("ts", "count_distinct"), ("shard", "count_distinct"), ("shard", "max"),
         ("user_id", "count_distinct")]
    ).to_pylist()  # fmt: skip
    inner = [session for session in sessions if 0 < session["shard_max"] < 11]
    assert {session["ts_count"] for session in inner} <= set(range(3, 9))
    assert all(session["ts_count"] == session["ts_count_distinct"] for session in sessions)
    assert {session["shard_count_distinct"] for session in sessions} == {1, 2}
    assert {session["user_id_count_distinct"] for session in sessions} == {1}


def test_new_items_appear_and_popularity_moves():
    config = SyntheticConfig()
    before = np.concatenate([shard_events(config, 1, index)["item_id"].to_numpy() for index in range(1, 20)])
    after = np.concatenate([shard_events(config, 1, index)["item_id"].to_numpy() for index in range(100, 120)])
    assert (after >= config.num_items + 100).any()
    size = int(max(before.max(), after.max())) + 1
    counts = [np.bincount(items, minlength=size) for items in (before, after)]
    top = [set(np.argsort(-count)[:20].tolist()) for count in counts]
    assert len(top[0] & top[1]) < 15


def test_the_synthetic_stream_lands_by_the_clock_once_its_warm_up_is_committed(tmp_path):
    def stream():
        return SyntheticStream(SMALL.model_copy(update={"num_shards": 6}), 1, Landing(str(tmp_path)))

    source = stream()
    assert [len(source.step(now_s, committed)) for now_s, committed in ((0.0, 0), (5.0, 0))] == [1, 0]
    assert [len(source.step(now_s, 1)) for now_s in (9.0, 9.4, 9.5)] == [1, 0, 1]
    again = stream()
    assert [shard.name for shard in again.step(20.0, 1)] == [shard_name(3)]
    assert [shard.name for shard in again.step(22.0, 1)] == [shard_name(4), shard_name(5)]
    assert again.exhausted
    assert again.step(30.0, 1) == ()


@pytest.mark.parametrize("events_per_shard", [1, 2, 3, 7, 200])
def test_small_shards_keep_their_size(events_per_shard):
    config = SyntheticConfig(num_items=50, events_per_shard=events_per_shard, warmup_events=20)
    assert shard_events(config, 1, 5).num_rows == events_per_shard
    assert shard_events(config, 1, 0).num_rows == 20


SHOP = SyntheticConfig(
    num_items=80, events_per_shard=100, warmup_events=300, births_per_shard=4, launch_items=8, items=True
)


def test_every_item_is_listed_a_shard_before_it_is_met_and_retired_once_it_has_left():
    listed, retired = set(), set()
    for index in range(12):
        rows = shard_items(SHOP, 1, index)
        assert rows.equals(shard_items(SHOP, 1, index))
        by_status = dict.fromkeys(("active", "retired"), ())
        for status in by_status:
            by_status[status] = set(rows.filter(pa.compute.equal(rows["status"], status))["item_id"].to_pylist())
        if index:
            met = set(shard_events(SHOP, 1, index)["item_id"].to_pylist())
            assert met <= listed
            late = sum(item in retired for item in shard_events(SHOP, 1, index)["item_id"].to_pylist())
            assert late <= 10, "only sessions that began before may still name them"
        assert not by_status["active"] & listed
        assert by_status["retired"] <= listed or index == 0
        listed |= by_status["active"] | by_status["retired"]
        retired |= by_status["retired"]
        assert len(listed - retired) in (80, 88)


def test_attributes_say_where_an_item_stands():
    rows = shard_items(SHOP, 1, 0).to_pylist()
    assert {row["aisle"].split("-")[0] for row in rows if row["category"] == "1"} == {"1"}
    assert all(row["name"].startswith(row["aisle"]) for row in rows)
    aisle_of = {row["item_id"]: row["aisle"] for row in rows}
    events = shard_events(SHOP, 1, 0).sort_by([("session_id", "ascending"), ("ts", "ascending")])
    item, session = events["item_id"].to_numpy(), events["session_id"].to_numpy()
    pairs = [
        (aisle_of[a], aisle_of[b]) for a, b, s, t in zip(item, item[1:], session, session[1:], strict=False) if s == t
    ]
    same = np.mean([a.split("-")[0] == b.split("-")[0] for a, b in pairs])
    near = np.mean([a == b for a, b in pairs])
    assert same > 0.7
    assert near > 2 / 16, "sixteen aisles"


def test_the_side_feed_lands_before_its_shard_and_again_with_the_same_bytes(tmp_path):
    landing, items = Landing(str(tmp_path / "shards")), Landing(str(tmp_path / "items"))
    for _ in range(2):
        SyntheticStream(SHOP, 1, landing, items).step(0.0, 0)
        first = contents(tmp_path / "items")
        assert list(first) == ["items-000000.parquet"]
        (tmp_path / "shards" / shard_name(0)).unlink()
    assert contents(tmp_path / "items") == first
