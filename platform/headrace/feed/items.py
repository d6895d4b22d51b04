"""The side feed: files that say of items whether they are for sale, what they are called, and what they are like.

The folder is watched as the one of the shards is. A file that reads is named by the next cut, with its digest, and
every rank reads it where it lies; so all know the same of items at the same cut, also after a restart. A file that
cannot be used is set aside, in words (feed/quarantine.py). A file needs ``item_id`` and ``ts``; ``status`` ("active"
or "retired"), ``name`` and any further columns, which are attributes, are optional. A replayed log's side feed lands in
event time, too (``ItemsLog``). Shape legend: N rows.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.config.feed import FeedConfig
from headrace.errors import DataError
from headrace.feed.facts import to_ids
from headrace.feed.landing import Landing, number_of, open_file
from headrace.feed.schema import times_ms
from headrace.records import ItemRows, ItemsFile

_PATIENCE_S = 10.0
_KNOWN = ("item_id", "ts", "status", "name")
_STATUS = ("active", "retired")


def items_landing(feed: FeedConfig, own_uri: str) -> Landing | None:
    """Where the side feed lands, if there is one; ``own_uri`` is where a stream of the run's own lands its."""
    if feed.synthetic is not None:
        return Landing(own_uri) if feed.synthetic.items else None
    if feed.replay is not None and feed.items_path is not None:
        return Landing(own_uri)
    return None if feed.items_path is None else Landing(feed.items_path)


@dataclass(frozen=True)
class Unusable:
    """A file that is to be set aside, and why. Made by ``ItemsFolder``, read by feed/keeper.py."""

    uri: str
    sha256: str
    size_bytes: int
    reason: str


class ItemsFolder:
    """The keeper's side. ``poll`` looks for files, ``take`` hands over those that the next cut is to name.

    ``attributes`` are columns that every file must have.
    """

    def __init__(self, landing: Landing, attributes: Sequence[str] = ()) -> None:
        self._landing = landing
        self._attributes = attributes
        self._unusable: list[Unusable] = []
        self._known: set[str] = set()
        self._seen: dict[str, tuple[int, float]] = {}
        self._ready: list[tuple[ItemsFile, str]] = []
        self.waiting_since_s: float | None = None
        """When the oldest file that no cut has named yet was ready; None: there is none."""

    def start(self, uris: Collection[str]) -> None:
        """Files that cuts have named already, or that are set aside."""
        prefix = self._landing.uri_of("")
        self._known = {uri.removeprefix(prefix) for uri in uris}

    def look_again(self, uri: str) -> None:
        """This file is repaired, or so a person says."""
        self._known.discard(uri.removeprefix(self._landing.uri_of("")))

    def unusable(self) -> list[Unusable]:
        """Files that have been found unusable since this was asked last."""
        found, self._unusable = self._unusable, []
        return found

    def poll(self, now_s: float) -> None:
        """Read new files whose size two listings agree on."""
        before, self._seen = self._seen, {}
        for name, size_bytes in self._landing.list_new(self._known):
            last_bytes, since_s = before.get(name, (-1, now_s))
            if last_bytes != size_bytes:
                self._seen[name] = size_bytes, now_s
            elif not self._read(name, patient=now_s - since_s < _PATIENCE_S):
                self._seen[name] = size_bytes, since_s
        if self._ready and self.waiting_since_s is None:
            self.waiting_since_s = now_s

    def take(self, kind: str | None, last: int | None = None) -> tuple[ItemsFile, ...]:
        """The files that a cut is to name, by name; ``kind`` is what the shards' item ids are ("int64" or "string").

        ``last``: of files that landed with numbered shards, those up to this number.
        """
        taken = [pair for pair in self._ready if last is None or number_of(pair[0].uri) <= last]
        self._ready = [pair for pair in self._ready if pair not in taken]
        self.waiting_since_s = self.waiting_since_s if self._ready else None
        for file, of_kind in taken:
            if kind not in (None, of_kind):
                reason = f"its item_id is {of_kind}, but {kind} in the shards"
                self._unusable.append(Unusable(file.uri, file.sha256, 0, reason))
        return tuple(file for file, of_kind in taken if kind in (None, of_kind))

    def _read(self, name: str, *, patient: bool) -> bool:
        """Whether the file is done with, for better or worse; False: it may not be whole yet."""
        uri, content = self._landing.uri_of(name), b""
        try:
            content = _content(uri)
            rows = parse_items(content)
            if lacking := [column for column in self._attributes if column not in rows.attributes]:
                raise DataError(f"it lacks the column {lacking[0]!r}, which catalogue.attributes names")
            kind = "int64" if rows.item_N.dtype.kind == "i" else "string"
            self._ready.append((ItemsFile(uri, hashlib.sha256(content).hexdigest(), len(rows.ts_N)), kind))
        except FileNotFoundError:
            return True
        except (DataError, pa.ArrowException, OSError) as error:
            if patient and not isinstance(error, DataError):
                return False
            reason = str(error) if isinstance(error, DataError) else f"it cannot be read as Parquet: {error}"
            self._unusable.append(Unusable(uri, hashlib.sha256(content).hexdigest(), len(content), reason))
        self._known.add(name)
        return True


