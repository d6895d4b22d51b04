"""The ledger: order, epochs, restarts, and what a cut says of the stream."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import FencedError, StoreError
from headrace.feed.entries import Dropped, Open, Release, Shard, decode, encode
from headrace.feed.ledger import LedgerReader, LedgerState, LedgerWriter, entry_number
from headrace.records import KEY_GROUPS, Cut, RowRange
from headrace.store.fence import take_epoch
from headrace.store.store import PartRef, Store


def shard(name, num_rows, duplicate_of=None, dropped=()):
    group_rows = (num_rows,) + (0,) * (KEY_GROUPS - 1)
    return Shard(
        0, f"/in/{name}", f"sha-{name}", 10, num_rows, 0, 0, group_rows, (("item_id", "int64"),), duplicate_of,
        PartRef("0" * 64, 1), Dropped(tuple(dropped), (("torn", len(dropped)),), ("row 0: {}",)),
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
    release = writer.release(cut)
    reopened = writer.release(aside)
    stop = writer.stop()
    assert list(LedgerReader(store).entries()) == [Open(1, 1, 0), first, again, aside, cut, release, reopened, stop]
    assert (cut.number, cut.ranges, cut.record) == (0, (RowRange(first.number, 0, 3),), 5)
    assert (cut.events_in, cut.duplicate, cut.quarantined, cut.pending) == (10, 5, 0, 2)
    assert (release.of, release.ranges, release.num_rows) == (5, (RowRange(first.number, 0, 3, released=True),), 3)
    assert (reopened.of, reopened.uri, reopened.ranges) == (aside.number, "/in/c", ())
    for entry in (first, aside, cut, release, stop):
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


def test_a_released_cuts_rows_wait_behind_all_others(store):
    writer = opened(store)
    first, second = (writer.shard(shard(name, 4, dropped=[1])).number for name in "ab")
    rejected = writer.cut(max_rows=5)
    assert rejected.ranges == (RowRange(first, 0, 4, 1), RowRange(second, 0, 3, 1))
    writer.release(rejected)
    assert opened(store).state.pending == writer.state.pending
    writer = opened(store)
    cut = writer.cut(max_rows=2)
    assert cut.ranges == (RowRange(second, 3, 4), RowRange(first, 0, 2, 1, released=True))
    assert (cut.events_in, cut.quarantined, cut.released, cut.pending) == (8, 2, 5, 4)
    assert writer.state.released == {rejected.record}


def test_a_file_that_is_looked_at_again_comes_in_anew(store):
    writer = opened(store)
    aside = writer.quarantine("/in/a", "sha-old", 7, 5, "torn")
    assert (writer.state.events_in, writer.state.quarantined) == (5, 5)
    writer.release(aside)
    assert (writer.state.events_in, writer.state.quarantined, writer.state.uris) == (0, 0, set())
    landed = writer.shard(shard("a", 6))
    assert writer.cut().ranges == (RowRange(landed.number, 0, 6, released=True),)
    assert writer.state.settled_files(0) == 1


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


def grown(writer, num_cuts):
    """Cuts of one shard each, folded as if each were committed at once."""
    cuts = []
    for _ in range(num_cuts):
        writer.shard(shard(f"s{writer.state.last_record}", 2))
        cuts.append(writer.cut())
        writer.fold(cuts[-1].record, page_lines=4)
    return cuts


def test_settled_records_fold_into_few_objects_and_read_as_before(store):
    writer, before = opened(store), LedgerReader(store)
    assert before.last_record == 1
    cuts = grown(writer, 200)
    assert len(store.names("ledger")) < 4
    assert len(store.names("ledger/folded")) <= 2 * 16
    for reader in (before, LedgerReader(store)):
        assert [reader.cut(number) for number in (0, 199, 57, 58)] == [cuts[number] for number in (0, 199, 57, 58)]
        assert reader.shard(cuts[3].ranges[0].shard).num_rows == 2
    assert len(list(LedgerReader(store).entries())) == 401
    assert [cut.number for cut in LedgerReader(store).tail(150, never)] == list(range(151, 200))
    assert opened(store).state.__dict__.keys() == writer.state.__dict__.keys()
    assert opened(store).state.events_in == writer.state.events_in == 400
    with pytest.raises(StoreError, match="no record 9999"):
        before.entry(9999)


def test_a_fold_that_was_cut_short_is_finished_by_the_next(store):
    writer = opened(store)
    grown(writer, 2)
    record = store.get(f"ledger/{store.names('ledger')[0]}")
    store.put("ledger/00000001-0000000002.json", record)  # as if it had not been deleted yet
    assert len(list(LedgerReader(store).entries())) == 5
    cuts = grown(opened(store), 2)
    assert "00000001-0000000002.json" not in store.names("ledger")
    assert LedgerReader(store).last_cut == cuts[-1].number == 3


def test_what_is_folded_voids_an_older_epochs_last_breath(store):
    opened(store)
    newer = opened(store)
    grown(newer, 3)
    assert LedgerReader(store).last_record == 8
    assert store.names("ledger") == []
    store.put("ledger/00000001-0000000009.json", encode(shard("late", 9), 0))
    assert LedgerReader(store).last_record == 8
    assert LedgerReader(store).newest_epoch == 2
    assert opened(store).state.events_in == 6


def test_an_older_writer_folds_nothing(store):
    old = opened(store)
    grown(old, 1)
    opened(store)
    with pytest.raises(FencedError):
        old.fold(3, page_lines=1)
    assert store.names("ledger/folded") == []


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("shard"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("bad rows"), st.integers(2, 9), st.booleans()),
        st.tuples(st.just("release"), st.integers(0, 20), st.booleans()),
        st.tuples(st.just("quarantine"), st.integers(0, 9), st.just(False)),
        st.tuples(st.just("cut"), st.integers(1, 12), st.booleans()),
        st.tuples(st.just("restart"), st.just(0), st.booleans()),
        st.tuples(st.just("fold"), st.integers(1, 3), st.booleans()),
    ),
    max_size=25,
)


class Played:
    """A ledger, and what was done to it."""

    def __init__(self, store):
        self.store, self.writer = store, opened(store)
        self.original, self.cuts, self.asides = None, [], []

    def play(self, name, what, size, flag):
        match what:
            case "shard":
                again = self.original if flag else None
                landed = self.writer.shard(shard(name, again.num_rows if again else size, again and again.number))
                self.original = self.original or landed
            case "bad rows":
                self.writer.shard(shard(name, size, dropped=[0, size // 2][: 1 + flag] if size > 2 else [1]))
            case "quarantine":
                self.asides.append(self.writer.quarantine(f"/in/{name}", f"sha-{name}", 1, size, "torn"))
            case "release":
                self.release(size, self.asides + self.cuts if flag else self.asides)
            case "cut":
                self.cuts.append(self.writer.cut(num_shards=1) if flag else self.writer.cut(max_rows=size))
            case "restart":
                if flag:
                    self.writer.stop()
                self.writer = opened(self.store)
            case "fold" if self.cuts:
                self.writer.fold(self.cuts[-1 if flag else 0].record, page_lines=2)

    def release(self, place, entries):
        if waiting := [entry for entry in entries if entry_number(entry) not in self.writer.state.released]:
            self.writer.release(waiting[place % len(waiting)])


def rows_of(reader, part):
    dropped = reader.shard(part.shard).dropped.rows
    return [(part.shard, row) for row in range(part.start, part.stop) if row not in dropped]


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_conservation_at_every_cut_and_across_restarts(tmp_path_factory, operations):
    played = Played(Store(str(tmp_path_factory.mktemp("ledger"))))
    for step, operation in enumerate(operations):
        played.play(f"s{step}", *operation)
    reader, state, taken = LedgerReader(played.store), LedgerState(), []
    for entry in reader.entries():
        state.apply(entry)
        if isinstance(entry, Release):  # rows of a cut that was put back are to be taken once more
            again = {row for part in entry.ranges for row in rows_of(reader, part)}
            taken = [row for row in taken if row not in again]
        if isinstance(entry, Cut):
            new = [row for part in entry.ranges for row in rows_of(reader, part)]
            assert len(new) == entry.num_rows
            taken += new
            assert entry.events_in == len(taken) + entry.duplicate + entry.quarantined + entry.pending
            assert (state.events_in, state.num_pending) == (entry.events_in, entry.pending)
    assert [cut.number for cut in played.cuts] == list(range(len(played.cuts)))
    assert [reader.cut(cut.number) for cut in played.cuts] == played.cuts
    assert len(set(taken)) == len(taken)
    assert state.num_released or taken == sorted(taken)
