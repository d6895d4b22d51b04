"""Ray's shell around an increment: brings a rank its rows, lets ranks sum and gather, and nothing else.

Runs in every Train worker. The worker group lives as long as the stream; increments flow through it. It reports nothing
to Train: a commit in the store is the report, and Train's queue would hold increments up.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from headrace.clock import Stopwatch
from headrace.config.load import read_resolved
from headrace.feed.stream import StreamSpec, iter_cuts
from headrace.replay.actor import RemoteReplay
from headrace.replay.client import ReplaySpec
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.store.fence import Epoch
from headrace.store.store import Store
from headrace.train.committer import Committer
from headrace.train.group import Arrays
from headrace.train.increment import train_increment
from headrace.train.state import resume
from headrace.train.step import repeatable


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker is told. Made by train/driver.py, read here."""

    recipe_json: str
    epoch: Epoch
    stream: StreamSpec
    replay: tuple[ReplaySpec, Any] | None
    """Spec and actor that the ranks share; None where no method asks for the past."""


class ProcessGroup:
    """A ``Group`` over torch.distributed: gradients by the device's backend, host arrays by a gloo group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._host = dist.new_group(backend="gloo")

    def sum_(self, tensor: Tensor) -> None:
        """All-reduce in place."""
        dist.all_reduce(tensor)

    def gather(self, arrays: Arrays) -> list[Arrays]:
        """Sizes first, then the bytes, padded to the longest."""
        content = np.frombuffer(dump_arrays(arrays), dtype=np.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(content)]), group=self._host)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(content)] = torch.from_numpy(content.copy())
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(parts, padded, group=self._host)
        return [load_arrays(_bytes(part, int(size))) for part, size in zip(parts, sizes, strict=True)]


def _bytes(part: Tensor, size: int) -> bytes:
    array: NDArray[Any] = part[:size].numpy()
    return array.tobytes()


def work(spec: WorkerSpec) -> None:
    """Train increments until the rank's dataset ends (a stop record in the ledger)."""
    recipe = read_resolved(spec.recipe_json)
    os.nice(recipe.run.nice)
    torch.set_num_threads(recipe.run.torch_threads)
    repeatable()
    group = ProcessGroup()
    store = Store(recipe.store_uri)
    device = ray.train.torch.get_device()
    replay = RemoteReplay(spec.replay[0], group.rank, spec.replay[1]) if spec.replay is not None else None
    state = resume(store, recipe, group, device, replay)
    newest = state.commit.cut if state.commit else -1
    if newest != spec.stream.after_cut:  # an older run's last marker came late: begin again from there
        raise RuntimeError(
            f"the newest commit is that of cut {newest}, and rows begin after cut {spec.stream.after_cut}"
        )
    committer = Committer(store, spec.epoch, group, recipe.store)
    committer.start(state)
    dataset = ray.train.get_dataset_shard(f"feed-{group.rank}")
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    watch = Stopwatch()
    for cut_rows in iter_cuts(batches, spec.stream):
        watch.lap("feed")
        train_increment(cut_rows, state, group, committer, watch)
        watch = Stopwatch()
