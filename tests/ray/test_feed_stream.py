"""Cuts through Ray Data: whole, in order, every row once, on both ranks."""

import gc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from ray.data._internal.execution.operators.map_operator import MapOperator

from headrace.config.feed import ColumnsConfig, FeedConfig
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, shard_name
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows, key_groups
from headrace.feed.stream import StreamSpec, iter_cuts, make_dataset
from headrace.store.fence import take_epoch
from headrace.store.store import Store

pytestmark = pytest.mark.ray
WORLD = 2


def events(first, num_rows, session_of=lambda row: row // 3, **columns):
    rows = np.arange(first, first + num_rows)
    return pa.table(
        {
            "item_id": rows % 911,
            "ts": rows * 1000,
            "session_id": np.array([session_of(int(row)) for row in rows], np.int64),
        }
        | columns
    )


class Feed:
    """Lands tables and records each as a cut of its own."""

    def __init__(self, folder, columns):
        self.store, self.columns = Store(str(folder / "store")), columns
        self.landing = Landing(str(folder / "landing"))
        self.num_landed, self.now_s = 0, 0.0
        self.open()

    def open(self):
        writer = LedgerWriter.open(self.store, take_epoch(self.store))
        self.spec = StreamSpec(self.store.uri, writer.epoch.number, -1, self.columns)
        self.keeper = Keeper(FeedConfig(cut="shard"), self.columns, self.landing, writer, cuts_ahead=100)

    def land(self, *tables):
        for table in tables:
            self.landing.land(shard_name(self.num_landed), table)
            self.num_landed += 1
        for _ in range(2):
            self.now_s += 1.0
            self.keeper.poll(self.now_s, -1)


@pytest.fixture
def make_feed(tmp_path, ray_cluster):
    return lambda columns=ColumnsConfig(): Feed(tmp_path, columns)  # noqa: B008 (a frozen recipe)


def stream(spec, rank, prefetch_batches=0):
    dataset = make_dataset(rank, WORLD, spec)
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_batches)
    return iter_cuts(batches, spec)


def assert_same(arrived, feed, rank):
    """What came through Ray is what the ledger says without it."""
    reader = LedgerReader(feed.store)
    expected = cut_rows(reader, reader.cut(arrived.cut.number), feed.columns, key_groups(rank, WORLD))
    assert arrived.cut == expected.cut
    assert arrived.item_I.tolist() == expected.item_I.tolist()
    for name in ("shard", "row", "group", "user", "session", "item", "ts", "kind", "target", "weight", "event"):
        np.testing.assert_array_equal(getattr(arrived.rows, f"{name}_N"), getattr(expected.rows, f"{name}_N"))
    assert arrived.rows.context.keys() == expected.rows.context.keys()


@pytest.mark.parametrize("prefetch_batches", [0, 1])
def test_cuts_of_every_size_arrive_whole_in_order_on_both_ranks(make_feed, prefetch_batches):
    feed = make_feed()
    sizes = (1, 200, 5000, 20000, 1, 1, 200)
    firsts = np.cumsum([0, *sizes])
    feed.land(*(events(start, stop - start) for start, stop in pairwise(firsts.tolist())))
    feed.keeper.stop()
    read = [list(stream(feed.spec, rank, prefetch_batches)) for rank in range(WORLD)]
    for rank, cuts in enumerate(read):
        assert [part.cut.num_rows for part in cuts] == list(sizes)
        for part in cuts:
            assert_same(part, feed, rank)
    totals = [sum(len(part.rows) for part in cuts) for cuts in zip(*read, strict=True)]
    assert totals == list(sizes)


def test_rows_arrive_while_the_stream_goes_on_and_both_ranks_end_after_the_same_cut(make_feed):
    feed = make_feed()
    ranks = [stream(feed.spec, rank) for rank in range(WORLD)]
    for number, size in enumerate((300, 1, 4000, 2)):
        feed.land(events(number * 10_000, size))
        for rank, cuts in enumerate(ranks):
            arrived = next(cuts)
            assert arrived.cut.number == number
            assert_same(arrived, feed, rank)
    assert feed.keeper.stop() == 3
    assert [next(cuts, None) for cuts in ranks] == [None, None]


def test_a_rank_without_rows_still_sees_every_cut(make_feed):
    feed = make_feed(ColumnsConfig(context=("note",)))
    feed.land(events(0, 500, session_of=lambda row: 7), events(500, 300, session_of=lambda row: 7, note=["n"] * 300))
    feed.keeper.stop()
    read = [list(stream(feed.spec, rank)) for rank in range(WORLD)]
    assert [[part.cut.number for part in cuts] for cuts in read] == [[0, 1], [0, 1]]
    assert sorted(sum(len(part.rows) for part in cuts) for cuts in read) == [0, 800]
    for rank, cuts in enumerate(read):
        for part in cuts:
            assert_same(part, feed, rank)


def test_string_ids_and_a_start_after_a_committed_cut(make_feed):
    feed = make_feed()
    names = [f"item-{row % 13}" for row in range(400)]
    feed.land(*(events(start, 100, item_id=names[start : start + 100]) for start in range(0, 400, 100)))
    feed.keeper.stop()
    feed.open()  # a new epoch skips the stop record of the one before
    feed.land(events(400, 100, item_id=names[:100]))
    feed.keeper.stop()
    for rank in range(WORLD):
        cuts = list(stream(replace(feed.spec, after_cut=1), rank))
        assert [part.cut.number for part in cuts] == [2, 3, 4]
        for part in cuts:
            assert_same(part, feed, rank)


def test_nothing_is_kept_of_blocks_that_have_been_read(make_feed):
    feed = make_feed()
    feed.land(*(events(100 * cut, 100) for cut in range(5)))
    spec = replace(feed.spec, last_cut=4)
    batches = make_dataset(0, 1, spec).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    assert len(list(iter_cuts(batches, spec))) == 5
    operators = [held for held in gc.get_objects() if isinstance(held, MapOperator)]
    assert operators
    assert not any(stats for operator in operators for stats in operator.get_stats().values())
