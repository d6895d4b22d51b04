"""How long a landed file takes to reach the ranks: "landed file -> rows at the rank".

Starts when the producer's rename has returned and ends when the last rank holds its whole cut as numpy arrays. Two
actors read as Train's workers do, each its own dataset; the keeper is polled as the supervisor polls it. The next
shard lands once the one before has arrived, at a phase of the poll that moves.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from headrace.bench.output import print_table
from headrace.clock import monotonic_s
from headrace.config.feed import ColumnsConfig, FeedConfig
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, shard_name
from headrace.feed.ledger import LedgerWriter
from headrace.feed.stream import StreamSpec, iter_cuts, make_dataset
from headrace.records import CutRows, generator
from headrace.store.fence import take_epoch
from headrace.store.store import Store


@dataclass(frozen=True)
class FeedLatency:
    """Made by ``measure_latency``; seconds from landing to the last rank. The first cut is a warm-up and not in it."""

    cut_rows: int
    num_cuts: int
    p50_s: float
    p90_s: float
    max_s: float
    start_s: float
    """From starting the ranks to the first rows, Ray being up."""


class _Rank:
    """A rank's side: pulls one cut per call. Runs as an actor."""

    def __init__(self, rank: int, world: int, spec: StreamSpec, prefetch_batches: int) -> None:
        self._rank, self._world, self._spec, self._prefetch = rank, world, spec, prefetch_batches
        self._cuts: Iterator[CutRows] | None = None

    def next_cut(self) -> tuple[int, int, float]:
        """Number of the next cut, the rank's rows in it, and when they had arrived (monotonic)."""
        if self._cuts is None:
            batches = make_dataset(self._rank, self._world, self._spec).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=self._prefetch
            )
            self._cuts = iter_cuts(batches, self._spec)
        arrived = next(self._cuts)
        return arrived.cut.number, len(arrived.rows), monotonic_s()


def run(*, cuts: int = 30, rows: str = "200,20000") -> dict[str, Any]:
    """Measure cuts of each of these sizes (joined by commas) on two ranks and print the table; figures in seconds."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            measured = [measure_latency(Path(folder) / size, int(size), cuts) for size in rows.split(",")]
    finally:
        ray.shutdown()
    print_table(
        "feed: from the landing of a shard to its rows at the last of two ranks",
        ("rows a cut", "cuts", "p50 s", "p90 s", "max s"),
        [[str(m.cut_rows), str(m.num_cuts), f"{m.p50_s:.3f}", f"{m.p90_s:.3f}", f"{m.max_s:.3f}"] for m in measured],
    )
    return {"latencies": [asdict(latency) for latency in measured]}


def measure_latency(
    folder: Path,
    cut_rows: int,
    num_cuts: int = 20,
    world: int = 2,
    poll_s: float = 0.05,
    block_bytes: int = 65536,
    prefetch_batches: int = 0,
) -> FeedLatency:
    """Land ``num_cuts`` shards of ``cut_rows`` rows one after another in ``folder``; Ray must be up."""
    columns = ColumnsConfig(user_id="user_id", event="event")
    store, landing = Store(str(folder / "store")), Landing(str(folder / "landing"))
    epoch = take_epoch(store)
    feed = FeedConfig(max_events=max(50_000, cut_rows))
    keeper = Keeper(feed, columns, landing, LedgerWriter.open(store, epoch))
    spec = StreamSpec(store.uri, epoch.number, -1, columns, block_bytes)
    ranks = [ray.remote(num_cpus=0)(_Rank).remote(rank, world, spec, prefetch_batches) for rank in range(world)]
    seconds = []
    for number in range(num_cuts + 1):
        waiting = [rank.next_cut.remote() for rank in ranks]
        time.sleep(poll_s * (number % 7) / 7)
        landed = landing.land(shard_name(number), _events(number, cut_rows))
        while len(ray.wait(waiting, num_returns=world, timeout=0)[0]) < world:
            keeper.poll(monotonic_s(), committed_cut=number - 1)
            time.sleep(poll_s)
        arrived = ray.get(waiting)
        assert [cut for cut, _, _ in arrived] == [number] * world
        assert sum(num_rows for _, num_rows, _ in arrived) == cut_rows
        seconds.append(max(at_s for _, _, at_s in arrived) - landed.landed_s)
    keeper.stop()
    for rank in ranks:
        ray.kill(rank)
    p50, p90 = (float(value) for value in np.percentile(seconds[1:], [50, 90]))
    return FeedLatency(cut_rows, num_cuts, p50, p90, max(seconds[1:]), seconds[0])


def _events(number: int, num_rows: int) -> pa.Table:
    draw = generator("bench feed", number)
    return pa.table(
        {
            "item_id": draw.integers(0, 10_000, num_rows),
            "ts": 1_700_000_000_000 + number * 1000 + np.arange(num_rows),
            "session_id": draw.integers(0, 1 << 40, num_rows),
            "user_id": draw.integers(0, 1 << 40, num_rows),
            "event": np.full(num_rows, "view"),
        }
    )
