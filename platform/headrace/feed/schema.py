"""The wire schema of rows that travel, and the way from a shard's own columns to it.

Owns what a shard and a row must look like (checked once, in words, when the shard lands; the ledger records which rows
fail) and how identities become hashes: a user, a session and an event id are hashed under different prefixes, so that
user 7 and session 7 never meet. Columns that Headrace does not read are carried under ``context.`` names, as they came.
Shape legend: N rows.
"""

import difflib
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.config.feed import ColumnsConfig
from headrace.errors import DataError
from headrace.records import KEY_GROUPS, Rows, hash64_array, kind_code

Values: TypeAlias = "pa.Array[Any]"
Column: TypeAlias = "pa.ChunkedArray[Any] | pa.Array[Any]"

CONTEXT = "context."
"""Prefix of carried columns on the wire, so that a column called ``row`` or ``ts`` cannot shadow ours."""

_FIXED: tuple[tuple[str, pa.DataType | None], ...] = (
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("group", pa.uint8()),
    ("user", pa.uint64()),
    ("session", pa.uint64()),
    ("item", None),
    ("ts", pa.int64()),
    ("kind", pa.int16()),
    ("target", pa.bool_()),
    ("weight", pa.float32()),
    ("event", pa.uint64()),
)
_LATEST_MS = 7_258_118_400_000  # the year 2200
_ROLES = ("request_id", "position", "propensity", "bundle_version")


def wire_schema(item_type: pa.DataType, carried: tuple[tuple[str, pa.DataType], ...] = ()) -> pa.Schema:
    """The Arrow schema of travelling rows: ``item_type`` int64 or string, ``carried`` (wire name, type) pairs."""
    fixed = [pa.field(name, item_type if kind is None else kind) for name, kind in _FIXED]
    return pa.schema(fixed + [pa.field(name, kind) for name, kind in carried])


def required_columns(columns: ColumnsConfig) -> dict[str, str]:
    """Role to name of the columns that every shard must have: those that the recipe names and Headrace reads."""
    roles = ("item_id", "ts", "session_id", "user_id", "event", "event_id", "weight")
    return {role: name for role in roles if (name := getattr(columns, role)) is not None}


def carried_columns(schema: pa.Schema, columns: ColumnsConfig) -> dict[str, str]:
    """Wire name to file name of the optional and context columns that a file with this schema has."""
    wanted = {role: getattr(columns, role) for role in _ROLES} | {name: name for name in columns.context}
    return {
        CONTEXT + key: name
        for key, name in wanted.items()
        if name in schema.names and not pa.types.is_null(schema.field(name).type)
    }


def travelling_columns(schema: pa.Schema, columns: ColumnsConfig) -> list[str]:
    """The file's columns that are read for the wire, each once."""
    return list(dict.fromkeys([*required_columns(columns).values(), *carried_columns(schema, columns).values()]))


def check_schema(schema: pa.Schema, columns: ColumnsConfig) -> None:
    """Raise DataError, naming the nearest existing column, unless a file with this schema can be a shard."""
    for role, name in required_columns(columns).items():
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.0)
            hint = f"; the nearest column is {near[0]!r}: set columns.{role}={near[0]}" if near else ""
            raise DataError(f"no column {name!r} (columns.{role}) among {', '.join(schema.names) or 'none'}{hint}")
        kind = _plain_type(schema.field(name).type)
        if not _fits(role, kind):
            raise DataError(f"column {name!r} (columns.{role}) is {kind}: it must be {_EXPECTED[role]}")


def column_types(schema: pa.Schema, columns: ColumnsConfig) -> tuple[tuple[str, str], ...]:
    """(file column, type) of the columns whose type must stay the same from shard to shard: items and carried ones."""
    item = "string" if _is_text(_plain_type(schema.field(columns.item_id).type)) else "int64"
    carried = carried_columns(schema, columns).values()
    return ((columns.item_id, item), *((name, str(_plain_type(schema.field(name).type))) for name in carried))


