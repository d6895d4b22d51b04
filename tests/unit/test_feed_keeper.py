"""From files that land to cuts, on real folders: nothing is read half, nothing is taken twice, nothing stalls."""

import functools
import operator
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from headrace.config.feed import ColumnsConfig, FeedConfig
from headrace.errors import DataError
from headrace.feed import keeper as keeper_module
from headrace.feed import landing as landing_module
from headrace.feed.entries import Shard
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_items, cut_rows, key_groups
from headrace.records import KEY_GROUPS, RowRange
from headrace.store.fence import take_epoch
from headrace.store.store import Store

COLUMNS = ColumnsConfig()
ALL = tuple(range(KEY_GROUPS))


def events(first, num_rows, **columns):
    rows = range(first, first + num_rows)
    default = {
        "item_id": pa.array([row % 7 for row in rows], pa.int64()),
        "ts": pa.array([row * 1000 for row in rows], pa.int64()),
        "session_id": pa.array([row // 3 for row in rows], pa.int64()),
    }
    return pa.table(default | columns)


class Feed:
    """A landing folder, a store and a keeper whose clock is turned by hand."""

    def __init__(self, folder, columns=COLUMNS, **config):
        self.folder = Path(folder)
        self.landing = Landing(str(self.folder / "landing"))
        self.store = Store(str(self.folder / "store"))
        self.columns, self.config = columns, FeedConfig(**config)
        self.now_s, self.committed = 0.0, -1
        self.restart()

    def restart(self, **options):
        self.writer = LedgerWriter.open(self.store, take_epoch(self.store))
        self.keeper = Keeper(self.config, self.columns, self.landing, self.writer, **options)

    def path(self, name):
        return self.folder / "landing" / name

    def land(self, name, table):
        self.landing.land(name, table)

    def poll(self, times=2, step_s=0.05):
        polls = []
        for _ in range(times):
            self.now_s += step_s
            polls.append(self.keeper.poll(self.now_s, self.committed))
        return polls

    def commit_all(self):
        """Commit cut after cut until nothing moves; the cuts that were written meanwhile."""
        cuts = []
        while new := [cut for poll in self.poll() for cut in poll.cuts]:
            cuts += new
            self.committed = self.keeper.newest_cut
        return cuts

    def rows(self, cut, groups=ALL):
        return cut_rows(LedgerReader(self.store), cut, self.columns, groups)


def flat(polls, what):
    return [entry for poll in polls for entry in getattr(poll, what)]


def test_an_empty_folder_and_no_folder_do_nothing(tmp_path):
    feed = Feed(tmp_path)
    assert flat(feed.poll(), "shards") == []
    feed.path("").mkdir()
    assert flat(feed.poll(5), "cuts") == []


def test_a_file_is_taken_when_two_listings_agree(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 10))
    first, second = feed.poll()
    assert (first.shards, first.unsettled) == ((), 1)
    (shard,) = second.shards
    assert (shard.num_rows, shard.first_ts, shard.last_ts, sum(shard.group_rows)) == (10, 0, 9000, 10)
    assert second.cuts[0].ranges == (RowRange(shard.number, 0, 10),)
    assert feed.keeper.first_seen_s(shard.number) == pytest.approx(0.05)
    assert flat(feed.poll(5), "shards") == []


def test_one_event(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(4, 1))
    (cut,) = feed.commit_all()
    arrived = feed.rows(cut)
    assert (arrived.rows.item_N.tolist(), arrived.item_I.tolist()) == ([4], [4])


def test_an_empty_shard_is_recorded_and_stalls_nothing(tmp_path):
    for mode in ("events", "shard"):
        feed = Feed(tmp_path / mode, cut=mode)
        feed.land("a.parquet", events(0, 0))
        (shard,) = flat(feed.poll(), "shards")
        assert shard.num_rows == 0
        feed.land("b.parquet", events(0, 5))
        feed.land("c.parquet", events(5, 0))
        feed.land("d.parquet", events(5, 5))
        assert sum(cut.num_rows for cut in feed.commit_all()) == 10
        assert feed.keeper.settled_files(feed.committed) == 4


def test_a_file_still_being_written_is_never_read_half(tmp_path):
    feed = Feed(tmp_path)
    feed.land("whole", events(0, 500))
    content = feed.path("whole").read_bytes()
    feed.path("a.parquet").write_bytes(content[: len(content) // 2])
    assert flat(feed.poll(10), "shards") == []
    assert flat(feed.poll(10), "quarantined") == []
    feed.path("a.parquet").write_bytes(content)
    (shard,) = flat(feed.poll(), "shards")
    assert shard.num_rows == 500


def test_a_file_that_still_grows_is_left_alone_though_its_footer_reads(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5))
    feed.poll(1)
    feed.land("a.parquet", events(0, 700))
    assert flat(feed.poll(1), "shards") == []
    assert [shard.num_rows for shard in flat(feed.poll(1), "shards")] == [700]


def test_temporary_names_are_ignored(tmp_path):
    feed = Feed(tmp_path)
    for name in (".a.parquet", "_a.parquet", "a.parquet.tmp", "a.csv"):
        feed.land(name, events(0, 5))
    feed.path("folder.parquet").mkdir()
    assert flat(feed.poll(3), "shards") == []


def test_the_same_file_twice_is_taken_once_even_if_rewritten(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5))
    feed.poll()
    feed.land("a.parquet", events(0, 5))
    assert flat(feed.poll(3), "shards") == []


def test_the_same_content_under_a_second_name_is_a_duplicate_also_after_a_restart(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5))
    feed.commit_all()
    shutil.copy(feed.path("a.parquet"), feed.path("b.parquet"))
    (again,) = flat(feed.poll(), "shards")
    assert again.duplicate_of == 2
    feed.restart()
    shutil.copy(feed.path("a.parquet"), feed.path("c.parquet"))
    (third,) = flat(feed.poll(), "shards")
    assert third.duplicate_of == 2
    feed.land("d.parquet", events(9, 3))
    (cut,) = feed.commit_all()
    assert (cut.num_rows, cut.events_in, cut.duplicate, cut.pending) == (3, 18, 10, 0)


