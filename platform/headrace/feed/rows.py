"""A cut's rows for given key groups, without Ray: benchmarks, ``try`` and the Ray source all read them here.

Rows come in ledger order: shard by shard as the cut names them, row by row within. The ids that all ranks number alike
come from the shards' facts, so that a rank need not read what it does not own; only a cut that takes part of a shard
looks into the file again. Rows of the cut's window come after its own, out of the ranges of the cuts that took them.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.config.feed import ColumnsConfig
from headrace.errors import DataError, StoreError
from headrace.feed.entries import Shard
from headrace.feed.facts import decode_items, first_unique, to_ids
from headrace.feed.items import read_items
from headrace.feed.landing import is_local, open_file
from headrace.feed.ledger import LedgerReader
from headrace.feed.schema import Values, normalise, owners, rows_from_table, travelling_columns, wire_schema
from headrace.feed.window import picked_N
from headrace.records import KEY_GROUPS, Again, Cut, CutRows, RowRange

_Out = TypeVar("_Out")
_THREADS = 8
_CUT = "cut"
"""Column of travelling rows: the cut that took them, which is not the one that they travel for where it is older."""


def key_groups(rank: int, world: int) -> tuple[int, ...]:
    """The key groups that a rank owns: g with g mod world = rank."""
    return tuple(range(rank, KEY_GROUPS, world))


def cut_rows(
    reader: LedgerReader,
    cut: Cut,
    columns: ColumnsConfig,
    groups: Collection[int],
    earlier: Iterable[Cut] | None = None,
) -> CutRows:
    """One rank's rows of a cut and of its window, with the ids of the whole cut.

    ``earlier`` are the window's cuts where the ledger does not hold them.
    """
    tables = [cut_table(reader, cut, columns, groups), *window_tables(reader, cut, columns, groups, earlier)]
    return whole_cut(reader, cut, columns, tables)


def whole_cut(reader: LedgerReader, cut: Cut, columns: ColumnsConfig, tables: Sequence[pa.Table]) -> CutRows:
    """What a rank's tables (one at least) of a cut and of its window amount to."""
    table = one_table(tables)
    cut_N = table[_CUT].to_numpy()
    own = table if cut.window is None else table.filter(pa.array(cut_N == cut.number))
    items, told = cut_items(reader, cut, columns), read_items(cut.items)
    if cut.window is None:
        return CutRows(cut, rows_from_table(own), items, told)
    older_N = cut_N != cut.number
    again = Again(rows_from_table(table.filter(pa.array(older_N))), cut_N[older_N].astype(np.int64))
    return CutRows(cut, rows_from_table(own), items, told, again)


