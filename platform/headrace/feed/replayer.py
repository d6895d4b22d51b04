"""Lands a log as shards, in event time: a slice of event time each, or a file of the log each.

Names and bytes are a pure function of (log, slices), so a replayer that starts again passes over what has landed and
goes on. What the log's side feed says by the time at which a slice begins lands before it. It reads the log a file at
a time. It waits while ``ahead`` shards are not committed, and with ``speed`` set it lands each slice when that slice
would be over.
Shape legend: N rows of a log file.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.config.feed import ColumnsConfig, ReplayConfig
from headrace.errors import DataError
from headrace.feed.items import ItemsLog
from headrace.feed.landing import Landed, Landing, open_file, shard_name
from headrace.feed.schema import check_schema, times_ms

_FIRST = np.iinfo(np.int64).min
"""The key of the first slice where it has a length of its own."""


class Replayer:
    """Lands ``log`` into ``landing``, one ``step`` at a time; no threads and no sleeping.

    ``warmup_shards``: so many may lie uncommitted, whatever ``ahead`` says, since the first cut waits for them.
    """

    def __init__(
        self,
        config: ReplayConfig,
        columns: ColumnsConfig,
        log: Landing,
        landing: Landing,
        warmup_shards: int = 1,
        items: ItemsLog | None = None,
    ) -> None:
        self._items = items
        self._config = config
        self._ahead = max(config.ahead, warmup_shards)
        self._columns = columns
        self._log = log
        self._landing = landing
        self._slices: Iterator[tuple[pa.Table, int]] | None = None
        self._next: tuple[pa.Table, int] | None = None
        self._num_landed = 0
        self._anchor: tuple[float, int] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the whole log has landed; known after the first step."""
        return self._slices is not None and self._next is None

    def step(self, now_s: float, committed_files: int) -> tuple[Landed, ...]:
        """Land what is due at ``now_s`` (monotonic), at most ``ahead`` shards beyond the ``committed_files``.

        DataError when the log has no Parquet file or lacks a column.
        """
        try:
            return self._step(now_s, committed_files)
        except Exception:
            self._slices = self._next = None  # nothing is passed over: another start counts again what has landed
            raise

    def _step(self, now_s: float, committed_files: int) -> tuple[Landed, ...]:
        if self._slices is None:
            self._begin()
        landed = []
        while self._next is not None and self._num_landed - committed_files < self._ahead and self._due(now_s):
            if self._items is not None:
                self._items.land(self._num_landed, self._first_ms(self._next[0]))
            landed.append(self._landing.land(shard_name(self._num_landed), self._next[0]))
            self._num_landed += 1
            self._next = next(self._slices, None) if self._slices else None
        return tuple(landed)

    def _begin(self) -> None:
        slices = self._cut_log()
        self._num_landed = self._landing.num_landed()
        for _ in range(self._num_landed):
            passed = next(slices, None)
            if self._items is not None and passed is not None:
                self._items.pass_over(self._first_ms(passed[0]))
        self._next = next(slices, None)
        self._slices = slices  # last: another thread asks whether the log is exhausted

    def _first_ms(self, table: pa.Table) -> int:
        return int(times_ms(table, self._columns.ts).min())

    def _due(self, now_s: float) -> bool:
        assert self._next is not None
        if self._config.speed is None:
            return True
        if self._anchor is None:
            self._anchor = now_s, self._next[1]
        anchor_s, anchor_ms = self._anchor
        return now_s >= anchor_s + (self._next[1] - anchor_ms) / 1000 / self._config.speed

    def _cut_log(self) -> Iterator[tuple[pa.Table, int]]:
        """Each slice's rows, and the event time (ms) at which it is over; slices without events are left out."""
        files = self._files()
        if self._config.slice_s == "file":
            for table, ts_N in files:
                yield table, int(ts_N[-1])
            return
        held: list[pa.Table] = []
        key, slices = _FIRST, None
        for table, ts_N in files:
            slices = slices or _Slices(int(ts_N[0]), self._config.slice_s, self._config.first_slice_s)
            key = key if held else int(slices.key(ts_N[:1])[0])
            key_N = np.maximum(slices.key(ts_N), key)  # an event that comes late joins the slice that is open
            edges = [0, *(np.flatnonzero(np.diff(key_N)) + 1).tolist(), len(key_N)]
            for start, stop in pairwise(edges):
                if int(key_N[start]) != key:
                    yield _join(held), slices.end_ms(key)
                    held, key = [], int(key_N[start])
                held.append(table.slice(start, stop - start))
        if held and slices is not None:
            yield _join(held), slices.end_ms(key)

    def _files(self) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """The log's files that have rows, by name, each sorted by event time, with those times (ms)."""
        names = [name for name, _ in self._log.list_new(())]
        if not names:
            raise DataError(f"no .parquet file in {self._log.uri}: feed.path must name the folder of the log")
        for name in names:
            with open_file(self._log.uri_of(name)) as file:
                table = pq.read_table(file)
            try:
                check_schema(table.schema, self._columns)
            except DataError as error:
                raise DataError(f"{self._log.uri_of(name)}: {error}") from error
            if table.num_rows:
                ts_N = times_ms(table, self._columns.ts)
                if (np.diff(ts_N) < 0).any():
                    order_N = np.argsort(ts_N, kind="stable")
                    table, ts_N = table.take(order_N), ts_N[order_N]
                yield table, ts_N


class _Slices:
    """Which slice a time falls in: multiples of ``slice_s``, after a first slice counted from the first event."""

    def __init__(self, first_ms: int, slice_s: int, first_slice_s: int | None) -> None:
        self._slice_ms = slice_s * 1000
        self._first_end_ms = None if first_slice_s is None else first_ms + first_slice_s * 1000

    def key(self, ts_N: NDArray[np.int64]) -> NDArray[np.int64]:
        key_N = ts_N // self._slice_ms
        return key_N if self._first_end_ms is None else np.where(ts_N < self._first_end_ms, _FIRST, key_N)

    def end_ms(self, key: int) -> int:
        if key == _FIRST and self._first_end_ms is not None:
            return self._first_end_ms
        return (key + 1) * self._slice_ms


def _join(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default").combine_chunks()
