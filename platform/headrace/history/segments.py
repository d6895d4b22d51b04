"""Rows by key, in sorted immutable segments: an increment adds one small segment, and older ones stay as they are.

So a commit writes only what is new (segments are content-addressed parts), and looking up an increment's keys is a few
binary searches. Segments are merged like a binary counter: there are about log2(rows) of them, and a row is rewritten
about as often. Everything is a pure function of the appended rows. Shape legend: N rows, K keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.inputs.contexts import ranges

Columns = dict[str, NDArray[Any]]


class SegmentLog:
    """Rows with a ``key`` (uint64) and a ``ts`` (ms): the newest ``max_per_key`` of each key, bounded in bytes."""

    def __init__(self, columns: Mapping[str, type], max_per_key: int, max_bytes: int) -> None:
        self._dtypes: dict[str, np.dtype[Any]] = {
            "key": np.dtype(np.uint64),
            "ts": np.dtype(np.int64),
            **{name: np.dtype(kind) for name, kind in columns.items()},
        }
        self._max_per_key = max_per_key
        self._max_bytes = max_bytes
        self._segments: list[Columns] = []

    def __len__(self) -> int:
        return sum(len(segment["key"]) for segment in self._segments)

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return len(self) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return sum(dtype.itemsize for dtype in self._dtypes.values())

    def find(self, key_K: NDArray[np.uint64]) -> Columns:
        """All rows of these keys (each given once), older segments first."""
        return _concatenate([self._empty(), *rows_of(self._segments, key_K)])

    def append(self, rows: Mapping[str, NDArray[Any]], oldest_ms: int | None = None) -> None:
        """Add rows, in order of arrival. Rows older than ``oldest_ms`` leave when their segment is merged next."""
        if not len(rows["key"]):
            return
        new = {name: np.asarray(rows[name], dtype=dtype) for name, dtype in self._dtypes.items()}
        self._segments.append(self._sorted(new))
        while len(self._segments) > 1 and len(self._segments[-2]["key"]) < 2 * len(self._segments[-1]["key"]):
            self._merge_last(2, oldest_ms)
        if self.size_bytes > self._max_bytes:
            self._merge_last(len(self._segments), oldest_ms)
            self._keep_newest(self._max_bytes * 3 // 4 // self._row_bytes)

    def state(self) -> list[Columns]:
        """The segments, oldest first; never changed after they are handed out."""
        return list(self._segments)

    def load(self, segments: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Take over what ``state`` gave."""
        self._segments = [{name: segment[name] for name in self._dtypes} for segment in segments]

    def _merge_last(self, count: int, oldest_ms: int | None) -> None:
        merged = _concatenate(self._segments[-count:])
        if oldest_ms is not None:
            keep_N = merged["ts"] >= oldest_ms
            merged = {name: column[keep_N] for name, column in merged.items()}
        self._segments[-count:] = [self._sorted(merged)]

    def _sorted(self, rows: Columns) -> Columns:
        """Sorted by (key, ts, arrival), with the newest ``max_per_key`` of each key."""
        order_N = np.lexsort((rows["ts"], rows["key"]))
        key_N = rows["key"][order_N]
        from_end_N = np.searchsorted(key_N, key_N, side="right") - np.arange(len(key_N))
        order_N = order_N[from_end_N <= self._max_per_key]
        return {name: column[order_N] for name, column in rows.items()}

    def _keep_newest(self, num_rows: int) -> None:
        (rows,) = self._segments
        if len(rows["key"]) > num_rows:
            newest_N = np.sort(np.argsort(rows["ts"], kind="stable")[len(rows["key"]) - num_rows :])
            self._segments = [{name: column[newest_N] for name, column in rows.items()}]

    def _empty(self) -> Columns:
        return {name: np.zeros(0, dtype=dtype) for name, dtype in self._dtypes.items()}


def rows_of(segments: Sequence[Columns], key_K: NDArray[np.uint64]) -> list[Columns]:
    """The rows of these keys (each given once) in every segment that has any, in the segments' order."""
    found = []
    for segment in segments:
        first_K = np.searchsorted(segment["key"], key_K, side="left").astype(np.int64)
        last_K = np.searchsorted(segment["key"], key_K, side="right").astype(np.int64)
        flat_N = ranges(first_K, last_K - first_K)
        if len(flat_N):
            found.append({name: column[flat_N] for name, column in segment.items()})
    return found


def _concatenate(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
