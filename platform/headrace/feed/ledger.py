"""The append-only ledger of shards and cuts: the only source of order.

Each record is one small object, ``ledger/EPOCH-NUMBER.json``; numbers go on from epoch to epoch. A writer opens its
epoch with an *open* record right after the last valid one, which voids whatever an older writer still appends there.
So the valid ledger is read off the names alone, a tail asks for the next name and lists nothing, and nothing is ever
appended to or renamed. Records that a commit has settled are folded into pages (``LedgerWriter.fold``), each marked
with the epoch of its last record, so that the ledger stays a few dozen objects. What a cut says of the stream is a
pure function of the records before it (``LedgerState``).
"""

import bisect
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.commit.rollbacks import Request
from headrace.config.feed import WindowConfig
from headrace.errors import StoreError
from headrace.feed.entries import Entry, GoBack, Open, Quarantine, Release, Shard, Stop, decode, encode
from headrace.feed.window import Reach
from headrace.records import Cut, ItemsFile, Rollback, RowRange
from headrace.store.fence import Epoch, check_epoch
from headrace.store.pages import PAGE_LINES, Page, Pages
from headrace.store.store import Store

_Record = TypeVar("_Record", Open, Shard, Quarantine, Release, GoBack, Cut, Stop)
_FOLDER = "ledger"
_FOLDED = "ledger/folded"
_CACHED_RECORDS = 128
_TAIL_POLL_S = 0.02


def wait_a_little() -> bool:
    """What a tail does by default when the next record is not there yet: sleep 20 ms and go on."""
    time.sleep(_TAIL_POLL_S)
    return True


@dataclass(frozen=True)
class _Span:
    """Records ``first`` to ``last`` belong to ``epoch``."""

    first: int
    last: int
    epoch: int


class LedgerReader:
    """Reads the ledger as the writer of ``epoch`` sees it (None: of the newest epoch). Lists once, when first used."""

    def __init__(self, store: Store, epoch: int | None = None) -> None:
        self.store = store
        self._epoch = epoch
        self._pages = Pages(store, _FOLDED)
        self._spans: list[_Span] | None = None
        self._newest = 0
        """The newest record that ``cut`` has met."""
        self._read = lru_cache(maxsize=_CACHED_RECORDS)(self._read_stored)

    @property
    def last_record(self) -> int:
        """Number of the newest valid record when the ledger was listed; 0 in an empty ledger."""
        spans = self._listed()
        return spans[-1].last if spans else 0

    @property
    def newest_epoch(self) -> int:
        """The newest epoch that has opened the ledger; 0 in an empty one."""
        spans = self._listed()
        return spans[-1].epoch if spans else 0

    @property
    def last_cut(self) -> int:
        """Number of the newest cut when the ledger was listed; -1 before the first."""
        return self._cuts(self.last_record) - 1

    def entries(self) -> Iterator[Entry]:
        """Every valid record that the listing found, in order."""
        last = self.last_record
        folded = self._pages.last
        yield from (self.entry(number) for number in range(1, min(folded, last) + 1))
        rest = range(folded + 1, last + 1)
        if self.store.local_root is not None:
            yield from (self.entry(number) for number in rest)
            return
        with ThreadPoolExecutor(16) as pool:
            yield from pool.map(self.entry, rest)

    def entry(self, number: int) -> Entry:
        """The record of this number, also one appended since the listing; StoreError when there is none."""
        return self._counted(number)[0]

    def shard(self, number: int) -> Shard:
        """The shard whose record has this number."""
        entry = self.entry(number)
        assert isinstance(entry, Shard), entry
        return entry

    def cut(self, number: int) -> Cut:
        """The cut of this number; StoreError when the ledger has none yet."""
        entry = self.entry(self._record_of(number))
        assert isinstance(entry, Cut), entry
        return entry

    def between(self, first: int, last: int) -> Iterator[Cut]:
        """The cuts ``first`` to ``last``; StoreError when the ledger does not have them all yet."""
        number = self._record_of(first) if first <= last else 0
        while first <= last:
            entry = self.entry(number)
            number += 1
            if isinstance(entry, Cut):
                first += 1
                yield entry

    def tail(self, after_cut: int, wait: Callable[[], bool] = wait_a_little) -> Iterator[Cut]:
        """Cuts ``after_cut + 1`` and on, until this epoch's stop record; pure in (ledger, ``after_cut``).

        ``wait`` is called when the next record is not there yet: it waits, and returns False to end the iteration.
        Stop records of older epochs are skipped.
        """
        assert self._listed(), "the ledger is opened before it is tailed"
        epoch = self.newest_epoch
        number = 1 if after_cut < 0 else self._record_of(after_cut) + 1
        while True:
            try:
                entry = self._read(number)[0]
            except FileNotFoundError:
                if not wait():
                    return
                continue
            number += 1
            if isinstance(entry, Cut):
                yield entry
            elif isinstance(entry, Stop) and entry.epoch == epoch:
                return

    def _record_of(self, cut: int) -> int:
        """Mostly a new cut is asked for: search backwards from the newest record, in steps that double."""
        newest = max(self._newest, self.last_record)
        while self._cuts(newest) <= cut:
            newest += 1
        self._newest = first = newest
        step = 1
        while first and self._cuts(first) > cut:
            first, step = max(0, first - step), 2 * step
        return first + bisect.bisect_left(range(first, newest + 1), cut + 1, key=self._cuts)

    def _cuts(self, number: int) -> int:
        return 0 if number == 0 else self._counted(number)[1]

    def _counted(self, number: int) -> tuple[Entry, int]:
        """The record, and its count of cuts; StoreError when there is none."""
        try:
            return self._read(number)
        except FileNotFoundError:  # or it has been folded since the listing
            self._pages.refresh()
        try:
            return self._read(number)
        except FileNotFoundError as error:
            raise StoreError(
                f"the ledger in {self.store.uri} has no record {number}: was the store cut short or "
                "copied while it was written?"
            ) from error

    def epoch_of(self, number: int) -> int:
        """The epoch of a record that is in no page; 0 where there is none."""
        return next((span.epoch for span in reversed(self._listed()) if span.first <= number), 0)

    def content(self, number: int) -> bytes:
        """The record as it is stored; FileNotFoundError when there is none."""
        epoch = self.epoch_of(number)
        if line := self._pages.line(number):
            return line.encode()
        return self.store.get(_name(epoch, number))

    def _read_stored(self, number: int) -> tuple[Entry, int]:
        return decode(self.content(number))

    def _listed(self) -> list[_Span]:
        if self._spans is None:
            names = self.store.names(_FOLDER)  # before the pages: a page is put before its records are deleted
            self._spans = _valid_spans(names, self._epoch, self._pages.listed())
        return self._spans


