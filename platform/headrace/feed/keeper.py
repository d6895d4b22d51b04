"""The keeper of the ledger: takes what lands in the folder, and writes cuts. A plain class; a thread calls ``poll``.

The order matters. A file is taken once its footer reads and two listings agree on its size, so a file still being
written is never read half. Its content is hashed before it is read: a repetition is a duplicate, whatever its name.
What cannot be read or lacks a column is set aside with its reason and the stream goes on; a few bad rows in a good file
are dropped, and its record says which. What a person has released or rolled back comes first, cuts come last, so that
what this poll has recorded can be in them.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.commit.rollbacks import find
from headrace.config.feed import ColumnsConfig, FeedConfig
from headrace.errors import DataError
from headrace.feed.entries import Dropped, Quarantine, Release, Shard
from headrace.feed.facts import ShardFacts, first_rows, scan_shard
from headrace.feed.items import ItemsFolder
from headrace.feed.landing import Landing, number_of, open_file
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.quarantine import is_request_for, requested
from headrace.feed.schema import check_schema, column_types
from headrace.records import Cut, ItemsFile, Rollback

_log = logging.getLogger(__name__)
_FILES_PER_POLL = 64
_IN_MEMORY_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**20
_MAGIC = b"PAR1"
_REMEMBERED_SHARDS = 10_000
_REQUESTS_S = 1.0  # how often requests for a release or a roll back are looked for
_AWAY_S = 60.0  # a landing folder that cannot be reached for longer ends the run


@dataclass(frozen=True)
class Polled:
    """What one poll did. Made by ``Keeper.poll``, read by the driver's supervisor."""

    shards: tuple[Shard, ...]
    quarantined: tuple[Quarantine, ...]
    cuts: tuple[Cut, ...]
    unsettled: int
    """Files that were seen but not taken yet: poll again soon."""
    released: tuple[Release, ...] = ()
    rollback: Rollback | None = None
    """What is to be served again from now on; whoever polls sees to that."""


@dataclass(frozen=True)
class _Seen:
    """A file that is not taken yet, as the listings have shown it."""

    size_bytes: int
    first_s: float
    stable_since_s: float