class ItemsLog:
    """The side feed of a log that is replayed: lands each row before the first shard whose events have reached it."""

    def __init__(self, log: Landing, landing: Landing) -> None:
        self._log = log
        self._landing = landing
        self._rows: pa.Table | None = None
        self._ts_N = np.zeros(0, dtype=np.int64)
        self._num_landed = 0

    def pass_over(self, first_ms: int) -> None:
        """The shard that begins at this time has landed before, and so have the rows up to then."""
        self._num_landed = int(np.searchsorted(self._times(), first_ms, side="right"))

    def land(self, index: int, first_ms: int) -> None:
        """Land the rows up to the time at which the shard ``index`` begins, if there are new ones."""
        begin = self._num_landed
        self.pass_over(first_ms)
        if self._rows is not None and self._num_landed > begin:
            rows = self._rows.slice(begin, self._num_landed - begin).combine_chunks()
            self._landing.land(f"items-{index:06d}.parquet", rows)

    def _times(self) -> NDArray[np.int64]:
        """The times of all rows, ascending; DataError, in words, where a file cannot be used."""
        if self._rows is None:
            tables = [self._read(self._log.uri_of(name)) for name, _ in self._log.list_new(())]
            if not tables:
                raise DataError(
                    f"no .parquet file in {self._log.uri}: feed.items_path must name the side feed's folder"
                )
            table = pa.concat_tables(tables, promote_options="default")
            ts_N = times_ms(table, "ts")
            order_N = np.argsort(ts_N, kind="stable")
            self._rows, self._ts_N = table.take(order_N), ts_N[order_N]
        return self._ts_N

    def _read(self, uri: str) -> pa.Table:
        content = _content(uri)
        try:
            parse_items(content)
        except (DataError, pa.ArrowException) as error:
            raise DataError(f"{uri}: {error}") from error
        return pq.read_table(BytesIO(content))


def read_items(files: Sequence[ItemsFile]) -> ItemRows | None:
    """The rows of the files that a cut names, in this order; None where it names none. DataError if one has changed."""
    parts = []
    for file in files:
        try:
            content = _content(file.uri)
        except FileNotFoundError as error:
            raise DataError(f"{file.uri} is in the ledger but not in its folder: put it back") from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError(f"{file.uri} has changed since it was recorded: land what is new under a new name")
        parts.append(parse_items(content))
    return _joined(parts) if parts else None


def parse_items(content: bytes) -> ItemRows:
    """The rows of a file of the side feed; DataError, in words, where they cannot be used."""
    table = pq.read_table(BytesIO(content))
    if lacking := [name for name in ("item_id", "ts") if name not in table.column_names]:
        raise DataError(f"it lacks the column {lacking[0]!r}; there are {', '.join(table.column_names)}")
    item_N = table["item_id"].combine_chunks()
    if item_N.null_count:
        raise DataError(f"{item_N.null_count} rows have no item_id")
    is_text = not pa.types.is_integer(item_N.type)
    status_N = _text(table, "status")
    if len(wrong := np.flatnonzero(~np.isin(status_N, ("", *_STATUS)))):
        raise DataError(f"the status in row {wrong[0]} is {status_N[wrong[0]]!r}: it must be active or retired")
    return ItemRows(
        to_ids(item_N.cast(pa.string() if is_text else pa.int64())),
        times_ms(table, "ts"),
        np.asarray(status_N == "retired", dtype=np.bool_),
        _text(table, "name"),
        {name: _text(table, name) for name in table.column_names if name not in _KNOWN},
    )


def _content(uri: str) -> bytes:
    with open_file(uri) as file:
        return bytes(file.read())


def _text(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as text; "" where there is nothing, or no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, "", dtype=object)
    try:
        column = table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(f"the column {name!r} ({table[name].type}) cannot be read as text: {error}") from error
    return np.array([value or "" for value in column.to_pylist()], dtype=object)


def _joined(parts: Sequence[ItemRows]) -> ItemRows:
    names = dict.fromkeys(name for part in parts for name in part.attributes)
    return ItemRows(
        np.concatenate([part.item_N for part in parts]),
        np.concatenate([part.ts_N for part in parts]),
        np.concatenate([part.retired_N for part in parts]),
        np.concatenate([part.name_N for part in parts]),
        {
            name: np.concatenate(
                [part.attributes.get(name, np.full(len(part.ts_N), "", dtype=object)) for part in parts]
            )
            for name in names
        },
    )