class LedgerState:
    """What the records up to now amount to: a fold over the ledger, and nothing else."""

    def __init__(self) -> None:
        self.last_record = 0
        self.num_cuts = 0
        self.num_files = 0
        self.events_in = 0
        self.duplicate = 0
        self.quarantined = 0
        self.num_released = 0
        """Rows of rejected cuts that were put back."""
        self.released: set[int] = set()
        """Numbers of the records that were released."""
        self.pending: deque[RowRange] = deque()
        """Rows that no cut has taken yet, in ledger order."""
        self.num_pending = 0
        """Rows that no cut has taken yet."""
        self.shard_of: dict[str, int] = {}
        """Record number of the first shard of each content, by sha256."""
        self.uris: set[str] = set()
        self.items_uris: set[str] = set()
        """Files of the side feed that cuts have named, or that are set aside."""
        self.types: dict[str, str] = {}
        """Type of each item or carried column, as the first shard that had it declared."""
        self.highest_version = 0
        """What was published up to now has no higher number: a cut publishes one version at most."""
        self.rollback: Rollback | None = None
        """The newest roll back that a person has asked for."""
        self.rollback_waits = False
        """Whether no cut carries it yet."""
        self.reach = Reach()
        """What a next window may read again."""
        self._first_ms: dict[int, int] = {}
        """When the shards begin that no cut has wholly taken."""
        self._dropped: dict[int, NDArray[np.int64]] = {}
        """Rows that cannot be used, of the shards that have any."""
        self._reopened: set[str] = set()
        """Files that a person has asked to be looked at again."""
        self._num_shards = 0
        self._taken_after: list[int] = []

    def settled_files(self, committed_cut: int) -> int:
        """How many landed files need nothing more once ``committed_cut`` is committed (-1: no cut is)."""
        taken = self._taken_after[min(committed_cut, self.num_cuts - 1)] if committed_cut >= 0 and self.num_cuts else 0
        return self.num_files - (self._num_shards - taken)

    def first_ms(self, ranges: Sequence[RowRange]) -> int:
        """When the newest of these waiting shards begins; 0 where there is none. Rows put back move no time on."""
        return max((self._first_ms.get(part.shard, 0) for part in ranges), default=0)

    def first_of(self, part: RowRange, max_rows: int) -> RowRange:
        """The beginning of a waiting range: ``max_rows`` rows that can be used, and those between that cannot."""
        if part.num_rows <= max_rows:
            return part
        if not part.num_dropped:
            return replace(part, stop=part.start + max_rows)
        row_N = np.arange(part.start, part.stop)
        stop = int(row_N[np.isin(row_N, self._dropped[part.shard], invert=True)][max_rows])
        return replace(part, stop=stop, num_dropped=stop - part.start - max_rows)

    def apply(self, entry: Entry) -> None:
        """Count one more record."""
        assert entry_number(entry) == self.last_record + 1, entry
        self.last_record += 1
        match entry:
            case Shard():
                self._apply_shard(entry)
            case Quarantine() if entry.items:
                self.items_uris.add(entry.uri)
            case Quarantine():
                self.num_files += 1
                self.events_in += entry.num_rows
                self.quarantined += entry.num_rows
                self.uris.add(entry.uri)
            case Release():
                self._apply_release(entry)
            case Cut():
                self.reach.add(entry, self.first_ms(entry.ranges))
                for part in entry.ranges:
                    self._take(part)
                self.items_uris.update(file.uri for file in entry.items)
                self._taken_after.append(self._num_shards - len(self.pending))
                self.num_cuts += 1
                self.highest_version += 1
                self.rollback_waits = False
            case GoBack():
                self.highest_version = entry.rollback.version
                self.rollback, self.rollback_waits = entry.rollback, True
            case Open() | Stop():
                pass

    def _apply_shard(self, shard: Shard) -> None:
        self.num_files += 1
        self.events_in += shard.num_rows
        self.uris.add(shard.uri)
        if shard.duplicate_of is not None:
            self.duplicate += shard.num_rows
            return
        self.shard_of[shard.sha256] = shard.number
        for name, kind in shard.types:
            self.types.setdefault(name, kind)
        num_dropped = len(shard.dropped.rows)
        self.quarantined += num_dropped
        if num_dropped:
            self._dropped[shard.number] = np.array(shard.dropped.rows, dtype=np.int64)
        if shard.num_rows:
            self._first_ms[shard.number] = shard.first_ts
            self._wait(RowRange(shard.number, 0, shard.num_rows, num_dropped, shard.uri in self._reopened))

    def _apply_release(self, release: Release) -> None:
        self.released.add(release.of)
        if release.items:
            self.items_uris.discard(release.uri)
        elif release.uri:  # as if the file had never come in
            self.num_files -= 1
            self.events_in -= release.num_rows
            self.quarantined -= release.num_rows
            self.uris.discard(release.uri)
            self._reopened.add(release.uri)
        self.num_released += sum(part.num_rows for part in release.ranges)
        for part in release.ranges:
            self._wait(part)

    def _wait(self, part: RowRange) -> None:
        self._num_shards += 1
        self.num_pending += part.num_rows
        self.pending.append(part)

    def _take(self, part: RowRange) -> None:
        first = self.pending.popleft()
        assert (first.shard, first.start) == (part.shard, part.start), (first, part)
        assert part.stop <= first.stop, (first, part)
        self.num_pending -= part.num_rows
        if part.stop == first.stop:
            self._first_ms.pop(part.shard, None)
        else:
            self.pending.appendleft(replace(first, start=part.stop, num_dropped=first.num_dropped - part.num_dropped))