class Keeper:
    """Moves the ledger on. All times are seconds on one monotonic clock, given by the caller.

    ``last_cut``: no cut is written beyond this number. ``cuts_ahead``: with ``feed.cut = "shard"``, how many cuts may
    stand beyond the newest commit, since stopping has to wait for them. ``patience_s``: a file that does not read and
    has not grown for this long is set aside. ``items``: where the side feed lands, if there is one.
    """

    def __init__(
        self,
        config: FeedConfig,
        columns: ColumnsConfig,
        landing: Landing,
        writer: LedgerWriter,
        *,
        last_cut: int | None = None,
        cuts_ahead: int = 2,
        patience_s: float = 10.0,
        items: ItemsFolder | None = None,
    ) -> None:
        self._config = config
        self._columns = columns
        self._landing = landing
        self._writer = writer
        self._last_cut = last_cut
        self._cuts_ahead = cuts_ahead
        self._patience_s = patience_s
        self._items = items
        if items is not None:
            items.start(writer.state.items_uris)
        self._reader = LedgerReader(writer.store, writer.epoch.number)
        prefix = landing.uri_of("")
        self._known = {uri.removeprefix(prefix) for uri in writer.state.uris if uri.startswith(prefix)}
        self._seen: dict[str, _Seen] = {}
        self._first_seen_s: dict[int, float] = {}
        self._started_s: float | None = None
        self._requests_s = float("-inf")
        self._away_since_s: float | None = None
        self._folded_cut = -1
        self._stopped = False

    @property
    def newest_cut(self) -> int:
        """Number of the newest cut; -1 before the first."""
        return self._writer.state.num_cuts - 1

    @property
    def num_known(self) -> int:
        """Files that have been recorded, set-aside ones included."""
        return len(self._known)

    @property
    def backlog_rows(self) -> int:
        """Recorded rows that no cut has taken yet."""
        return self._writer.state.num_pending

    def settled_files(self, committed_cut: int) -> int:
        """How many landed files training is done with once ``committed_cut`` is committed (-1: no cut is)."""
        return self._writer.state.settled_files(committed_cut)

    def first_seen_s(self, shard: int) -> float | None:
        """When a listing first showed this shard, by record number; None after a restart or 10,000 shards."""
        return self._first_seen_s.get(shard)

    def poll(self, now_s: float, committed_cut: int) -> Polled:
        """Take new files and write the cuts that are due; ``committed_cut`` is the newest committed one, or -1.

        FencedError when a newer run has taken the store.
        """
        assert not self._stopped, "a stopped keeper records nothing more"
        if self._started_s is None:
            self._started_s = now_s
        is_asked = now_s >= self._requests_s + _REQUESTS_S
        self._requests_s = now_s if is_asked else self._requests_s
        released = self._release(committed_cut) if is_asked else []
        rollback = take_up(self._writer) if is_asked else None
        taken = [entry for name in self._ready(now_s) if (entry := self._take(name, now_s)) is not None]
        if self._items is not None:  # after the shards: what landed before one of them is then in its cut
            self._items.poll(now_s)
            taken += self._set_aside_items()
        self._fold(min(committed_cut, self.newest_cut))
        return Polled(
            shards=tuple(entry for entry in taken if isinstance(entry, Shard)),
            quarantined=tuple(entry for entry in taken if isinstance(entry, Quarantine)),
            cuts=tuple(self._cut(now_s, committed_cut)),
            unsettled=len(self._seen),
            released=tuple(released),
            rollback=rollback,
        )

    def stop(self) -> int:
        """Write the stop record, once; every rank ends after the newest cut, whose number is returned."""
        if not self._stopped:
            self._writer.stop()
            self._stopped = True
        return self.newest_cut

    def _fold(self, committed_cut: int) -> None:
        if committed_cut > self._folded_cut:
            self._writer.fold(self._reader.cut(committed_cut).record)
            self._folded_cut = committed_cut

    def _release(self, committed_cut: int) -> list[Release]:
        """Put back what a person has asked for: rows of a rejected cut wait again, a file is looked at again."""
        state, released = self._writer.state, []
        for number in requested(self._writer.store):
            if number in state.released or number > state.last_record:
                continue
            entry = self._reader.entry(number)
            if not is_request_for(self._writer.store, entry):
                continue
            if isinstance(entry, Quarantine):
                self._look_again(entry)
                released.append(self._writer.release(entry))
            elif isinstance(entry, Cut) and entry.number <= committed_cut:
                released.append(self._writer.release(entry))
        return released

    def _look_again(self, entry: Quarantine) -> None:
        if not entry.items:
            self._known.discard(entry.uri.removeprefix(self._landing.uri_of("")))
        elif self._items is not None:
            self._items.look_again(entry.uri)

    def _set_aside_items(self) -> list[Quarantine]:
        found = [] if self._items is None else self._items.unusable()
        for file in found:
            _log.warning("%s is set aside: %s", file.uri, file.reason)
        return [self._writer.quarantine_items(file.uri, file.sha256, file.size_bytes, file.reason) for file in found]

    def _ready(self, now_s: float) -> list[str]:
        """New files, by name, whose size two listings agree on."""
        listed = self._list(now_s)
        if listed is None:
            return []
        before, self._seen = self._seen, {}
        ready = []
        for name, size_bytes in listed:
            last = before.get(name)
            if last is None or last.size_bytes != size_bytes:
                last = _Seen(size_bytes, now_s if last is None else last.first_s, now_s)
            else:
                ready.append(name)
            self._seen[name] = last
        return ready[:_FILES_PER_POLL]

    def _list(self, now_s: float) -> list[tuple[str, int]] | None:
        """What is new in the folder; None while it is away, DataError when it stays away."""
        try:
            listed = self._landing.list_new(self._known)
        except OSError as error:
            if self._away_since_s is None:
                _log.warning("%s is away: %s", self._landing.uri, error)
                self._away_since_s = now_s
            away_s = now_s - self._away_since_s
            if away_s >= _AWAY_S:
                raise DataError(
                    f"{self._landing.uri} has been away for {away_s:.0f} s ({error}). What was committed stands, and "
                    "the same command goes on from it"
                ) from error
            return None
        self._away_since_s = None
        return listed

    def _take(self, name: str, now_s: float) -> Shard | Quarantine | None:
        """Record one file; None while it is not whole."""
        seen = self._seen[name]
        opened = False
        try:
            with _open(self._landing.uri_of(name)) as file:
                opened = True
                entry = self._record(name, file)
        except FileNotFoundError:
            return None
        except (pa.ArrowInvalid, OSError) as error:
            is_away = isinstance(error, OSError) and not opened
            if now_s - seen.stable_since_s < (_AWAY_S if is_away else self._patience_s):
                return None
            entry = self._set_aside(name, "", seen.size_bytes, 0, f"it cannot be read as Parquet: {error}")
        del self._seen[name]
        self._known.add(name)
        if isinstance(entry, Shard):
            self._first_seen_s[entry.number] = seen.first_s
            if len(self._first_seen_s) > _REMEMBERED_SHARDS:
                del self._first_seen_s[next(iter(self._first_seen_s))]
        return entry

    def _record(self, name: str, file: pa.NativeFile) -> Shard | Quarantine:
        """Hash, then read; raises what Arrow raises when the file has no footer yet."""
        parquet = pq.ParquetFile(file)
        size_bytes, num_rows = file.size(), parquet.metadata.num_rows
        file.seek(0)
        sha256 = _digest(file)
        state, uri = self._writer.state, self._landing.uri_of(name)
        if sha256 in state.shard_of:
            first = self._reader.shard(state.shard_of[sha256])
            return self._writer.shard(replace(first, uri=uri, duplicate_of=first.number, dropped=Dropped()))
        try:
            check_schema(parquet.schema_arrow, self._columns)
            types = column_types(parquet.schema_arrow, self._columns)
            self._check_types(types)
            facts = scan_shard(parquet, self._columns, sha256)
        except (DataError, pa.ArrowException, OSError) as error:
            return self._set_aside(name, sha256, size_bytes, num_rows, str(error), first_rows(parquet))
        if (reason := self._too_many_bad(facts)) is not None:
            return self._set_aside(name, sha256, size_bytes, num_rows, reason, facts.first)
        if len(facts.row_D):
            _log.warning("%s: %d rows are dropped: %s", uri, len(facts.row_D), facts.reasons)
        return self._writer.shard(
            Shard(
                number=0,
                uri=uri,
                sha256=sha256,
                size_bytes=size_bytes,
                num_rows=facts.num_rows,
                first_ts=facts.first_ts,
                last_ts=facts.last_ts,
                group_rows=facts.group_rows,
                types=types,
                duplicate_of=None,
                facts=self._writer.store.put_part(facts.items),
                dropped=facts.dropped(),
            )
        )

    def _too_many_bad(self, facts: ShardFacts) -> str | None:
        """Why a file with bad rows is set aside whole; None where it is taken without them."""
        share, num_bad = self._config.max_bad_rows, len(facts.row_D)
        tolerated = max(1, int(share * facts.num_rows)) if share else 0
        if num_bad <= tolerated and (not num_bad or num_bad < facts.num_rows):
            return None
        reasons = "; ".join(f"{num_rows} rows: {reason}" for reason, num_rows in facts.reasons)
        return (
            f"{num_bad} of {facts.num_rows} rows cannot be used (feed.max_bad_rows={share:g}), the first is row "
            f"{facts.row_D[0]}: {reasons}"
        )

    def _check_types(self, types: tuple[tuple[str, str], ...]) -> None:
        for column, kind in types:
            known = self._writer.state.types.get(column, kind)
            if known != kind:
                raise DataError(f"column {column!r} is {kind}, but {known} in the shards before: keep one type")

    def _set_aside(
        self, name: str, sha256: str, size_bytes: int, num_rows: int, reason: str, first: tuple[str, ...] = ()
    ) -> Quarantine:
        _log.warning("%s is set aside (%d rows): %s", self._landing.uri_of(name), num_rows, reason)
        return self._writer.quarantine(self._landing.uri_of(name), sha256, size_bytes, num_rows, reason, first)

    def _cut(self, now_s: float, committed_cut: int) -> list[Cut]:
        cuts: list[Cut] = []
        while (self._last_cut is None or self.newest_cut < self._last_cut) and self._is_due(now_s, committed_cut):
            num_shards = self._config.warmup_shards if self.newest_cut < 0 else 1
            if self.newest_cut < 0 or self._config.cut == "shard":
                items, limit = self._take_items(num_shards), {"num_shards": num_shards}
            else:
                items, limit = self._take_items(None), {"max_rows": self._config.max_events}
            cuts.append(self._writer.cut(**limit, items=items, window=self._config.window))
        return cuts

    def _take_items(self, num_shards: int | None) -> tuple[ItemsFile, ...]:
        """What the side feed has for the next cut; in replays, what landed before the last of its shards."""
        if self._items is None:
            return ()
        last = None
        if num_shards is not None and self._config.replay is not None:
            taken = list(islice(self._writer.state.pending, num_shards))
            last = number_of(self._reader.shard(taken[-1].shard).uri)
        return self._items.take(self._writer.state.types.get(self._columns.item_id), last)

    def _is_due(self, now_s: float, committed_cut: int) -> bool:
        state = self._writer.state
        if self.newest_cut < 0:
            return len(state.pending) >= self._config.warmup_shards
        if not state.pending:
            return self._items_are_due(now_s, committed_cut)
        if self._config.cut == "shard":
            return self.newest_cut < committed_cut + self._cuts_ahead
        assert self._started_s is not None
        waited_s = now_s - self._first_seen_s.get(state.pending[0].shard, self._started_s)
        enough = state.num_pending >= self._config.min_events or waited_s >= self._config.max_wait_s
        return self.newest_cut <= committed_cut and enough

    def _items_are_due(self, now_s: float, committed_cut: int) -> bool:
        """Whether the side feed has waited long enough for events to come with it: then it makes a cut by itself."""
        waiting_s = None if self._items is None else self._items.waiting_since_s
        if waiting_s is None or self._config.cut == "shard":
            return False
        return self.newest_cut <= committed_cut and now_s - waiting_s >= self._config.max_wait_s


def take_up(writer: LedgerWriter) -> Rollback | None:
    """Record the next roll back that a person has asked for; None where there is none."""
    newest = writer.state.rollback
    asked = find(writer.store, 1 if newest is None else newest.request + 1)
    return writer.go_back(asked) if asked is not None and asked.ready else None


def _open(uri: str) -> pa.NativeFile:
    """The file, read once into memory unless it is large: what is hashed is then what is scanned."""
    file = open_file(uri)
    size_bytes = file.size()
    file.seek(max(0, size_bytes - len(_MAGIC)))
    if file.read() != _MAGIC:
        file.close()
        raise pa.ArrowInvalid(f"it does not end as a Parquet file does ({size_bytes} bytes)")
    file.seek(0)
    if size_bytes > _IN_MEMORY_BYTES:
        return file
    with file:
        return pa.BufferReader(file.read_buffer())


def _digest(file: pa.NativeFile) -> str:
    digest = hashlib.sha256()
    while chunk := file.read_buffer(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