def test_a_missing_column_is_set_aside_with_its_reason_and_the_stream_goes_on(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5).rename_columns(["itm", "ts", "session_id"]))
    feed.land("b.parquet", events(0, 4))
    (aside,) = flat(feed.poll(), "quarantined")
    assert "set columns.item_id=itm" in aside.reason
    assert aside.num_rows == 5
    cut = LedgerReader(feed.store).cut(0)
    assert (cut.num_rows, cut.events_in, cut.quarantined) == (4, 9, 5)


def with_bad(table, rows, column="ts", value=-1):
    values = table[column].to_pylist()
    for row in rows:
        values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values, pa.int64()))


def test_a_few_bad_rows_are_dropped_and_the_others_taken(tmp_path):
    feed = Feed(tmp_path, max_bad_rows=0.02)
    table = with_bad(with_bad(events(0, 100), [7]), [40], "item_id", None)
    feed.land("a.parquet", table)
    (cut,) = feed.commit_all()
    (shard,) = [entry for entry in LedgerReader(feed.store).entries() if isinstance(entry, Shard)]
    assert shard.dropped.rows == (7, 40)
    assert [(num_rows, reason[:16]) for reason, num_rows in shard.dropped.reasons] == [
        (1, "no value in item"), (1, "the time in ts l"),
    ]  # fmt: skip
    assert shard.dropped.first[0] == 'row 7: {"item_id": 0, "ts": -1, "session_id": 2}'
    assert (shard.num_rows, sum(shard.group_rows), shard.first_ts) == (100, 98, 0)
    assert (cut.num_rows, cut.events_in, cut.quarantined, cut.pending) == (98, 100, 2, 0)
    assert cut.ranges == (RowRange(shard.number, 0, 100, 2),)
    assert feed.rows(cut).rows.row_N.tolist() == [row for row in range(100) if row not in (7, 40)]


@pytest.mark.parametrize(
    ("share", "num_rows", "bad", "taken"),
    [
        (0.01, 100, [3], True),
        (0.01, 100, [3, 4], False),
        (0.01, 5, [3], True),  # one row always may
        (0.01, 1, [0], False),  # but not the only one
        (0.0, 100, [3], False),
        (1.0, 4, [0, 1, 3], True),
        (1.0, 4, [0, 1, 2, 3], False),
    ],
)
def test_beyond_the_share_the_whole_shard_is_set_aside(tmp_path, share, num_rows, bad, taken):
    feed = Feed(tmp_path, max_bad_rows=share)
    feed.land("a.parquet", with_bad(events(0, num_rows), bad))
    polls = feed.poll()
    assert len(flat(polls, "shards")) == taken
    for aside in flat(polls, "quarantined"):
        assert aside.reason.startswith(
            f"{len(bad)} of {num_rows} rows cannot be used (feed.max_bad_rows={share:g}), the first is row {bad[0]}: "
            f"{len(bad)} rows: the time in ts lies before 1970"
        )
        assert aside.num_rows == num_rows
        assert aside.first[0].startswith(f"row {bad[0]}: ")


