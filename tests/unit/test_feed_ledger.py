"""The ledger: order, epochs, restarts, and what a cut says of the stream."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import FencedError, StoreError
from headrace.feed.entries import Open, Shard, decode, encode
from headrace.feed.ledger import LedgerReader, LedgerState, LedgerWriter
from headrace.records import KEY_GROUPS, Cut, RowRange
from headrace.store.fence import take_epoch
from headrace.store.store import PartRef, Store


def shard(name, num_rows, duplicate_of=None):
    group_rows = (num_rows,) + (0,) * (KEY_GROUPS - 1)
    return Shard(
        0, f"/in/{name}", f"sha-{name}", 10, num_rows, 0, 0, group_rows, (("item_id", "int64"),), duplicate_of,
        PartRef("0" * 64, 1),
    )  # fmt: skip


def opened(store):
    return LedgerWriter.open(store, take_epoch(store))


def never():
    return False


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_an_empty_ledger(store):
    reader = LedgerReader(store)
    assert (reader.last_record, reader.last_cut, list(reader.entries())) == (0, -1, [])


def test_records_come_back_as_they_were_written(store):
    writer = opened(store)
    first = writer.shard(shard("a", 5))
    again = writer.shard(shard("b", 5, duplicate_of=first.number))
    aside = writer.quarantine("/in/c", "sha-c", 7, 0, "torn")
    cut = writer.cut(max_rows=3)
    stop = writer.stop()
    assert list(LedgerReader(store).entries()) == [Open(1, 1, 0), first, again, aside, cut, stop]
    assert (cut.number, cut.ranges, cut.record) == (0, (RowRange(first.number, 0, 3),), 5)
    assert (cut.events_in, cut.duplicate, cut.quarantined, cut.pending) == (10, 5, 0, 2)
    for entry in (first, aside, cut, stop):
        assert decode(encode(entry, 4)) == (entry, 4)


def test_a_damaged_record_is_named(store):
    opened(store)
    store.put("ledger/00000001-0000000001.json", b'{"kind":"shard"')
    with pytest.raises(StoreError, match="damaged"):
        list(LedgerReader(store).entries())


def test_a_cut_is_found_by_its_number_also_when_appended_later(store):
    writer, cuts = opened(store), []
    reader = LedgerReader(store)
    assert reader.last_cut == -1
    for number in range(9):
        writer.shard(shard(f"s{number}", 4))
        cuts.append(writer.cut())
    assert [reader.cut(number) for number in range(9)] == cuts
    assert LedgerReader(store).last_cut == 8
    with pytest.raises(StoreError, match="no record"):
        reader.cut(9)


def test_a_large_shard_is_cut_into_ranges_and_small_ones_are_joined(store):
    writer = opened(store)
    numbers = [writer.shard(shard(name, rows)).number for name, rows in (("a", 7), ("b", 2), ("c", 2))]
    assert writer.cut(max_rows=5).ranges == (RowRange(numbers[0], 0, 5),)
    assert writer.cut(max_rows=5).ranges == (RowRange(numbers[0], 5, 7), RowRange(numbers[1], 0, 2),
                                             RowRange(numbers[2], 0, 1))  # fmt: skip
    assert writer.cut(num_shards=1).ranges == (RowRange(numbers[2], 1, 2),)
    assert writer.state.num_pending == 0


def test_a_new_writer_goes_on_from_what_is_there(store):
    writer = opened(store)
    first = writer.shard(shard("a", 7))
    writer.cut(max_rows=5)
    writer.stop()
    second = opened(store)
    assert second.state.last_record == 5
    assert second.state.shard_of == {"sha-a": first.number}
    assert second.state.uris == {"/in/a"}
    assert second.cut().ranges == (RowRange(first.number, 5, 7),)


def test_an_older_writer_is_fenced_off(store):
    old = opened(store)
    opened(store)
    with pytest.raises(FencedError):
        old.shard(shard("late", 1))


def test_records_of_a_stale_epoch_are_void(store):
    old = opened(store)
    old.shard(shard("a", 3))
    newer = take_epoch(store)
    fresh = LedgerWriter.open(store, newer)
    # what an older writer's last breath would have left behind the newer one's open record
    late = shard("late", 9)
    store.put("ledger/00000001-0000000003.json", encode(late, 0))
    store.put("ledger/00000001-0000000004.json", encode(late, 0))
    kept = fresh.shard(shard("b", 2))
    entries = list(LedgerReader(store).entries())
    assert [type(entry) for entry in entries] == [Open, Shard, Open, Shard]
    assert entries[3] == kept
    assert opened(store).state.events_in == 5


def test_an_epoch_that_never_saw_another_voids_it(store):
    first, second = take_epoch(store), take_epoch(store)
    store.put("ledger/00000001-0000000001.json", encode(Open(1, 1, 0), 0))
    store.put("ledger/00000001-0000000002.json", encode(shard("a", 3), 0))
    store.put("ledger/00000002-0000000001.json", encode(Open(1, 2, 0), 0))
    assert first.number < second.number
    assert list(LedgerReader(store).entries()) == [Open(1, 2, 0)]
    assert len(list(LedgerReader(store, epoch=1).entries())) == 2


def test_a_ledger_copied_without_its_epochs_is_refused(store):
    for _ in range(2):
        opened(store)
    for name in store.names("epochs"):
        store.delete(f"epochs/{name}")
    with pytest.raises(StoreError, match="needs its folder epochs/ too"):
        opened(store)


def test_a_tail_begins_after_a_cut_and_ends_at_this_epochs_stop(store):
    writer = opened(store)
    for name in "abc":
        writer.shard(shard(name, 2))
        writer.cut()
    writer.stop()
    assert [cut.number for cut in LedgerReader(store).tail(0, never)] == [1, 2]
    assert [cut.number for cut in LedgerReader(store).tail(-1, never)] == [0, 1, 2]
    writer = opened(store)
    writer.shard(shard("d", 2))
    writer.cut()
    asked = []
    assert [cut.number for cut in LedgerReader(store).tail(1, lambda: bool(asked.append(1)))] == [2, 3]
    assert asked == [1]
    writer.stop()
    assert [cut.number for cut in LedgerReader(store).tail(1, never)] == [2, 3]
    assert [cut.number for cut in LedgerReader(store, epoch=1).tail(1, never)] == [2]


def test_a_tail_waits_for_the_next_name(store):
    writer = opened(store)
    left = ["a", "b"]

    def land():
        if not left:
            return False
        writer.shard(shard(left.pop(0), 1))
        writer.cut()
        return True

    assert [cut.number for cut in LedgerReader(store).tail(-1, land)] == [0, 1]


def test_settled_files_wait_for_the_commit_that_takes_their_last_row(store):
    writer = opened(store)
    state = writer.state
    first = writer.shard(shard("a", 4))
    writer.shard(shard("b", 4))
    assert state.settled_files(-1) == 0
    writer.shard(shard("a2", 4, duplicate_of=first.number))
    writer.shard(shard("empty", 0))
    writer.quarantine("/in/q", "sha-q", 1, 0, "torn")
    assert state.settled_files(-1) == 3
    writer.cut(max_rows=6)
    writer.cut()
    assert [state.settled_files(cut) for cut in (-1, 0, 1)] == [3, 4, 5]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("shard"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("quarantine"), st.integers(0, 9), st.just(False)),
        st.tuples(st.just("cut"), st.integers(1, 12), st.booleans()),
        st.tuples(st.just("restart"), st.just(0), st.booleans()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_conservation_at_every_cut_and_across_restarts(tmp_path_factory, operations):
    store = Store(str(tmp_path_factory.mktemp("ledger")))
    writer, originals, cuts = opened(store), [], []
    for step, (what, size, flag) in enumerate(operations):
        match what:
            case "shard":
                original = originals[0] if flag and originals else None
                rows = original.num_rows if original else size
                landed = writer.shard(shard(f"s{step}", rows, original.number if original else None))
                originals += [] if original else [landed]
            case "quarantine":
                writer.quarantine(f"/in/q{step}", f"sha-q{step}", 1, size, "torn")
            case "cut":
                cuts.append(writer.cut(num_shards=1) if flag else writer.cut(max_rows=size))
            case "restart":
                if flag:
                    writer.stop()
                writer = opened(store)
    reader, state, taken = LedgerReader(store), LedgerState(), []
    for entry in reader.entries():
        state.apply(entry)
        if isinstance(entry, Cut):
            taken += [(part.shard, row) for part in entry.ranges for row in range(part.start, part.stop)]
            assert entry.events_in == len(taken) + entry.duplicate + entry.quarantined + entry.pending
            assert (state.events_in, state.num_pending) == (entry.events_in, entry.pending)
    assert [cut.number for cut in cuts] == list(range(len(cuts)))
    assert [reader.cut(cut.number) for cut in cuts] == cuts
    assert len(set(taken)) == len(taken)
    assert taken == sorted(taken)
