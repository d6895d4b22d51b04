"""A folder of Parquet as one log in order of time: which files it is, how it is read, and what was wrong with it.

Files that share their columns are one log; of several, the one with the most rows in which an item and a time can be
found is taken. What production's own reader could not take as it is (seconds instead of milliseconds, files that are
not in order of time by name, rows without an owner) is mended here and remembered, so that it can be said.
Shape legend: N rows of the log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.onboard.columns import ids, is_text, to_ms
from headrace.onboard.guess import Guess, schema_key
from headrace.onboard.words import count, listing, share
from headrace.records import hash64_array

SAMPLE_ROWS = 200_000
"""Rows that the columns are guessed from: the first of the log, since rhythm needs neighbours."""
_LOAD_ROWS = 2_000_000
_OUT_OF_ORDER = 0.01

Tell = Callable[[str], None]
"""Prints a line."""


@dataclass(frozen=True)
class Files:
    """The files that make up the log. Made by ``find_files``."""

    folder: Path
    paths: tuple[Path, ...]
    """By name; those without rows are left out."""
    num_rows: int
    size_bytes: int
    left_out: tuple[str, ...]
    """What else lies there, with the reason."""
    mend: tuple[str, ...]
    """Why ``headrace run`` cannot take the folder as it is."""


@dataclass(frozen=True)
class Log:
    """Rows in order of time, under their own names; times are milliseconds. Made by ``load``."""

    table: pa.Table
    ts_N: NDArray[np.int64]
    owner_N: NDArray[np.uint64]
    """Hash of the user, else of the session; never 0."""
    loaded_share: float
    """Share of the owners that were read, where the log is too large for memory."""
    num_dropped: int
    """Rows without an item, a time or an owner."""
    mend: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ts_N)

    def take(self, keep_N: NDArray[np.bool_]) -> "Log":
        """The rows that are kept, in order."""
        mask = pa.array(keep_N)
        return Log(
            self.table.filter(mask),
            self.ts_N[keep_N],
            self.owner_N[keep_N],
            self.loaded_share,
            self.num_dropped,
            self.mend,
        )


def find_files(folder: Path) -> Files:
    """The Parquet files under a folder that are one log; DataError, in words, where there is none."""
    if not folder.exists():
        raise DataError(f"{folder} is not there: name a folder of Parquet files")
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if _is_visible(path, folder))
    if not found:
        raise DataError(f"{folder} is empty: name a folder of Parquet files")
    files = [path for path in found if path.suffix.lower() in (".parquet", ".pq")]
    if not files:
        kinds = sorted({path.suffix or path.name for path in found})
        raise DataError(
            f"{folder} has no .parquet file among {count(len(found))} files ({listing(kinds, 6)}): write the log as "
            "Parquet, for example with pandas.read_csv(..).to_parquet(..)"
        )
    groups, left_out = _by_schema(files)
    if not groups:
        raise DataError(f"no file in {folder} has rows: {listing(left_out, 4)}")
    chosen = max(groups.values(), key=lambda group: (_looks_like_a_log(group[0][0]), sum(rows for _, rows in group)))
    for group in groups.values():
        if group is not chosen:
            left_out.append(f"{listing([path.name for path, _ in group], 3)}: other columns than the log's")
    paths = [path for path, _ in chosen]
    mend = []
    if folder.is_file() or any(path.parent != folder for path in paths):
        mend.append("its files lie in folders within folders" if folder.is_dir() else "it is a file, not a folder")
    if len(groups) > 1:
        mend.append("files with other columns lie between")
    if any(path.suffix != ".parquet" for path in paths):
        mend.append("names do not end in .parquet")
    num_rows = sum(rows for _, rows in chosen)
    size_bytes = sum(path.stat().st_size for path in paths)
    return Files(folder, tuple(paths), num_rows, size_bytes, tuple(left_out), tuple(mend))


def sample(files: Files) -> pa.Table:
    """The first rows of the log, all columns."""
    batches: list[pa.RecordBatch] = []
    schema, num_rows = pq.read_schema(files.paths[0]).remove_metadata(), 0
    for path in files.paths:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(65_536):
                batches.append(batch)
                num_rows += batch.num_rows
                if num_rows >= SAMPLE_ROWS:
                    break
        if num_rows >= SAMPLE_ROWS:
            break
    tables = [pa.table(batch).select(schema.names) for batch in batches]
    return pa.concat_tables(tables, promote_options="permissive").slice(0, SAMPLE_ROWS)


def load(files: Files, guess: Guess, most_rows: int = _LOAD_ROWS) -> Log:
    """The log's rows, sorted by time; of a larger log the rows of a share of its owners, by hash."""
    loaded_share = min(1.0, most_rows / max(1, files.num_rows))
    item_is_text = is_text(_role_type(files, guess.item_id))
    parts: list[pa.Table] = []
    owners: list[NDArray[np.uint64]] = []
    num_read = num_late = 0
    newest = np.iinfo(np.int64).min
    for path in files.paths:
        before = newest
        for batch in _batches(path, guess):
            table, owner_N, present_N = _mended(batch, guess, item_is_text, path)
            num_read += batch.num_rows
            keep_N = present_N & (owner_N.astype(np.float64) / 2.0**64 < loaded_share)
            ts_N = np.asarray(table[guess.ts].combine_chunks().fill_null(0))
            num_late += int((ts_N[present_N] < before).sum())
            newest = max(newest, int(ts_N[present_N].max(initial=newest)))
            num_missing = int((~present_N).sum())
            parts.append(table.filter(pa.array(keep_N)))
            owners.append(np.append(owner_N[keep_N], np.uint64(num_missing)))  # the last one is a count
    num_dropped = int(sum(int(part[-1]) for part in owners))
    owner_N = np.concatenate([part[:-1] for part in owners])
    table = pa.concat_tables(parts, promote_options="default").combine_chunks()
    ts_N = table[guess.ts].to_numpy()
    order_N = np.argsort(ts_N, kind="stable")
    mend = [*files.mend, *_complaints(guess, files, num_dropped, num_late / max(1, num_read))]
    return Log(table.take(order_N), ts_N[order_N], owner_N[order_N], loaded_share, num_dropped, tuple(mend))