def test_cuts_split_a_shard_around_its_dropped_rows(tmp_path):
    feed = Feed(tmp_path, max_events=4, max_bad_rows=1.0, warmup_shards=1)
    feed.land("a.parquet", events(0, 2))
    feed.commit_all()
    feed.land("b.parquet", with_bad(events(2, 12), [0, 4, 5, 11]))
    cuts = feed.commit_all()
    assert [cut.num_rows for cut in cuts] == [4, 4]
    assert [(part.start, part.stop, part.num_dropped) for cut in cuts for part in cut.ranges] == [(0, 7, 3), (7, 12, 1)]
    assert [feed.rows(cut).rows.row_N.tolist() for cut in cuts] == [[1, 2, 3, 6], [7, 8, 9, 10]]
    assert cuts[-1].pending == 0


def test_ranks_drop_the_same_rows_and_number_the_items_alike(tmp_path):
    feed = Feed(tmp_path, max_bad_rows=0.5)
    feed.land("a.parquet", with_bad(events(0, 60), [0, 7, 14], "session_id", None))
    (cut,) = feed.commit_all()
    ranks = [feed.rows(cut, key_groups(rank, 2)) for rank in range(2)]
    assert sorted(row for part in ranks for row in part.rows.row_N.tolist()) == [
        row for row in range(60) if row not in (0, 7, 14)
    ]
    assert all(part.item_I.tolist() == [1, 2, 3, 4, 5, 6, 0] for part in ranks)


def test_a_truncated_file_is_set_aside_once_it_has_been_stable_for_long(tmp_path):
    feed = Feed(tmp_path)
    feed.land("whole", events(0, 500))
    content = feed.path("whole").read_bytes()
    feed.path("a.parquet").write_bytes(content[:-20])
    feed.land("b.parquet", events(0, 4))
    polls = feed.poll(2)
    assert [shard.num_rows for shard in flat(polls, "shards")] == [4]
    polls = feed.poll(13, step_s=1.0)
    (aside,) = flat(polls, "quarantined")
    assert "cannot be read as Parquet" in aside.reason
    assert polls[-1].unsettled == 0


class FarLanding(Landing):
    """A folder that can be away."""

    away = False

    def list_new(self, known):
        if self.away:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return super().list_new(known)


def test_a_folder_that_is_away_is_waited_for_and_nothing_is_set_aside_meanwhile(tmp_path):
    feed = Feed(tmp_path)
    feed.landing = FarLanding(feed.landing.uri)
    feed.restart()
    feed.land("a.parquet", events(0, 5))
    feed.poll(1)
    feed.landing.away = True
    assert flat(feed.poll(10, step_s=1.0), "quarantined") == []
    feed.landing.away = False
    assert [shard.num_rows for shard in flat(feed.poll(1), "shards")] == [5]
    feed.landing.away = True
    with pytest.raises(DataError, match=r"landing has been away for 6. s .* the same command goes on from it"):
        feed.poll(70, step_s=1.0)


def test_a_file_that_cannot_be_opened_for_a_while_is_not_set_aside(tmp_path, monkeypatch):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5))

    def away(uri):
        raise OSError("AWS Error NETWORK_CONNECTION")

    with monkeypatch.context() as patch:
        patch.setattr(keeper_module, "open_file", away)
        assert flat(feed.poll(40, step_s=1.0), "quarantined") == []
    assert [shard.num_rows for shard in flat(feed.poll(1), "shards")] == [5]


def test_a_file_torn_in_the_middle_is_set_aside(tmp_path):
    feed = Feed(tmp_path)
    feed.land("whole", events(0, 5000))
    content = bytearray(feed.path("whole").read_bytes())
    content[10:400] = bytes(390)
    feed.path("a.parquet").write_bytes(bytes(content))
    (aside,) = flat(feed.poll(), "quarantined")
    assert aside.num_rows == 5000


