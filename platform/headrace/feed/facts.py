"""A shard's facts: what every rank must know of all its rows, though it reads only its own.

Found in one pass when the shard lands, which is also where it is validated: rows that cannot be used are found here,
once, and the ledger's record says which they are, so that all ranks drop the same. The distinct item ids are stored as
a content-addressed part. Shape legend: N rows, I distinct item ids, D rows that cannot be used.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.config.feed import ColumnsConfig
from headrace.errors import DataError
from headrace.feed.entries import Dropped
from headrace.feed.schema import Column, Values, check_schema, find_faults, normalise, required_columns
from headrace.records import KEY_GROUPS

_BATCH_ROWS = 1 << 18
_SHOWN_ROWS = 5
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class ShardFacts:
    """Made by ``scan_shard`` for the ledger's record of a shard."""

    num_rows: int
    """Of the file."""
    first_ts: int
    last_ts: int
    group_rows: tuple[int, ...]
    items: bytes
    """``encode_items`` of the distinct item ids."""
    row_D: NDArray[np.int64]
    """Rows that cannot be used; whether they are too many is the keeper's to decide. All else is of the others."""
    reasons: tuple[tuple[str, int], ...]
    """(reason in words, rows), most frequent first."""
    first: tuple[str, ...]
    """The first of them, to show."""

    def dropped(self) -> Dropped:
        """The rows that cannot be used, for the ledger's record."""
        return Dropped(tuple(self.row_D.tolist()), self.reasons, self.first)


def scan_shard(parquet: pq.ParquetFile, columns: ColumnsConfig, sha256: str) -> ShardFacts:
    """Validate every row of an open Parquet file and gather its facts; DataError in words when it cannot be a shard."""
    schema = parquet.schema_arrow
    check_schema(schema, columns)
    needed = list(dict.fromkeys(required_columns(columns).values()))
    num_rows, spans = 0, []
    group_rows = np.zeros(KEY_GROUPS, dtype=np.int64)
    items, rows = [], []
    faults = _Faults()
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=needed):
        try:
            table = pa.table(batch)
            sound_N = faults.find(table, columns, num_rows)
            row_N = num_rows + np.flatnonzero(sound_N)
            sound = table if sound_N.all() else table.filter(pa.array(sound_N))
            wire = normalise(sound, columns, 0, sha256, row_N)
        except pa.ArrowException as error:
            raise DataError(f"a column cannot be read as the recipe says: {error}") from error
        if wire.num_rows:
            ts_N = wire["ts"].to_numpy()
            spans.append((int(ts_N.min()), int(ts_N.max())))
            group_rows += np.bincount(wire["group"].to_numpy(), minlength=KEY_GROUPS)
            item_I, row_I = first_unique(wire["item"])
            items.append(item_I)
            rows.append(row_N[row_I])
        num_rows += table.num_rows
    item_I, row_I = _merge(items, rows)
    return ShardFacts(
        num_rows,
        min((first for first, _ in spans), default=0),
        max((last for _, last in spans), default=0),
        tuple(int(count) for count in group_rows),
        encode_items(item_I, row_I),
        np.concatenate([np.zeros(0, dtype=np.int64), *faults.row_D]),
        tuple(faults.reasons.most_common()),
        tuple(faults.first),
    )


class _Faults:
    """Gathers the rows of a shard that cannot be used, batch by batch."""

    def __init__(self) -> None:
        self.row_D: list[NDArray[np.int64]] = []
        self.reasons: Counter[str] = Counter()
        self.first: list[str] = []

    def find(self, table: pa.Table, columns: ColumnsConfig, start: int) -> NDArray[np.bool_]:
        """Which rows of the batch, whose first has row number ``start``, are sound."""
        sound_N = np.ones(table.num_rows, dtype=bool)
        for reason, fault_N in find_faults(table, columns).items():
            self.reasons[reason] += int(fault_N.sum())
            sound_N &= ~fault_N
        row_D = np.flatnonzero(~sound_N)
        self.row_D.append(start + row_D)
        shown = row_D[: _SHOWN_ROWS - len(self.first)]
        self.first += in_words(table.take(shown), start + shown)
        return sound_N


def in_words(table: pa.Table, row_N: NDArray[np.int64]) -> tuple[str, ...]:
    """Rows as a person is shown them: row number and values, one line each."""
    lines = [
        f"row {row}: {json.dumps(values, default=str)}" for row, values in zip(row_N, table.to_pylist(), strict=True)
    ]
    return tuple(line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + " .." for line in lines)


def first_rows(parquet: pq.ParquetFile) -> tuple[str, ...]:
    """The first rows of a file that was opened, whatever its columns; none where they cannot be read."""
    try:
        batch = next(parquet.iter_batches(_SHOWN_ROWS), None)
        return () if batch is None else in_words(pa.table(batch), np.arange(batch.num_rows))
    except (pa.ArrowException, OSError, ValueError):
        return ()


def first_unique(item_N: Column) -> tuple[Values, NDArray[np.int64]]:
    """Distinct values by first appearance, and the position of each; one contiguous array of values."""
    coded = (item_N.combine_chunks() if isinstance(item_N, pa.ChunkedArray) else item_N).dictionary_encode()
    _, row_I = np.unique(coded.indices.to_numpy(zero_copy_only=False), return_index=True)
    return coded.dictionary, row_I.astype(np.int64)


def encode_items(item_I: Values, row_I: NDArray[np.int64]) -> bytes:
    """Distinct ids and their first rows as the bytes of a part."""
    sink = pa.BufferOutputStream()
    table = pa.table({"item": item_I, "first_row": pa.array(row_I)})
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode_items(content: bytes) -> Values:
    """The distinct ids, by first row, that ``encode_items`` wrote."""
    return pa.ipc.open_file(content).read_all()["item"].combine_chunks()


def to_ids(item_I: Values) -> NDArray[Any]:
    """Raw ids as numpy: int64, or objects holding str; a copy."""
    kind = np.int64 if pa.types.is_integer(item_I.type) else object
    return np.array(item_I.to_numpy(zero_copy_only=False), dtype=kind)


def _merge(items: list[Values], rows: list[NDArray[np.int64]]) -> tuple[Values, NDArray[np.int64]]:
    if not items:
        return pa.array([], pa.int64()), np.zeros(0, dtype=np.int64)
    item_I, first_I = first_unique(pa.chunked_array(items))
    return item_I, np.concatenate(rows)[first_I]