class LedgerWriter:
    """Appends to the ledger within one epoch; every append checks the fence first. ``state`` is the fold so far."""

    def __init__(self, store: Store, epoch: Epoch, state: LedgerState) -> None:
        self.store = store
        self.epoch = epoch
        self.state = state
        self._pages = Pages(store, _FOLDED)

    @classmethod
    def open(cls, store: Store, epoch: Epoch) -> "LedgerWriter":
        """Open ``epoch`` after the last valid record; FencedError when a newer epoch has begun.

        StoreError when the ledger already has records of this epoch or a newer one: they would void the new.
        """
        state, reader = LedgerState(), LedgerReader(store)
        if reader.newest_epoch >= epoch.number:
            raise StoreError(
                f"the ledger in {store.uri} has records of epoch {reader.newest_epoch}, but this run is epoch "
                f"{epoch.number}: a copied store needs its folder epochs/ too"
            )
        for entry in reader.entries():
            state.apply(entry)
        writer = cls(store, epoch, state)
        writer._append(Open(state.last_record + 1, epoch.number, after=state.last_record))
        return writer

    def shard(self, shard: Shard) -> Shard:
        """Record a shard; its number is set here."""
        return self._append(replace(shard, number=self.state.last_record + 1))

    def quarantine(
        self, uri: str, sha256: str, size_bytes: int, num_rows: int, reason: str, first: tuple[str, ...] = ()
    ) -> Quarantine:
        """Record that a shard is set aside whole."""
        return self._append(Quarantine(self.state.last_record + 1, uri, sha256, size_bytes, num_rows, reason, first))

    def quarantine_items(self, uri: str, sha256: str, size_bytes: int, reason: str) -> Quarantine:
        """Record that a file of the side feed is set aside."""
        return self._append(Quarantine(self.state.last_record + 1, uri, sha256, size_bytes, 0, reason, items=True))

    def release(self, entry: Quarantine | Cut) -> Release:
        """Record that a file set aside is to be looked at again, or that a rejected cut's rows wait again."""
        number = self.state.last_record + 1
        if isinstance(entry, Quarantine):
            return self._append(Release(number, entry.number, entry.uri, (), entry.num_rows, entry.items))
        ranges = tuple(replace(part, released=True) for part in entry.ranges)
        return self._append(Release(number, entry.record, "", ranges, entry.num_rows))

    def go_back(self, asked: Request) -> Rollback:
        """Record that a version is served again, under which number, and that the learner goes back to it."""
        rollback = Rollback(asked.number, asked.version, asked.cut, self.state.highest_version + 1)
        return self._append(GoBack(self.state.last_record + 1, rollback)).rollback

    def cut(
        self,
        *,
        max_rows: int | None = None,
        num_shards: int | None = None,
        items: tuple[ItemsFile, ...] = (),
        window: WindowConfig | None = None,
    ) -> Cut:
        """Cut the oldest waiting rows: at most ``max_rows`` (splitting a shard), or the first ``num_shards`` whole.

        ``items`` are the files of the side feed that are in force from this cut on; ``window``: which rows it trains.
        """
        state = self.state
        ranges: list[RowRange] = []
        room = state.num_pending if max_rows is None else max_rows
        for part in islice(state.pending, num_shards):
            if room <= 0:
                break
            ranges.append(state.first_of(part, room))
            room -= ranges[-1].num_rows
        num_rows = sum(part.num_rows for part in ranges)
        return self._append(
            Cut(
                number=state.num_cuts,
                ranges=tuple(ranges),
                num_rows=num_rows,
                events_in=state.events_in,
                duplicate=state.duplicate,
                quarantined=state.quarantined,
                pending=state.num_pending - num_rows,
                record=state.last_record + 1,
                released=state.num_released,
                items=items,
                rollback=state.rollback if state.rollback_waits else None,
                window=state.reach.window(window, state.num_cuts, state.first_ms(ranges)),
            )
        )

    def stop(self) -> Stop:
        """Record that this epoch ends after the newest cut."""
        return self._append(Stop(self.state.last_record + 1, self.epoch.number))

    def fold(self, settled: int, page_lines: int = PAGE_LINES) -> None:
        """Fold whole pages of the records up to ``settled``: those of cuts that are committed, which no tail reads."""
        last = self._pages.last
        if settled - last < page_lines:
            return
        check_epoch(self.store, self.epoch)
        reader = LedgerReader(self.store, self.epoch.number)
        while settled - last >= page_lines:
            page = Page(last + 1, last + page_lines, reader.epoch_of(last + page_lines))
            self._pages.put(page, [reader.content(number).decode() for number in range(page.first, page.last + 1)])
            last = page.last
        self._pages.fold(below=last + 1)
        for name in self.store.names(_FOLDER):
            if _epoch_and_number(name)[1] <= last:
                self.store.delete(f"{_FOLDER}/{name}")

    def _append(self, entry: _Record) -> _Record:
        check_epoch(self.store, self.epoch)
        cuts = self.state.num_cuts + isinstance(entry, Cut)
        self.store.put(_name(self.epoch.number, entry_number(entry)), encode(entry, cuts))
        self.state.apply(entry)
        return entry