def test_a_type_that_changes_between_shards_is_set_aside(tmp_path):
    feed = Feed(tmp_path, columns=ColumnsConfig(context=("country",)))
    feed.land("a.parquet", events(0, 2, country=pa.array([1, 2], pa.int16())))
    feed.land("b.parquet", events(2, 2))
    feed.land("c.parquet", events(4, 2, country=["de", "at"]))
    feed.land("d.parquet", events(4, 2, item_id=["x", "y"]))
    polls = feed.poll()
    assert [shard.num_rows for shard in flat(polls, "shards")] == [2, 2]
    reasons = [aside.reason for aside in flat(polls, "quarantined")]
    assert reasons == [
        "column 'country' is string, but int16 in the shards before: keep one type",
        "column 'item_id' is string, but int64 in the shards before: keep one type",
    ]


def test_a_large_shard_is_split_in_ranges_that_hold_every_row_once(tmp_path):
    feed = Feed(tmp_path, max_events=400)
    feed.land("a.parquet", events(0, 3))
    feed.commit_all()
    feed.path("").joinpath("b.parquet").write_bytes(row_groups(events(3, 1000), 150))
    cuts = feed.commit_all()
    assert [cut.num_rows for cut in cuts] == [400, 400, 200]
    read = [feed.rows(cut) for cut in cuts]
    assert [row for part in read for row in part.rows.row_N.tolist()] == list(range(1000))
    assert [ts for part in read for ts in part.rows.ts_N.tolist()] == [row * 1000 for row in range(3, 1003)]
    assert read[1].item_I.tolist() == list(dict.fromkeys(read[1].rows.item_N.tolist()))


def row_groups(table, size):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=size)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_rows_and_number_the_items_alike(tmp_path, world):
    feed = Feed(tmp_path, warmup_shards=3)
    for number in range(3):
        feed.land(f"{number}.parquet", events(number * 50, 50))
    (cut,) = feed.commit_all()
    ranks = [feed.rows(cut, key_groups(rank, world)) for rank in range(world)]
    pairs = [list(zip(part.rows.shard_N.tolist(), part.rows.row_N.tolist(), strict=True)) for part in ranks]
    assert all(own == sorted(own) for own in pairs)
    assert sorted(functools.reduce(operator.iadd, pairs, [])) == [
        (shard, row) for shard in (2, 3, 4) for row in range(50)
    ]
    assert all(part.item_I.tolist() == list(range(7)) for part in ranks)
    assert all((part.rows.group_N % world == rank).all() for rank, part in enumerate(ranks))


def test_string_ids_and_users_without_sessions(tmp_path):
    feed = Feed(tmp_path, columns=ColumnsConfig(session_id=None, user_id="user"))
    table = events(0, 6, item_id=list("babcab"), user=["u", "v"] * 3).drop_columns(["session_id"])
    feed.land("a.parquet", table)
    (cut,) = feed.commit_all()
    arrived = feed.rows(cut)
    assert arrived.item_I.tolist() == ["b", "a", "c"]
    assert arrived.rows.session_N.tolist() == [0] * 6
    assert len(set(arrived.rows.user_N.tolist())) == 2


def test_items_are_found_again_when_the_facts_are_gone(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(3, 9))
    (cut,) = feed.commit_all()
    shutil.rmtree(feed.folder / "store" / "parts")
    assert cut_items(LedgerReader(feed.store), cut, COLUMNS).tolist() == [3, 4, 5, 6, 0, 1, 2]


def test_cuts_by_events_wait_for_the_commit_and_then_take_all_that_waits(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5))
    assert len(flat(feed.poll(), "cuts")) == 1
    for name in "bcd":
        feed.land(f"{name}.parquet", events(ord(name) * 10, 5))
    assert flat(feed.poll(3), "cuts") == []
    feed.committed = 0
    (cut,) = flat(feed.poll(1), "cuts")
    assert (len(cut.ranges), cut.num_rows) == (3, 15)


