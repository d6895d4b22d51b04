"""Shards leave what the run made of them once they are trained; what somebody may still ask for stays."""

import pytest
from loop_kit import Stream, events, partial_run, recipe

from headrace.errors import StoreError
from headrace.feed.landing import shard_name
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows
from headrace.records import KEY_GROUPS
from headrace.store.fence import take_epoch
from headrace.train.group import Solo
from headrace.train.sweeper import Sweeper


@pytest.fixture
def stream(tmp_path):
    made = Stream(tmp_path, recipe("feed.cut=events", "feed.max_events=150"))
    for shard in range(4):
        made.land(events(100, seed=shard, start_ms=shard * 3_600_000))
    return made


def swept(stream, rejected=(), landing=True):
    """A sweeper that has seen the whole ledger; ``cuts`` of it are 100, 150, 150 rows."""
    cuts = stream.cuts(LedgerWriter.open(stream.store, take_epoch(stream.store)))
    sweeper = Sweeper(stream.store, stream.landing if landing else None)
    for entry in LedgerReader(stream.store).entries():
        sweeper.note(entry)
    return cuts, sweeper


def files(stream):
    return [name for name, _ in stream.landing.list_new(())]


def has_facts(stream, shard):
    try:
        return bool(stream.store.get_part(LedgerReader(stream.store).shard(shard).facts))
    except StoreError:
        return False


def test_a_shard_goes_when_all_of_its_rows_are_committed_and_the_newest_file_stays(stream):
    cuts, sweeper = swept(stream)
    assert [cut.num_rows for cut in cuts] == [100, 150, 150]
    sweeper.committed(0, rejected=False)
    assert files(stream) == [shard_name(number) for number in (1, 2, 3)]
    sweeper.committed(1, rejected=False)
    assert files(stream) == [shard_name(number) for number in (2, 3)], "half of shard 2 waits"
    numbers = [cuts[0].ranges[0].shard, cuts[2].ranges[0].shard]
    assert [has_facts(stream, number) for number in numbers] == [False, True]
    sweeper.committed(2, rejected=False)
    assert files(stream) == [shard_name(3)]
    assert stream.landing.num_landed() == 4
    assert not has_facts(stream, cuts[2].ranges[0].shard)


def test_what_was_rejected_stays_for_a_release(stream):
    cuts, sweeper = swept(stream)
    sweeper.committed(0, rejected=False)
    sweeper.committed(1, rejected=True)
    sweeper.committed(2, rejected=False)
    assert files(stream) == [shard_name(number) for number in (1, 2, 3)]
    rows = cut_rows(LedgerReader(stream.store), cuts[1], stream.recipe.columns, range(KEY_GROUPS))
    assert len(rows.rows) == 150


def test_files_of_somebody_else_stay_and_their_facts_are_found_in_them(stream):
    cuts, sweeper = swept(stream, landing=False)
    reader = LedgerReader(stream.store)
    before = cut_rows(reader, cuts[0], stream.recipe.columns, range(KEY_GROUPS)).item_I
    for cut in cuts:
        sweeper.committed(cut.number, rejected=False)
    assert files(stream) == [shard_name(number) for number in range(4)]
    assert not has_facts(stream, cuts[0].ranges[0].shard)
    assert (cut_rows(reader, cuts[0], stream.recipe.columns, range(KEY_GROUPS)).item_I == before).all()


def test_training_goes_on_behind_the_sweeper_and_after_a_new_start(stream):
    cuts, sweeper = swept(stream)
    epoch = take_epoch(stream.store)
    for cut in cuts:
        (made,) = partial_run(stream, epoch, cuts, cut.number, None)(Solo())
        assert made.cut == cut.number
        sweeper.committed(cut.number, made.verdict == "reject")
    assert files(stream) == [shard_name(3)]
    again = swept(stream)[1]
    for cut in cuts:
        again.committed(cut.number, rejected=False)
    assert files(stream) == [shard_name(3)]