def entry_number(entry: Entry) -> int:
    """Number of a record in the ledger."""
    return entry.record if isinstance(entry, Cut) else entry.number


def _name(epoch: int, number: int) -> str:
    return f"{_FOLDER}/{epoch:08d}-{number:010d}.json"


def _epoch_and_number(name: str) -> tuple[int, int]:
    epoch, number = (int(word) for word in name.removesuffix(".json").split("-"))
    return epoch, number


def _valid_spans(names: list[str], epoch: int | None, pages: list[Page]) -> list[_Span]:
    """The valid records, oldest span first: an epoch's records end where a newer epoch's first record stands.

    What is in pages is valid, and voids what an older epoch has left behind it.
    """
    folded, folded_epoch = (pages[-1].last, pages[-1].mark) if pages else (0, 0)
    numbers: dict[int, list[int]] = {}
    for name in names:
        of_epoch, number = _epoch_and_number(name)
        if (epoch is None or of_epoch <= epoch) and of_epoch >= folded_epoch and number > folded:
            numbers.setdefault(of_epoch, []).append(number)
    spans: list[_Span] = []
    for of_epoch in sorted(numbers, reverse=True):
        first, last = min(numbers[of_epoch]), max(numbers[of_epoch])
        last = min(last, spans[-1].first - 1) if spans else last
        if first <= last:
            spans.append(_Span(first, last, of_epoch))
    return [_Span(1, folded, folded_epoch)] * bool(pages) + spans[::-1]