def write(log: Log, folder: Path, rows_per_file: int = 1_000_000) -> None:
    """The log as Parquet files in order of time by name, as ``headrace run`` takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(log), rows_per_file)):
        pq.write_table(log.table.slice(start, rows_per_file), folder / f"part-{number:05d}.parquet", compression="zstd")


def _is_visible(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden


def _by_schema(files: Sequence[Path]) -> tuple[dict[tuple[str, ...], list[tuple[Path, int]]], list[str]]:
    """Files that have rows, by their columns' names; and what was left out, with the reason."""
    groups: dict[tuple[str, ...], list[tuple[Path, int]]] = {}
    left_out = []
    for path in files:
        try:
            metadata = pq.read_metadata(path)
            schema = metadata.schema.to_arrow_schema()
        except (pa.ArrowInvalid, OSError) as error:
            left_out.append(f"{path.name}: it cannot be read as Parquet ({str(error).splitlines()[0]})")
            continue
        if metadata.num_rows:
            groups.setdefault(schema_key(schema), []).append((path, metadata.num_rows))
        else:
            left_out.append(f"{path.name}: no rows")
    return groups, left_out


def _looks_like_a_log(path: Path) -> bool:
    """Whether a time can be among the columns, going by types and names alone: a list of items has none."""
    schema = pq.read_schema(path)
    return any(
        pa.types.is_timestamp(field.type)
        or pa.types.is_date(field.type)
        or any(word in field.name.lower() for word in ("time", "ts", "date", "dat"))
        for field in schema
    )


def _role_type(files: Files, name: str) -> Any:  # noqa: ANN401
    field = pq.read_schema(files.paths[0]).field(name).type
    kind = field.value_type if pa.types.is_dictionary(field) else field
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _batches(path: Path, guess: Guess) -> Any:  # noqa: ANN401
    with pq.ParquetFile(path) as parquet:
        yield from parquet.iter_batches(262_144, columns=list(dict.fromkeys(guess.named.values())))


def _mended(
    batch: Any,  # noqa: ANN401
    guess: Guess,
    item_is_text: bool,
    path: Path,
) -> tuple[pa.Table, NDArray[np.uint64], NDArray[np.bool_]]:
    """The batch as Headrace reads it, the owner of each row, and which rows have all that they need."""
    arrays: dict[str, Any] = {}
    try:
        for role, name in guess.named.items():
            column = batch.column(batch.schema.get_field_index(name))
            arrays[name] = to_ms(column, guess.unit, name) if role == "ts" else ids(column, name)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from error
    if item_is_text:
        arrays[guess.item_id] = arrays[guess.item_id].cast(pa.string())
    owner_N = np.zeros(batch.num_rows, dtype=np.uint64)
    for role in ("session_id", "user_id"):  # the user where there is one
        if (owner := guess.named.get(role)) is not None:
            hash_N = _hashes(arrays[owner])
            owner_N = np.where(hash_N != 0, hash_N, owner_N)
    needed = pc.and_(pc.is_valid(arrays[guess.item_id]), pc.is_valid(arrays[guess.ts]))
    return pa.table(arrays), owner_N, needed.to_numpy(zero_copy_only=False) & (owner_N != 0)


def _hashes(column: Any) -> NDArray[np.uint64]:  # noqa: ANN401
    """A hash of each value, 0 for null."""
    coded = column.dictionary_encode()
    values = coded.dictionary.to_numpy(zero_copy_only=False)
    hash_U = np.maximum(hash64_array(values, "onboard"), np.uint64(1)) if len(values) else np.zeros(1, np.uint64)
    code_N = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    hash_N: NDArray[np.uint64] = np.where(column.is_valid().to_numpy(zero_copy_only=False), hash_U[code_N], 0)
    return hash_N.astype(np.uint64)


def _complaints(guess: Guess, files: Files, num_dropped: int, late_share: float) -> list[str]:
    told = []
    if guess.unit not in ("time", "ms"):
        told.append("its times are text" if guess.unit == "text" else "its times are not milliseconds")
    schema = pq.read_schema(files.paths[0])
    if pa.types.is_date(schema.field(guess.ts).type):
        told.append("its times are dates")
    floats = [name for role, name in guess.named.items() if role != "ts" and _is_float(schema, name)]
    if floats:
        told.append(f"ids are written as floats ({listing(floats)})")
    if num_dropped:
        told.append(f"{count(num_dropped)} rows lack an item, a time or an owner")
    if late_share > _OUT_OF_ORDER:
        told.append(f"files are not in order of time by name ({share(late_share)} of the rows come late)")
    return told


def _is_float(schema: pa.Schema, name: str) -> bool:
    return bool(pa.types.is_floating(schema.field(name).type))
