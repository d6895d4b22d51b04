"""Ray Data around the ledger: one unbounded dataset per rank, and its rows put back together as cuts.

The only file of this room that imports ray. One read task tails the ledger and yields, per cut, the rows of the rank's
key groups, those of the cut's window, and then one *flush block*. The block is there because Ray Data holds rows back
until a block is full and a consumer's prefetch holds one more: it pushes the rows before it out of both, so a cut is
whole at its first flush row (shard -1, row = the cut's number). The task never looks at a clock to decide what it
yields: it is a pure function of (ledger, start). Waiting for rows happens in the consumer's thread, outside of
collectives.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import environment
from headrace.config.feed import ColumnsConfig
from headrace.errors import StoreError
from headrace.feed.ledger import LedgerReader
from headrace.feed.rows import cut_table, key_groups, one_table, whole_cut, window_tables
from headrace.records import CutRows
from headrace.store.store import Store

# By default Ray Data hands a finished block on only in the next turn of its loop, which waits a tenth of a second for
# more: half of all cuts would arrive that much later. It is read as ray.data is imported, here or in the worker.
environment.prepare()

import ray.data  # noqa: E402
from ray.data import DataContext  # noqa: E402
from ray.data._internal.execution.operators import map_operator  # noqa: E402
from ray.data.block import BlockMetadata  # noqa: E402
from ray.data.datasource import Datasource, ReadTask  # noqa: E402

# Ray Data keeps a kilobyte and more on every block for the summary at a dataset's end, and ours never end.
assert hasattr(map_operator, "to_stats"), "another Ray: see where its operators keep what they know of blocks"
map_operator.to_stats = lambda metadata: []

_FLUSH_BLOCKS = 3
"""A flush block is this many blocks long; with one and a half, every other cut waited for the next."""


@dataclass(frozen=True)
class StreamSpec:
    """What a rank reads. Made by train/driver.py at every start, read by the read task and by the rank."""

    store_uri: str
    epoch: int
    """The ledger is read as the writer of this epoch sees it, and ends at this epoch's stop record."""
    after_cut: int
    """The newest committed cut; -1: from the beginning."""
    columns: ColumnsConfig
    block_bytes: int = 65536
    """Size at which Ray Data hands rows on; tens of blocks a cut are best."""
    poll_s: float = 0.02
    """How often the ledger is asked for its next record."""
    last_cut: int | None = None
    """End after this cut, whatever follows; None: at the stop record."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes that may run the read task; none: any."""

    def __post_init__(self) -> None:
        assert "://" in self.store_uri or Path(self.store_uri).is_absolute(), "Train's workers change directory"

    def reader(self) -> LedgerReader:
        """The ledger that this stream reads."""
        return LedgerReader(Store(self.store_uri), self.epoch)


def make_dataset(rank: int, world: int, spec: StreamSpec) -> ray.data.Dataset:
    """The rank's rows from ``spec.after_cut + 1`` on, until the stop record; runs where the rank iterates it.

    Read it with ``iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)``. The read task is not
    retried: where rows begin again is the driver's decision.
    """
    context = DataContext.get_current()
    block_bytes = context.target_max_block_size
    context.target_max_block_size = spec.block_bytes  # the dataset keeps a copy of the context of this moment
    try:
        return ray.data.read_datasource(
            _LedgerSource(rank, world, spec),
            override_num_blocks=1,
            concurrency=1,
            num_cpus=0.25,
            ray_remote_args={"max_retries": 0, "label_selector": dict(spec.labels)},
        )
    finally:
        context.target_max_block_size = block_bytes


def iter_cuts(batches: Iterable[pa.Table], spec: StreamSpec) -> Iterator[CutRows]:
    """Every cut once, in order, also those in which this rank has no rows; ends after the cut before the stop record.

    ``batches`` are those of ``make_dataset`` with the same ``spec``. Rows are copied when their cut is whole, and then
    no block of shared memory is held. The whole cut's item ids are read from the facts in the store.
    """
    reader = spec.reader()
    rows: list[pa.Table] = []
    newest = spec.after_cut
    for batch in batches:
        for part, flushed_cut in _runs(batch):
            if flushed_cut < 0:
                rows.append(part)
            elif flushed_cut > newest:
                if flushed_cut != newest + 1:
                    raise StoreError(f"cut {flushed_cut} arrived after cut {newest}: start the run again")
                cut, newest = reader.cut(flushed_cut), flushed_cut
                whole = whole_cut(reader, cut, spec.columns, rows or [part.slice(0, 0)])
                rows = []
                yield whole


def _runs(batch: pa.Table) -> Iterator[tuple[pa.Table, int]]:
    """The batch in stretches of rows (with -1) and of flush rows (with the number of the cut that they end)."""
    if not batch.num_rows:
        return
    mark_N = np.where(batch["shard"].to_numpy() < 0, batch["row"].to_numpy(), -1)
    edges = [0, *(np.flatnonzero(np.diff(mark_N)) + 1).tolist(), batch.num_rows]
    for start, stop in pairwise(edges):
        yield batch.slice(start, stop - start), int(mark_N[start])


class _LedgerSource(Datasource):  # type: ignore[misc]
    """A datasource of one read task, which tails the ledger."""

    def __init__(self, rank: int, world: int, spec: StreamSpec) -> None:
        super().__init__()
        self._groups = key_groups(rank, world)
        self._spec = spec

    def get_name(self) -> str:
        """What Ray calls the operator."""
        return "Ledger"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: the stream has no end."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ANN401 (ray's signature)
        """One task, whatever the parallelism: order comes from there being one."""
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(_read, self._spec, self._groups), metadata)]


def _read(spec: StreamSpec, groups: tuple[int, ...]) -> Iterator[pa.Table]:
    """Runs in the read task: per cut the rows of ``groups``, those of its window, then a flush block."""

    def wait() -> bool:
        sleep(spec.poll_s)
        return True

    reader = spec.reader()
    for cut in reader.tail(spec.after_cut, wait):
        tables = [cut_table(reader, cut, spec.columns, groups), *window_tables(reader, cut, spec.columns, groups)]
        rows = one_table(tables)
        if rows.num_rows:
            yield rows
        yield _flush_block(rows.schema, cut.number, spec.block_bytes)
        if cut.number == spec.last_cut:
            return


def _flush_block(schema: pa.Schema, cut: int, block_bytes: int) -> pa.Table:
    """Rows that only push: shard -1, row = the cut's number, everything else zero, empty or null."""
    row_bytes = max(1, _padding(schema, 1024).nbytes // 1024)
    num_rows = math.ceil(_FLUSH_BLOCKS * block_bytes / row_bytes)
    table = _padding(schema, num_rows)
    marks = {"shard": np.full(num_rows, -1, dtype=np.int32), "row": np.full(num_rows, cut, dtype=np.int32)}
    for name, mark_N in marks.items():
        table = table.set_column(schema.get_field_index(name), name, pa.array(mark_N))
    return table


def _padding(schema: pa.Schema, num_rows: int) -> pa.Table:
    return pa.table([pa.nulls(num_rows, field.type) for field in schema], schema=schema)
