"""``headrace bench train``: one worker's training throughput against a plain single-process PyTorch loop.

Both train the same encoder on the same batches with the same Adam, bound and threads. The plain loop is what one would
write first: an embedding for the items, ``cross_entropy`` on its product with the queries, ``backward``,
``clip_grad_norm_``. Ours is production's ``train_passes``, planning included. Runs alternate, each from a fresh model.
A second table shows sparse mode: the same sessions over 10,000 items and over 1,000,000, a hundred times as far apart.
Imports neither ray nor wandb. Shape legend: N events, S sequences, D width, E items.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from headrace.bench.output import print_table
from headrace.catalogue.eligible import Eligible
from headrace.config.load import load_recipe
from headrace.config.models import SampledSoftmaxConfig
from headrace.config.recipe import Recipe
from headrace.errors import DataError
from headrace.inputs.contexts import EventLog, build_contexts, pad
from headrace.inputs.examples import Examples, plan_batches
from headrace.methods.build import build_methods
from headrace.models.base import RecallModel
from headrace.models.build import build_model
from headrace.objectives.softmax import build_objective
from headrace.records import generator, hash64, hash64_array
from headrace.train.group import Solo
from headrace.train.offline import peak_mb
from headrace.train.passes import PassStats, train_passes
from headrace.train.step import TrainStep

_SYNTHETIC = ("model.width=150", "train.batch=256", "train.learning_rate=5e-4")
_WARM_STEPS = 3
_SPARSE_ITEMS = (10_000, 1_000_000)


@dataclass(frozen=True)
class Task:
    """What both loops train."""

    recipe: Recipe
    device: torch.device
    examples: Examples
    num_items: int

    def model(self) -> RecallModel:
        """A fresh model, the same at every call."""
        recipe = self.recipe
        return build_model(recipe.model, recipe.inputs.max_events, self.num_items, recipe.seed).to(self.device)


@dataclass(frozen=True)
class Timed:
    """One run: wall and processor seconds, and the mean loss while training, to show that both loops do the same."""

    seconds: float
    cpu_seconds: float
    loss: float


def run(
    *,
    data: Path | None = None,
    device: str = "cpu",
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    steps: int = 60,
    runs: int = 5,
) -> dict[str, Any]:
    """Time both loops in turn, print a table, and return medians (examples a second) and their ratio.

    ``data``: a folder of period files, of which the first is used; None: synthetic sessions over 20,000 items.
    ``steps``: optimizer steps a run. Threads are the recipe's ``run.torch_threads``. Sparse mode is timed on synthetic
    sessions, whatever ``data`` is.
    """
    files, words = ([str(recipe)], overrides) if recipe is not None else ([], [*_SYNTHETIC, *overrides])
    task = _task(load_recipe(files, words), data, torch.device(device), steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(task.recipe.run.torch_threads)
    try:
        few = Task(
            task.recipe, task.device, _first(task.examples, _WARM_STEPS * task.recipe.train.batch), task.num_items
        )
        loops: dict[str, Callable[[Task], Timed]] = {"headrace": _ours, "plain loop": _plain}
        timed: dict[str, list[Timed]] = {name: [] for name in loops}
        for loop in loops.values():
            loop(few)
        for _ in range(runs):
            for name, loop in loops.items():
                timed[name].append(loop(task))
        sparse = _time_sparse(task.recipe, task.device, steps, runs)
    finally:
        torch.set_num_threads(threads)
    return {**_report(task, timed), "sparse": _report_sparse(sparse)}


def profile(
    *, data: Path, recipe: Path, device: str = "cpu", overrides: Sequence[str] = (), steps: int = 40, rows: int = 12
) -> dict[str, float]:
    """Print where a training step's time goes, by operator, and return the shares. On one thread.

    ``steps``: optimizer steps that are profiled, after as many that are timed by the processor's clock, which other
    work on the machine disturbs less than the one on the wall.
    """
    task = _task(load_recipe([str(recipe)], overrides), data, torch.device(device), steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = _step(task)
        _pass(step, task, 0)
        began = time.process_time()
        num_steps = _pass(step, task, 1).steps
        cpu_ms = 1000.0 * (time.process_time() - began) / num_steps
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            _pass(step, task, 2)
    finally:
        torch.set_num_threads(threads)
    spent = {event.key: float(event.self_cpu_time_total) for event in recorded.key_averages()}
    shares = {name: value / sum(spent.values()) for name, value in sorted(spent.items(), key=lambda item: -item[1])}
    title = f"a step takes {cpu_ms:.1f} ms of one core; {len(task.examples):,} examples, {task.num_items:,} items"
    print_table(title, ("operator", "share"), [[name, f"{100 * shares[name]:.1f} %"] for name in list(shares)[:rows]])
    return shares


def _report(task: Task, timed: dict[str, list[Timed]]) -> dict[str, Any]:
    result: dict[str, Any] = {"examples": len(task.examples), "items": task.num_items}
    rows = []
    for name, runs in timed.items():
        seconds = statistics.median(run.seconds for run in runs)
        cpu = statistics.median(run.cpu_seconds for run in runs)
        result[name] = {
            "examples_per_s": len(task.examples) / seconds,
            "seconds": [run.seconds for run in runs],
            "cpu_seconds": [run.cpu_seconds for run in runs],
            "loss": runs[0].loss,
        }
        rows.append(
            [name, f"{len(task.examples) / seconds:,.0f}", f"{seconds:.2f}", f"{cpu:.2f}", f"{runs[0].loss:.4f}"]
        )
    ours, plain = timed["headrace"], timed["plain loop"]
    result["train_only"] = statistics.median(run.seconds for run in plain) / statistics.median(r.seconds for r in ours)
    result["train_only_cpu"] = statistics.median(r.cpu_seconds for r in plain) / statistics.median(
        r.cpu_seconds for r in ours
    )
    title = (
        f"train_only: {result['train_only']:.2f}x the plain loop ({result['train_only_cpu']:.2f}x by processor time); "
        f"{len(task.examples):,} examples, {task.num_items:,} items, median of {len(ours)}"
    )
    print_table(title, ("loop", "examples/s", "seconds", "cpu s", "loss"), rows)
    return result


def _time_sparse(recipe: Recipe, device: torch.device, steps: int, runs: int) -> dict[int, list[Timed]]:
    """Passes in sparse mode by catalogue size; runs alternate and go on training where the one before stopped."""
    if recipe.objective.kind != "sampled_softmax":
        recipe = recipe.model_copy(update={"objective": SampledSoftmaxConfig()})
    key_N, ts_N, item_N = _synthetic(recipe.seed, _SPARSE_ITEMS[0])
    tasks, trained = {}, {}
    for num_items in _SPARSE_ITEMS:
        examples = _examples(recipe, key_N, ts_N, item_N * (num_items // _SPARSE_ITEMS[0]), steps)
        tasks[num_items] = Task(recipe, device, examples, num_items)
        trained[num_items] = _step(tasks[num_items])
        _pass(trained[num_items], tasks[num_items], 0)
    timed: dict[int, list[Timed]] = {num_items: [] for num_items in _SPARSE_ITEMS}
    for run in range(1, runs + 1):
        for num_items, task in tasks.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            stats = _pass(trained[num_items], task, run)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
            timed[num_items].append(Timed(seconds / stats.steps, cpu_seconds / stats.steps, stats.loss_per_epoch[0]))
    return timed


def _report_sparse(timed: dict[int, list[Timed]]) -> dict[str, Any]:
    wall = {items: 1000.0 * statistics.median(run.seconds for run in runs) for items, runs in timed.items()}
    cpu = {items: 1000.0 * statistics.median(run.cpu_seconds for run in runs) for items, runs in timed.items()}
    few, many = _SPARSE_ITEMS
    ratio, cpu_ratio = wall[many] / wall[few], cpu[many] / cpu[few]
    title = (
        f"sparse mode: a step over {many:,} items takes {ratio:.2f}x one over {few:,} "
        f"({cpu_ratio:.2f}x by processor time)"
    )
    rows = [[f"{items:,}", f"{wall[items]:.1f}", f"{cpu[items]:.1f}"] for items in timed]
    print_table(title, ("items", "ms a step, median", "cpu ms"), rows)
    steps = {str(items): [1000.0 * run.seconds for run in runs] for items, runs in timed.items()}
    return {"step_ms": steps, "ratio": ratio, "ratio_cpu": cpu_ratio, "peak_mb": peak_mb()}


def _ours(task: Task) -> Timed:
    step = _step(task)
    began, cpu_began = time.perf_counter(), time.process_time()
    stats = _pass(step, task, 0)
    return Timed(time.perf_counter() - began, time.process_time() - cpu_began, stats.loss_per_epoch[0])


def _step(task: Task) -> TrainStep:
    recipe = task.recipe
    methods = build_methods(recipe.methods)
    step = TrainStep(task.model(), build_objective(recipe.objective), methods, recipe.train, Solo(), recipe.seed)
    step.begin_increment(task.num_items, 0)
    return step


def _pass(step: TrainStep, task: Task, increment: int) -> PassStats:
    slot_I = np.arange(task.num_items)
    stats = train_passes(
        step, task.examples, Eligible(slot_I), slot_I, epochs=1, seed=task.recipe.seed, increment=increment
    )
    _finish(task.device)
    return stats


def _plain(task: Task) -> Timed:
    recipe, model, examples = task.recipe, task.model(), task.examples
    encoder, items = (
        model.encoder,
        nn.Embedding(task.num_items, recipe.model.width, _weight=model.table.weight.detach()),
    )
    parameters = [*encoder.parameters(), *items.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=recipe.train.learning_rate, fused=True)
    methods, slot_I, losses = build_methods(recipe.methods), np.arange(task.num_items), []
    bound = min((norm for method in methods if (norm := method.max_gradient_norm()) is not None), default=None)
    encoder.train()
    draw = generator(recipe.seed, "batches", 0, 0, 0)
    shape_S = model.shapes(examples.contexts, examples.sequence_T, examples.position_T)
    plan = plan_batches(shape_S, recipe.train.batch, draw)
    began, cpu_began = time.perf_counter(), time.process_time()
    for number, members in enumerate(plan):
        batch = examples.take(members)
        inputs = pad(batch.contexts, slot_I)
        slot_BL = torch.from_numpy(inputs.slot_BL).to(task.device)
        target_B = torch.from_numpy(batch.target_T).to(task.device)
        torch.manual_seed(hash64(recipe.seed, "dropout", 0, number, 0) >> 1)
        for group in optimizer.param_groups:
            group["lr"] = recipe.train.learning_rate
            for method in methods:
                group["lr"] *= method.learning_rate_scale(number)
        optimizer.zero_grad()
        with torch.autocast(task.device.type, torch.bfloat16, enabled=recipe.train.precision == "bfloat16"):
            item_BLD = items(slot_BL.clamp(min=0)) * (slot_BL >= 0).unsqueeze(-1)
            query_BD = encoder(
                inputs, item_BLD, torch.arange(len(members)), torch.zeros(len(members), dtype=torch.long)
            )
            logits_BE = model.query_side(query_BD) @ model.item_side(items.weight).T
            loss = nn.functional.cross_entropy(logits_BE, target_B)
        loss.backward()  # type: ignore[no-untyped-call]
        if bound is not None:
            nn.utils.clip_grad_norm_(parameters, bound)
        optimizer.step()
        losses.append(float(loss.detach()) * len(members))
    _finish(task.device)
    return Timed(time.perf_counter() - began, time.process_time() - cpu_began, sum(losses) / len(examples))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _task(recipe: Recipe, data: Path | None, device: torch.device, steps: int) -> Task:
    key_N, ts_N, item_N = _synthetic(recipe.seed, 20_000) if data is None else _read(data, recipe)
    return Task(recipe, device, _examples(recipe, key_N, ts_N, item_N, steps), int(item_N.max()) + 1)


def _examples(
    recipe: Recipe, key_N: NDArray[np.uint64], ts_N: NDArray[np.int64], item_N: NDArray[np.int64], steps: int
) -> Examples:
    order = np.lexsort((ts_N, key_N))
    log = EventLog(key_N[order], ts_N[order], item_N[order], np.zeros(len(order), dtype=np.int16))
    contexts = build_contexts(log, log.key_N, log.ts_N, log.key_N, recipe.inputs.max_events)
    chosen = np.flatnonzero(contexts.length_Q > 0)
    generator(recipe.seed, "bench train").shuffle(chosen)
    chosen = chosen[: steps * recipe.train.batch]
    count = len(chosen)
    zeros, ones = np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.float32)
    target = log.item_N[chosen]
    return Examples(contexts.take(chosen), np.arange(count), zeros, target, ones, log.ts_N[chosen], zeros, chosen)


def _first(examples: Examples, count: int) -> Examples:
    return examples.take(np.arange(min(count, len(examples))))


def _synthetic(seed: int, num_items: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Sessions with a mean of about five events over items of uneven popularity: (session, ts, item)."""
    draw = generator(seed, "bench train sessions")
    length_S = np.minimum(draw.geometric(0.2, size=20000) + 1, 50)
    key_N = np.repeat(np.arange(1, len(length_S) + 1, dtype=np.uint64), length_S)
    item_N = (num_items * draw.random(len(key_N)) ** 2).astype(np.int64)
    return key_N, np.arange(len(key_N), dtype=np.int64), item_N


def _read(data: Path, recipe: Recipe) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    files = sorted(data.glob("*.parquet"))
    if not files:
        raise DataError(f"no .parquet files in {data}: name the folder of a log")
    columns = recipe.columns
    owner = columns.session_id or columns.user_id or ""
    table = pq.read_table(files[0], columns=[owner, columns.ts, columns.item_id])
    _, item_N = np.unique(table[columns.item_id].to_numpy(), return_inverse=True)
    ts_N = table[columns.ts].to_numpy().astype("datetime64[ms]").astype(np.int64)
    return hash64_array(table[owner].to_numpy(), "session"), ts_N, item_N.astype(np.int64)
