"""One optimizer problem for tests: a small model, examples, and two ranks as threads of one process."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.methods import OnlineConfig, TrainConfig
from headrace.config.models import ObjectiveConfig, SasRecConfig, SoftmaxConfig
from headrace.inputs.contexts import contexts_of, pad
from headrace.inputs.examples import Examples
from headrace.methods.base import Method
from headrace.methods.build import build_methods
from headrace.models.build import build_model, model_parts
from headrace.objectives.softmax import build_objective
from headrace.store.arrays import dump_arrays
from headrace.train.group import Group, Solo
from headrace.train.passes import PassStats, train_passes
from headrace.train.step import StepBatch, TrainStep

NUM_ITEMS = 40
torch.set_num_threads(1)  # tiny products: more threads only wait for one another
MODEL = SasRecConfig(width=8, dropout=0.0)


class Pair:
    """Two ranks as threads of one process; sums and gathers in rank order, at a barrier."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=30)
        self._slots: list[Any] = [None, None]

    def ranks(self) -> list["PairRank"]:
        return [PairRank(self, 0), PairRank(self, 1)]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def abort(self) -> None:
        self._barrier.abort()


class PairRank:
    world = 2

    def __init__(self, pair: Pair, rank: int) -> None:
        self.pair, self.rank, self.num_sums = pair, rank, 0

    def sum_(self, tensor: torch.Tensor) -> None:
        self.num_sums += 1
        first, second = self.pair.exchange(self.rank, tensor.clone())
        tensor.copy_(first + second)

    def gather(self, arrays: Mapping[str, NDArray[Any]]) -> list[Mapping[str, NDArray[Any]]]:
        return self.pair.exchange(self.rank, dict(arrays))


def on_both(work) -> list[Any]:
    """Run ``work(group)`` on two ranks; their results, or the first failure."""
    pair, results, failures = Pair(), [None, None], []

    def run(group: PairRank) -> None:
        try:
            results[group.rank] = work(group)
        except BaseException as error:  # noqa: BLE001 raised again by the caller
            failures.append(error)
            pair.abort()

    threads = [threading.Thread(target=run, args=(group,)) for group in pair.ranks()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def make_step(
    group: Group | None = None,
    dtype: torch.dtype = torch.float32,
    methods: list[Method] | None = None,
    model: SasRecConfig = MODEL,
    objective: ObjectiveConfig | None = None,
    **changes: Any,
) -> TrainStep:
    config = TrainConfig(**{"batch": 8, "learning_rate": 1e-2, **changes})
    chosen = build_methods([OnlineConfig(warmup_steps=5, max_gradient_norm=1.0)]) if methods is None else methods
    built = build_model(model, 10, 16, seed=5).to(dtype)
    return TrainStep(built, build_objective(objective or SoftmaxConfig()), chosen, config, group or Solo(), seed=9)


def make_examples(seed: int, count: int, num_items: int = NUM_ITEMS) -> Examples:
    draw = np.random.default_rng(seed)
    sequences = [draw.integers(num_items, size=draw.integers(1, 6)).tolist() for _ in range(count)]
    zeros = np.zeros(count, dtype=np.int64)
    target, weight = draw.integers(num_items, size=count), draw.random(count).astype(np.float32) + 0.5
    return Examples(contexts_of(sequences, 100, 10), np.arange(count), zeros, target, weight, zeros, zeros, zeros)


def batch_of(examples: Examples, members: range) -> StepBatch:
    taken = examples.take(np.array(members))
    queries = np.arange(len(members))
    return StepBatch(
        pad(taken.contexts, np.arange(NUM_ITEMS)),
        queries,
        taken.position_T,
        queries,
        taken.target_T,
        taken.weight_T,
    )


def fingerprint(step: TrainStep) -> dict[str, bytes]:
    return {name: dump_arrays(part) for name, part in {**model_parts(step.model), **step.state()}.items()}


def passes(
    step: TrainStep, examples: Examples, increment: int = 0, num_items: int = NUM_ITEMS, **rest: Any
) -> PassStats:
    step.begin_increment(num_items, increment)
    eligible = Eligible(np.arange(num_items))
    options = {"epochs": 2, "seed": 9, **rest}
    return train_passes(step, examples, eligible, np.arange(num_items), increment=increment, **options)