def one_table(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables (one at least) of one cut, one after the other; an empty one does not know what ids the others have."""
    return pa.concat_tables([table for table in tables if table.num_rows] or tables[:1], promote_options="default")


def cut_table(reader: LedgerReader, cut: Cut, columns: ColumnsConfig, groups: Collection[int]) -> pa.Table:
    """The cut's rows of these key groups, in the wire schema and in ledger order; DataError when a file has changed."""
    owned_G = np.zeros(KEY_GROUPS, dtype=np.bool_)
    owned_G[list(groups)] = True

    def read(part: RowRange) -> pa.Table:
        shard = reader.shard(part.shard)
        wire = _wire(shard, part, columns)
        owned_N = owned_G[wire["group"].to_numpy()]
        return wire if owned_N.all() else wire.filter(pa.array(owned_N))

    tables = _map(read, reader, cut.ranges) or [wire_schema(pa.int64()).empty_table()]
    return _taken(pa.concat_tables(tables, promote_options="default"), cut)


def window_tables(
    reader: LedgerReader,
    cut: Cut,
    columns: ColumnsConfig,
    groups: Collection[int],
    earlier: Iterable[Cut] | None = None,
) -> list[pa.Table]:
    """The rows of these key groups that the cut's window picks of earlier cuts, as ``cut_table`` gives its own.

    None of a shard that ended before the window and whose rows have all had their turn.
    """
    window = cut.window
    if window is None:
        return []
    owned_G = np.zeros(KEY_GROUPS, dtype=np.bool_)
    owned_G[list(groups)] = True

    def read(part: RowRange) -> pa.Table:
        shard = reader.shard(part.shard)
        table, row_N = _sound(shard, part, columns)
        user_N, session_N = owners(table, columns)
        owner_N = np.where(user_N != 0, user_N, session_N)
        picked = picked_N(window, user_N, session_N) & owned_G[owner_N % np.uint64(KEY_GROUPS)]
        return normalise(table.filter(pa.array(picked)), columns, shard.number, shard.sha256, row_N[picked])

    tables = []
    for taker in reader.between(window.first, cut.number - 1) if earlier is None else earlier:
        waits = taker.number > cut.number - window.buckets
        ranges = [part for part in taker.ranges if waits or reader.shard(part.shard).last_ts >= window.since_ms]
        tables += [_taken(table, taker) for table in _map(read, reader, ranges) if table.num_rows]
    return tables


def _taken(table: pa.Table, cut: Cut) -> pa.Table:
    return table.append_column(_CUT, pa.array(np.full(table.num_rows, cut.number, dtype=np.int32)))


def cut_items(reader: LedgerReader, cut: Cut, columns: ColumnsConfig) -> NDArray[Any]:
    """The distinct raw item ids of the whole cut, by first row in ledger order."""

    def read(part: RowRange) -> Values:
        shard = reader.shard(part.shard)
        if part.start == 0 and part.stop == shard.num_rows:
            try:
                return decode_items(reader.store.get_part(shard.facts))
            except StoreError:  # facts can be found again in the file, whose digest is in the ledger
                pass
        return first_unique(_wire(shard, part, columns)["item"])[0]

    parts = _map(read, reader, cut.ranges)
    if not parts:
        return np.zeros(0, dtype=np.int64)
    return to_ids(parts[0] if len(parts) == 1 else first_unique(pa.chunked_array(parts))[0])


def _wire(shard: Shard, part: RowRange, columns: ColumnsConfig) -> pa.Table:
    """The range's rows in the wire schema, without those that the ledger records as dropped."""
    table, row_N = _sound(shard, part, columns)
    return normalise(table, columns, shard.number, shard.sha256, row_N)


def _sound(shard: Shard, part: RowRange, columns: ColumnsConfig) -> tuple[pa.Table, NDArray[np.int64]]:
    """The range's rows as they are in the file, without those that the ledger records as dropped; and their numbers."""
    table = read_range(shard, part, columns)
    row_N = np.arange(part.start, part.stop, dtype=np.int64)
    if part.num_dropped:
        sound_N = np.isin(row_N, np.array(shard.dropped.rows, dtype=np.int64), invert=True)
        table, row_N = table.filter(pa.array(sound_N)), row_N[sound_N]
    return table, row_N


def read_range(shard: Shard, part: RowRange, columns: ColumnsConfig) -> pa.Table:
    """The file's own columns of these rows; only the row groups that hold them are read."""
    try:
        file = open_file(shard.uri)
    except FileNotFoundError as error:
        raise DataError(
            f"{shard.uri} is in the ledger but not in its folder: put it back; shards stay where they "
            "landed until they are trained, and while feed.window reaches them"
        ) from error
    with file, pq.ParquetFile(file, pre_buffer=True) as parquet:
        if file.size() != shard.size_bytes:
            raise DataError(
                f"{shard.uri} has {file.size()} bytes, but {shard.size_bytes} when it was recorded: "
                "a shard never changes; put the first content back and land the new rows under a new name"
            )
        wanted: list[int] = []
        first_row, offset = 0, 0
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            if first_row < part.stop and first_row + num_rows > part.start:
                offset = first_row if not wanted else offset
                wanted.append(group)
            first_row += num_rows
        table = parquet.read_row_groups(wanted, travelling_columns(parquet.schema_arrow, columns), use_threads=False)
    return table.slice(part.start - offset, part.stop - part.start)


def _map(read: Callable[[RowRange], _Out], reader: LedgerReader, ranges: Sequence[RowRange]) -> list[_Out]:
    """``read`` of each range, in order; a few threads hide an object store's latency, and would only slow a disk."""
    if len(ranges) < 2 or is_local(reader.shard(ranges[0].shard).uri):
        return [read(part) for part in ranges]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, ranges))