def test_min_events_wait_until_the_oldest_shard_has_waited_long_enough(tmp_path):
    feed = Feed(tmp_path, min_events=10, max_wait_s=2.0)
    feed.land("a.parquet", events(0, 5))
    feed.commit_all()
    feed.land("b.parquet", events(9, 5))
    assert flat(feed.poll(3, step_s=0.5), "cuts") == []
    assert len(flat(feed.poll(3, step_s=0.5), "cuts")) == 1
    feed.committed = 1
    feed.land("c.parquet", events(20, 10))
    assert len(flat(feed.poll(2, step_s=0.5), "cuts")) == 1


def test_cuts_by_shard_run_ahead_of_the_commit_but_not_far(tmp_path):
    feed = Feed(tmp_path, cut="shard", max_events=2)
    for number in range(6):
        feed.land(f"{number}.parquet", events(number * 10, 5))
    cuts = flat(feed.poll(3), "cuts")
    assert [(cut.number, len(cut.ranges), cut.num_rows) for cut in cuts] == [(0, 1, 5), (1, 1, 5)]
    feed.committed = 0
    assert [cut.number for cut in flat(feed.poll(1), "cuts")] == [2]


def test_the_warm_up_is_cut_0_whatever_its_size(tmp_path):
    feed = Feed(tmp_path, warmup_shards=2, max_events=10)
    feed.land("a.parquet", events(0, 50))
    assert flat(feed.poll(3), "cuts") == []
    feed.land("b.parquet", events(50, 50))
    (cut,) = flat(feed.poll(), "cuts")
    assert cut.num_rows == 100


def test_no_cut_beyond_the_last_one(tmp_path):
    feed = Feed(tmp_path, max_events=2)
    feed.restart(last_cut=1)
    feed.land("a.parquet", events(0, 5))
    feed.land("b.parquet", events(5, 50))
    assert [cut.number for cut in feed.commit_all()] == [0, 1]


def test_a_restart_keeps_names_contents_and_pending_rows(tmp_path):
    feed = Feed(tmp_path, max_events=4)
    feed.land("a.parquet", events(0, 5))
    feed.land("b.parquet", events(5, 10))
    feed.poll()
    assert feed.keeper.stop() == 0
    assert feed.keeper.stop() == 0
    feed.restart()
    assert feed.keeper.backlog_rows == 10
    cuts = feed.commit_all()
    assert cuts == []
    feed.committed = 0
    cuts = feed.commit_all()
    assert [cut.num_rows for cut in cuts] == [4, 4, 2]
    assert [type(entry) for entry in LedgerReader(feed.store).entries()].count(Shard) == 2


def test_many_files_come_in_by_name_a_portion_a_poll(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper_module, "_FILES_PER_POLL", 3)
    feed = Feed(tmp_path)
    for number in reversed(range(7)):
        feed.land(f"{number}.parquet", events(number * 10, 1))
    polls = feed.poll(4)
    assert [len(poll.shards) for poll in polls] == [0, 3, 3, 1]
    assert [shard.uri[-9:] for shard in flat(polls, "shards")] == [f"{number}.parquet" for number in range(7)]


def test_a_shard_that_changed_after_it_was_recorded_is_refused(tmp_path):
    feed = Feed(tmp_path)
    feed.land("a.parquet", events(0, 5))
    (cut,) = feed.commit_all()
    feed.land("a.parquet", events(0, 500))
    with pytest.raises(ValueError, match="a shard never changes"):
        feed.rows(cut)
    feed.path("a.parquet").unlink()
    with pytest.raises(ValueError, match="put it back"):
        feed.rows(cut)


def test_an_object_store_is_listed_and_read_through_its_own_file_system(tmp_path, monkeypatch):
    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    monkeypatch.setattr(landing_module, "_resolve", lambda uri: (bucket, uri.removeprefix("s3://")))
    feed = Feed(tmp_path, warmup_shards=2)
    feed.landing = Landing("s3://landing/")
    feed.restart()
    assert flat(feed.poll(), "shards") == []
    (tmp_path / "bucket" / "landing").mkdir(parents=True)
    for number in range(2):
        feed.land(f"shard-{number:06d}.parquet", events(number * 20, 20))
    feed.land(".hidden.parquet", events(0, 5))
    (cut,) = feed.commit_all()
    assert feed.rows(cut).rows.ts_N.tolist() == [row * 1000 for row in range(40)]
    assert LedgerReader(feed.store).shard(cut.ranges[0].shard).uri == "s3://landing/shard-000000.parquet"
    assert feed.landing.num_landed() == 2
