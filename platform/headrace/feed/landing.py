"""The landing folder, local or on an object store: files come in under a temporary name and are renamed when whole.

Used by both ends: the replayer and the synthetic stream land shards here, the keeper lists and opens them.
"""

import contextlib
import os
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from headrace.clock import monotonic_s
from headrace.store.store import resolve

SUFFIX = ".parquet"


@dataclass(frozen=True)
class Landed:
    """A shard that has landed. Made by whoever lands it, read by the driver, which counts freshness from it."""

    name: str
    landed_s: float
    """Monotonic clock when the rename had returned."""
    num_rows: int


class ShardSource(Protocol):
    """Whatever lands shards of its own: the replayer, the synthetic stream. No threads, no sleeping."""

    @property
    def exhausted(self) -> bool:
        """Whether everything has landed."""

    def step(self, now_s: float, committed_files: int) -> tuple[Landed, ...]:
        """Land what is due at ``now_s`` (monotonic), given how many landed files training is done with."""


class Landing:
    """A folder in which shards land. Cheap to construct."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())

    def uri_of(self, name: str) -> str:
        """Where the shard of this name lies."""
        return f"{self.uri}/{name}"

    def list_new(self, known: Container[str]) -> list[tuple[str, int]]:
        """(name, size in bytes) of the shards that are not ``known``, by name; empty when there is no folder yet.

        Names that begin with a dot or underscore, or do not end in .parquet, are somebody's temporary files. Known
        names cost no more than their place in the listing.
        """
        file_system, root = _resolve(self.uri)
        if isinstance(file_system, fs.LocalFileSystem):
            return _scan(root, known)
        listed = file_system.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return sorted(
            (info.base_name, int(info.size))
            for info in listed
            if info.type == fs.FileType.File and _is_shard(info.base_name) and info.base_name not in known
        )

    def land(self, name: str, table: pa.Table) -> Landed:
        """Land a table as the shard ``name``: the same rows give the same bytes, seen whole or not at all."""
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata(None)
        pq.write_table(table, sink, compression="zstd", row_group_size=max(1, table.num_rows))
        content = sink.getvalue()
        file_system, root = _resolve(self.uri)
        if isinstance(file_system, fs.LocalFileSystem):
            Path(root).mkdir(parents=True, exist_ok=True)
            Path(f"{root}/.{name}.tmp").write_bytes(content)
            os.replace(f"{root}/.{name}.tmp", f"{root}/{name}")
        else:
            with file_system.open_output_stream(f"{root}/{name}") as stream:
                stream.write(content)
        return Landed(name, monotonic_s(), table.num_rows)

    def remove(self, name: str) -> None:
        """Remove a shard that nobody needs any more; nothing happens when it is not there."""
        file_system, root = _resolve(self.uri)
        with contextlib.suppress(FileNotFoundError):
            file_system.delete_file(f"{root}/{name}")

    def num_landed(self) -> int:
        """One more than the highest number among the shards that ``shard_name`` named; 0 when there are none."""
        return max((number_of(name) + 1 for name, _ in self.list_new(())), default=0)


def shard_name(index: int) -> str:
    """The name of the shard that lands as number ``index``: names sort as they land."""
    return f"shard-{index:06d}{SUFFIX}"


def number_of(uri: str) -> int:
    """The number under which the run itself landed a file; -1 where its name has none."""
    number = uri.rsplit("/", 1)[-1].removesuffix(SUFFIX).partition("-")[2]
    return int(number) if number.isdigit() else -1


def open_file(uri: str) -> pa.NativeFile:
    """A file opened for random access; FileNotFoundError when it is not there."""
    folder, _, name = uri.rpartition("/")
    file_system, root = _resolve(folder)
    return file_system.open_input_file(f"{root}/{name}")


def is_local(uri: str) -> bool:
    """Whether a file lies on this host."""
    return isinstance(_resolve(uri.rpartition("/")[0])[0], fs.LocalFileSystem)


@lru_cache(maxsize=64)
def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    return resolve(uri)


def _is_shard(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith((".", "_"))


def _scan(root: str, known: Container[str]) -> list[tuple[str, int]]:
    found = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if _is_shard(entry.name) and entry.name not in known:
                    try:
                        if entry.is_file():
                            found.append((entry.name, entry.stat().st_size))
                    except FileNotFoundError:  # gone since the listing
                        continue
    except FileNotFoundError:
        return []
    return sorted(found)