def find_faults(table: pa.Table, columns: ColumnsConfig) -> dict[str, NDArray[np.bool_]]:
    """Rows of a shard's file that cannot be used, by reason in words; a row has its first reason only.

    Pure, and called when the shard lands: what it finds is recorded, and every rank drops the rows on record. A row
    needs an item, a time that is possible, a user or a session, and a weight, where there is one, that can be used.
    """
    item, ts = _plain(table[columns.item_id]), _plain(table[columns.ts])
    owners = [name for name in (columns.user_id, columns.session_id) if name is not None]
    ts_N = _milliseconds(ts)
    weight_N = _weights(table, columns.weight)
    missing = {
        name: _plain(table[name]).is_null().to_numpy(zero_copy_only=False)
        for name in {columns.item_id, columns.ts, *owners}
    }
    faults = {
        f"no value in {columns.item_id}: every row needs an item": missing[columns.item_id],
        f"no value in {columns.ts}: every row needs a time": missing[columns.ts],
        f"no value in {' and '.join(owners)}: every row needs a user or a session": np.logical_and.reduce(
            [missing[name] for name in owners]
        ),
        f"the item id in {columns.item_id} exceeds 64 signed bits: land ids as strings": _beyond_int64(item),
        f"the time in {columns.ts} lies before 1970": ts_N < 0,
        f"the time in {columns.ts} lies after 2200: integers are milliseconds": ts_N >= _LATEST_MS,
        f"the weight in {columns.weight} is negative or not finite": ~np.isfinite(weight_N) | (weight_N < 0),
    }
    sound_N = np.ones(table.num_rows, dtype=bool)
    for reason, fault_N in faults.items():
        faults[reason] = fault_N & sound_N
        sound_N &= ~fault_N
    return {reason: fault_N for reason, fault_N in faults.items() if fault_N.any()}


def normalise(table: pa.Table, columns: ColumnsConfig, shard: int, sha256: str, row_N: NDArray[np.int64]) -> pa.Table:
    """Rows of a shard's file, all of them sound, in the wire schema.

    ``row_N`` are their row numbers in the file; ``shard`` is the ledger's number of its record and ``sha256`` names its
    content.
    """
    num_rows = table.num_rows
    user_N, session_N = owners(table, columns)
    owner_N = np.where(user_N != 0, user_N, session_N)
    kind_N, target_N = _kinds(table, columns)
    carried = carried_columns(table.schema, columns)
    arrays = [
        pa.array(np.full(num_rows, shard, dtype=np.int32)),
        pa.array(row_N.astype(np.int32)),
        pa.array((owner_N % np.uint64(KEY_GROUPS)).astype(np.uint8)),
        pa.array(user_N),
        pa.array(session_N),
        _items(table[columns.item_id]),
        pa.array(times_ms(table, columns.ts)),
        pa.array(kind_N),
        pa.array(target_N),
        pa.array(_weights(table, columns.weight)),
        pa.array(_events(table, columns.event_id, row_N, sha256)),
    ]
    arrays += [_plain(table[name]) for name in carried.values()]
    return pa.table(arrays, names=[name for name, _ in _FIXED] + list(carried))


def owners(table: pa.Table, columns: ColumnsConfig) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of user and session of a shard's own rows; 0 where there is none."""
    return _owners(table, columns.user_id, "user"), _owners(table, columns.session_id, "session")


