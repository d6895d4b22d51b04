"""Studies of a log in event time: what ``bench stream`` and ``bench sessions`` have in common."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.output import print_table
from headrace.bench.study import kinds
from headrace.bench.study.answers import PARTS
from headrace.bench.study.output import means_of, note, print_means, write, write_rows
from headrace.bench.study.progress import Cell, Progress
from headrace.bench.study.results import Row, Study
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.stretches import DAY_S, Stretches
from headrace.bench.study.summary import Summary
from headrace.bench.study.variants import FROZEN, STREAM_REFERENCES, Variant, names_of, variant
from headrace.config.load import load_recipe
from headrace.errors import ConfigError


def follow(
    make_kind: Callable[[str, int], kinds.Kind],
    recipe: Path,
    overrides: Sequence[str],
    *,
    data: Path,
    increments: int | None = None,
    methods: str = "default",
    seeds: int = 1,
    device: str = "cpu",
    tuned: int = 4,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Follow ``increments`` slices after the warm-up (None: all), up to the end of a day; print means, as shares.

    ``make_kind``: what rows are of, by their unit and by the number up to which settings were chosen on these very
    figures (``tuned``). ``methods``: names joined by commas. ``folder``: what is done there is kept and gone on from;
    None: nothing is kept.
    """
    words = [*overrides, f"feed.path={data}"]
    base = load_recipe([str(recipe)], words)
    chosen = [
        variant(name, recipe, [*words, f"seed={seed}"], STREAM_REFERENCES)
        for seed in range(1, seeds + 1)
        for name in names_of(methods)
    ]
    with ExitStack() as stack:
        study = Study(folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-study-"))))
        shelf, whole = _shelf(base.feed.path, increments, Shelf(base, study.folder / "log"))
        stretch_P = shelf.stretches(DAY_S)
        kind = make_kind("day" if len(stretch_P) > stretch_P[-1] else "slice", tuned)
        limit = "" if increments is None else f" --increments {increments}"
        options = f"--methods {methods}{limit} --seeds {seeds} --device {device}"
        note(study, kind, base.run.name, [options, *overrides])
        progress = Progress(_weights(study, chosen, range(2, int(stretch_P[-1]) + 1)))
        for method in chosen:
            tell = _teller(method, kind, study, progress)
            Stretches(method, shelf, study.cells(method), torch.device(device), tell).run(whole)
            summary = write(study, kind)
        print_means(summary)
        return {"log": shelf.digest, "means": means_of(summary), "blend_over_best_counter": _over_counters(summary)}


def _shelf(path: str | None, increments: int | None, whole: Shelf) -> tuple[Shelf, bool]:
    """The slices that are followed, up to the end of a stretch, and whether that is the whole log."""
    if len(whole) < 2:
        raise ConfigError(f"{path} gives no slice that could be asked: it needs more than the warm-up")
    if increments is None or increments >= len(whole) - 1:
        return whole, True
    stretch_P = whole.stretches(DAY_S)
    last = int(np.flatnonzero(stretch_P == stretch_P[increments])[-1])
    return whole.upto(last), last == len(whole) - 1


def _weights(study: Study, chosen: Sequence[Variant], stretches: Sequence[int]) -> dict[Cell, float]:
    """Of what is not done yet: a stretch of what is never updated is only asked."""
    return {
        (method.name, method.recipe.seed, number): 0.5 if method.reference == FROZEN else 1.0
        for method in chosen
        for number in stretches
        if not study.cells(method).has(number)
    }


def _teller(method: Variant, kind: kinds.Kind, study: Study, progress: Progress) -> Callable[[Row], None]:
    """Prints a few lines for each row, and keeps ``results.json`` up to date."""
    shown = dict.fromkeys([*kind.shown, "recall@100"])
    words = {metric: kinds.WORDS[metric] for metric in shown}
    words |= {f"{part}_recall@20": f"{part} R@20" for part in PARTS if kind.repeats_apart}

    def tell(row: Row) -> None:
        figures = {"neural": row, "blend": row["blend"]}
        figures |= {name: of for name, of in row["experts"].items() if name != "neural"}
        took = row["increment_s"]
        pace = f", {took['p50']:.2f} s an increment (at most {took['max']:.1f})" if took else ""
        if row["useful_tokens"] is not None:
            pace += f", {100 * row['useful_tokens']:.1f} % of tokens no padding"
        if row["rejected"]:
            pace += f", {len(row['rejected'])} increments rejected (the first one: {row['rejected'][0]})"
        print_table(
            f"{method.name}, seed {row['seed']}, {kind.unit} {row['cycle']}: {row['queries']} queries, "
            f"{row['train_s']:.0f} s of training ({row['cpu_s']:.1f} of CPU, with reading){pace}; "
            f"{progress.done(method, row['cycle'])}",
            ("expert", *words.values()),
            [[name, *(_percent(of[metric]) for metric in words)] for name, of in figures.items()],
        )
        write_rows(study)

    return tell


def _over_counters(summary: Summary) -> dict[str, Any]:
    """By method: the counter that is best in hindsight, and how far what is served lies above it."""
    found = {method: summary.above_best_counter(method) for method in summary.methods}
    return {
        method: {"counter": one[0], **{metric: interval.as_json() for (_, metric), interval in one[1].items()}}
        for method, one in found.items()
        if one is not None
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
