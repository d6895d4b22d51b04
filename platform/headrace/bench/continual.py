"""``headrace bench continual``: continual-learning methods and retrainers by the ADER protocol, as production learns.

Each file of the log is a period, each method a name (bench/study/variants.py). Every row is given twice, the neural
expert alone and the blend that would be served with it, and each expert alone beside them. What is done stays in the
folder, so that the same command goes on where it was stopped, and other methods join later, from other processes too.
Imports neither ray nor wandb.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from headrace.bench.output import print_table
from headrace.bench.study import kinds
from headrace.bench.study.cycles import Cycles, weight
from headrace.bench.study.output import means_of, note, print_means, write, write_rows
from headrace.bench.study.progress import Cell, Progress
from headrace.bench.study.results import Row, Study
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.variants import Variant, names_of, variant
from headrace.config.load import load_recipe
from headrace.errors import ConfigError

_OWN = ("recall@20", "recall@10", "mrr@20", "mrr@10", "recall@100")
_BLENDS = ("blend", "blend_running")
_HEADER = (
    *("cycle", "queries", "R@20", "R@10", "MRR@20", "MRR@10", "R@100"),
    *("blend R@20", "MRR@20", "running R@20", "MRR@20", "train s", "done"),
)


def run(
    *,
    data: Path,
    methods: str = "online",
    cycles: str = "1-4",
    seeds: int = 1,
    device: str = "cpu",
    sample: int = 1000,
    tuned: int = 4,
    folder: Path | None = None,
    recipe: Path = Path("jobs/recipes/diginetica.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the protocol and print a row per cycle; the result has the means of all that the folder holds.

    ``methods``: names joined by commas. ``cycles``: "1-4", "4,8" or "16". ``sample``: queries of each past period that
    forgetting is measured on. ``tuned``: up to which cycle settings were chosen on these very figures. ``folder``: what
    is done there is kept and gone on from; None: nothing is kept. Figures are shares, seconds and megabytes.
    """
    wanted, words = cycles_of(cycles), [*overrides, f"feed.path={data}"]
    base = load_recipe([str(recipe)], words)
    chosen = [
        variant(name, recipe, [*words, f"seed={seed}"]) for seed in range(1, seeds + 1) for name in names_of(methods)
    ]
    kind = kinds.cycles(tuned)
    with ExitStack() as stack:
        study = Study(folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-continual-"))))
        shelf = Shelf(base, study.folder / "log")
        if max(wanted) >= len(shelf):
            raise ConfigError(f"{data} has {len(shelf)} periods; cycles up to {max(wanted)} need {max(wanted) + 1}")
        options = f"--methods {methods} --cycles {cycles} --seeds {seeds} --device {device}"
        note(study, kind, base.run.name, [options, *overrides])
        progress = Progress(_weights(study, chosen, wanted))
        for method in chosen:
            tell = _teller(method, study, progress)
            Cycles(method, shelf, study.cells(method), torch.device(device), sample, tell).run(wanted)
            summary = write(study, kind)
        print_means(summary)
        return {"log": shelf.digest, "means": means_of(summary)}


def cycles_of(text: str) -> list[int]:
    """The cycles of "1-4", "4,8" or "16"; ConfigError where it says something else."""
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)) or int(first) < 1:
            raise ConfigError(f"--cycles {text!r}: write numbers from 1 on, such as 4,8, or a range such as 1-16")
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise ConfigError(f"--cycles {text!r} are none")
    return sorted(found)


def _weights(study: Study, chosen: Sequence[Variant], wanted: Sequence[int]) -> dict[Cell, float]:
    """Of what is not done yet."""
    weights = {}
    for method in chosen:
        for cycle in wanted if method.reference == "joint" else range(1, max(wanted) + 1):
            if not study.cells(method).has(cycle):
                weights[method.name, method.recipe.seed, cycle] = weight(method, cycle)
    return weights


def _teller(method: Variant, study: Study, progress: Progress) -> Callable[[Row], None]:
    """Prints each row, and keeps ``results.json`` up to date."""
    num_told = 0

    def tell(row: Row) -> None:
        nonlocal num_told
        title = f"{method.name}, seed {row['seed']}: neural alone and the blend, ADER protocol, %"
        cells = [*_cells(str(row["cycle"]), row), progress.done(method, row["cycle"])]
        print_table(None if num_told else title, _HEADER, [cells], with_header=not num_told)
        num_told += 1
        write_rows(study)

    return tell


def _cells(label: str, row: Row) -> list[str]:
    own = [f"{100 * row[name]:.2f}" for name in _OWN]
    blends = [f"{100 * row[blend][name]:.2f}" for blend in _BLENDS for name in ("recall@20", "mrr@20")]
    return [label, f"{row['queries']:.0f}", *own, *blends, f"{row['train_s']:.1f}"]