def rows_from_table(table: pa.Table) -> Rows:
    """Wire rows as numpy arrays; everything is copied, so that no block of shared memory stays pinned."""

    def column(name: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.array(table[name].to_numpy(), dtype=kind)

    item = table["item"]
    return Rows(
        shard_N=column("shard", np.int64),
        row_N=column("row", np.int64),
        group_N=column("group", np.uint8),
        user_N=column("user", np.uint64),
        session_N=column("session", np.uint64),
        item_N=np.array(item.to_numpy(), dtype=np.int64 if pa.types.is_integer(item.type) else object),
        ts_N=column("ts", np.int64),
        kind_N=column("kind", np.int16),
        target_N=column("target", np.bool_),
        weight_N=column("weight", np.float32),
        event_N=column("event", np.uint64),
        context={
            name.removeprefix(CONTEXT): np.array(table[name].to_numpy())
            for name in table.column_names
            if name.startswith(CONTEXT)
        },
    )


_EXPECTED = {
    "item_id": "integers or strings",
    "ts": "a timestamp, or integers in milliseconds since the epoch",
    "session_id": "integers or strings",
    "user_id": "integers or strings",
    "event": "strings or integers",
    "event_id": "integers or strings",
    "weight": "numbers",
}


def _fits(role: str, kind: pa.DataType) -> bool:
    if role == "ts":
        return bool(pa.types.is_timestamp(kind) or pa.types.is_integer(kind))
    if role == "weight":
        return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
    return bool(pa.types.is_integer(kind)) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(column: Column) -> Values:
    """One contiguous array without dictionary encoding, so that blocks of different files have one type."""
    kind = _plain_type(column.type)
    column = column.cast(kind) if kind != column.type else column
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _items(column: Column) -> Values:
    item_N = _plain(column)
    assert not item_N.null_count, "rows without an item are dropped before"
    return item_N.cast(pa.string() if _is_text(item_N.type) else pa.int64())


def _beyond_int64(item_N: Values) -> NDArray[np.bool_]:
    if not pa.types.is_uint64(item_N.type):
        return np.zeros(len(item_N), dtype=bool)
    return np.asarray(item_N.fill_null(0).to_numpy(zero_copy_only=False) >= np.uint64(2**63))


def times_ms(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Event times of a shard's own ``name`` column, milliseconds; DataError where one is missing."""
    column = _plain(table[name])
    if column.null_count:
        row = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"{column.null_count} rows have no value in {name} (the first is row {row}): repair the file")
    return _milliseconds(column)


def _milliseconds(column: Values) -> NDArray[np.int64]:
    """Times as integers; 0 for a missing one."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False)
    return np.asarray(column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _hashes(column: Column, *prefix: int | str) -> NDArray[np.uint64]:
    """``hash64(*prefix, value)`` of each value, 0 for a missing one; each distinct string is hashed once."""
    column = _plain(column)
    if pa.types.is_integer(column.type):
        hash_N = hash64_array(column.fill_null(0).to_numpy(zero_copy_only=False), *prefix)
    else:
        coded = column.dictionary_encode()
        value_U = np.array(coded.dictionary.to_pylist() or [""], dtype=object)
        code_N = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        hash_N = hash64_array(value_U, *prefix)[code_N]
    if column.null_count:
        hash_N = np.where(column.is_null().to_numpy(zero_copy_only=False), np.uint64(0), hash_N)
    return hash_N


def _owners(table: pa.Table, name: str | None, prefix: str) -> NDArray[np.uint64]:
    return np.zeros(table.num_rows, dtype=np.uint64) if name is None else _hashes(table[name], prefix)


def _kinds(table: pa.Table, columns: ColumnsConfig) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    if columns.event is None:
        return np.zeros(table.num_rows, dtype=np.int16), np.ones(table.num_rows, dtype=np.bool_)
    coded = _plain(table[columns.event]).cast(pa.string()).fill_null("").dictionary_encode()
    kinds = [str(kind) for kind in coded.dictionary.to_pylist()]
    code_N = coded.indices.to_numpy(zero_copy_only=False)
    code_U = np.array([kind_code(kind) for kind in kinds], dtype=np.int16)
    target_U = np.array([not columns.target_kinds or kind in columns.target_kinds for kind in kinds], dtype=np.bool_)
    return code_U[code_N], target_U[code_N]


def _weights(table: pa.Table, name: str | None) -> NDArray[np.float32]:
    if name is None:
        return np.ones(table.num_rows, dtype=np.float32)
    column = _plain(table[name]).cast(pa.float64()).fill_null(1.0)
    with np.errstate(over="ignore"):
        return np.asarray(column.to_numpy(zero_copy_only=False).astype(np.float32))


def _events(table: pa.Table, name: str | None, row_N: NDArray[np.int64], sha256: str) -> NDArray[np.uint64]:
    default_N = hash64_array(row_N, "row", int(sha256[:16], 16))
    if name is None:
        return default_N
    event_N = _hashes(table[name], "event")
    return np.where(event_N == 0, default_N, event_N)
