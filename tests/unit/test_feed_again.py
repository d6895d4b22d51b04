"""Rows of a window out of the ledger: after the cut's own, alike with and without Ray Data, kept for so long."""

import dataclasses

import numpy as np
import pytest
from loop_kit import Stream, events, partial_run, recipe

from headrace.feed.entries import decode, encode
from headrace.feed.landing import shard_name
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows, key_groups
from headrace.feed.stream import StreamSpec, _read, iter_cuts
from headrace.feed.window import picked_N
from headrace.records import KEY_GROUPS, Rows
from headrace.store.fence import take_epoch
from headrace.train.group import Solo
from headrace.train.sweeper import Sweeper

HOUR_MS = 3_600_000
PIT = 'feed.window={kind="pit",buckets=2,window_s=7200}'


@pytest.fixture
def stream(tmp_path):
    made = Stream(tmp_path, recipe(PIT))
    for shard in range(6):
        made.land(events(100, seed=shard, start_ms=shard * HOUR_MS))
    return made


def cuts_of(stream):
    epoch = take_epoch(stream.store)
    return epoch, stream.cuts(LedgerWriter.open(stream.store, epoch))


def assert_alike(one: Rows, other: Rows):
    for name, column in one.__dict__.items():
        if name != "context":
            np.testing.assert_array_equal(column, getattr(other, name), err_msg=name)


def test_a_cut_comes_back_from_its_record_with_and_without_a_window(stream):
    cut = cuts_of(stream)[1][3]
    assert cut.window is not None
    for one in (cut, dataclasses.replace(cut, window=None)):
        assert decode(encode(one, 4)) == (one, 4)
    old = encode(dataclasses.replace(cut, window=None), 4).replace(b',"window":null', b"")
    assert decode(old)[0].window is None


def test_a_window_holds_the_rows_of_whose_turn_it_is_in_ledger_order(stream):
    reader, cuts = LedgerReader(stream.store), cuts_of(stream)[1]
    assert [cut.window.first for cut in cuts] == [0, 0, 0, 1, 2, 3]
    part = cut_rows(reader, cuts[3], stream.recipe.columns, range(KEY_GROUPS))
    assert len(part.rows) == 100, "the cut's own rows are all there, whoever's turn it is"
    expected = []
    for number in (1, 2):
        rows = cut_rows(reader, cuts[number], stream.recipe.columns, range(KEY_GROUPS)).rows
        mine_N = picked_N(cuts[3].window, rows.user_N, rows.session_N)
        expected += [(number, shard, row) for shard, row in zip(rows.shard_N[mine_N], rows.row_N[mine_N], strict=True)]
    again = part.again
    assert list(zip(again.cut_N, again.rows.shard_N, again.rows.row_N, strict=True)) == expected
    assert 30 < len(expected) < 170


def test_ranks_share_a_window_by_key_group(stream):
    reader, cut = LedgerReader(stream.store), cuts_of(stream)[1][4]
    ranks = [cut_rows(reader, cut, stream.recipe.columns, key_groups(rank, 2)).again for rank in range(2)]
    whole = cut_rows(reader, cut, stream.recipe.columns, range(KEY_GROUPS)).again
    assert all(len(rank.cut_N) for rank in ranks)
    assert set(ranks[0].rows.group_N % 2) == {0}
    assert sorted(np.concatenate([rank.rows.event_N for rank in ranks])) == sorted(whole.rows.event_N)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_read_task_yields_the_same_rows_and_the_cut_is_put_together_again(stream, rank):
    epoch, cuts = cuts_of(stream)
    spec = StreamSpec(stream.store.uri, epoch.number, -1, stream.recipe.columns, block_bytes=1024, last_cut=5)
    blocks = list(_read(spec, key_groups(rank, 2)))
    kinds = [set(block["shard"].to_numpy() < 0) for block in blocks]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds[-1] == {True}
    arrived = list(iter_cuts(blocks, spec))
    assert [part.cut for part in arrived] == cuts
    reader = LedgerReader(stream.store)
    for part in arrived:
        direct = cut_rows(reader, part.cut, stream.recipe.columns, key_groups(rank, 2))
        assert_alike(part.rows, direct.rows)
        assert_alike(part.again.rows, direct.again.rows)
        np.testing.assert_array_equal(part.again.cut_N, direct.again.cut_N)


def test_files_stay_while_a_window_reaches_them_and_go_behind_it(stream):
    epoch, cuts = cuts_of(stream)
    sweeper = Sweeper(stream.store, stream.landing)
    for entry in LedgerReader(stream.store).entries():
        sweeper.note(entry)
    for cut in cuts:
        partial_run(stream, epoch, cuts, cut.number, None)(Solo())
        sweeper.committed(cut.number, rejected=False)
        there = [name for name, _ in stream.landing.list_new(())]
        assert there == [shard_name(number) for number in range(cut.window.first, 6)]


def test_a_cut_without_rows_has_a_window_of_rows_that_have_names(tmp_path):
    stream = Stream(tmp_path, recipe('feed.window={kind="all"}'))
    table = events(50, seed=0)
    stream.land(table.set_column(0, "item_id", table["item_id"].cast("string")))
    epoch = take_epoch(stream.store)
    writer = LedgerWriter.open(stream.store, epoch)
    stream.cuts(writer)
    empty = writer.cut(max_rows=0, window=stream.recipe.feed.window)
    part = cut_rows(LedgerReader(stream.store), empty, stream.recipe.columns, range(KEY_GROUPS))
    assert (len(part.rows), len(part.again.rows)) == (0, 50)
    spec = StreamSpec(stream.store.uri, epoch.number, 0, stream.recipe.columns, block_bytes=1024, last_cut=1)
    rows, flush = _read(spec, range(KEY_GROUPS))
    assert rows.schema == flush.schema
    (arrived,) = iter_cuts([rows, flush], spec)
    assert_alike(arrived.again.rows, part.again.rows)
