"""``headrace bench continual``: the ADER protocol (Mi et al., RecSys 2020) through production's own increment.

Each file of the log is a period. Cycle t tests on period t what was updated on period t - 1: that is what an increment
scores before it trains. The protocol's queries are those with a known item in the context and a known target, ranked
over all items seen so far. A period is long, so the blend is told twice: with the weights of the commit that answers,
and ``blend_running``, whose weights move every 500 queries. Imports neither ray nor wandb.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.output import print_table
from headrace.blend.calibration import recalibrate
from headrace.blend.weights import per_query, update
from headrace.commit.manifest import Manifest
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.evaluation.metrics import METRICS
from headrace.evaluation.prequential import Queries, known
from headrace.recommend.recommender import BLEND
from headrace.records import CutRows, hash64_array
from headrace.train.offline import peak_mb, queries_of, replay
from headrace.train.state import LearnerState

_STRIDE = 500
"""Queries after which the running blend's weights move."""
METHODS: dict[str, tuple[str, ...]] = {"online": ()}
"""What each name on the command line adds to the recipe, as overrides."""


def run(
    *,
    data: Path,
    methods: str = "online",
    cycles: str = "1-4",
    seeds: int = 1,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/diginetica.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the protocol and print a row per cycle; the result maps each method to its rows, one per seed and cycle.

    ``methods``: names joined by commas. ``cycles``: "1-4" or "16". Figures are shares, seconds and megabytes.
    """
    first, last = _cycles(cycles)
    results: dict[str, Any] = {}
    for method in methods.split(","):
        if method not in METHODS:
            raise ConfigError(f"method {method!r} is not one of {', '.join(METHODS)}")
        rows = []
        for seed in range(1, seeds + 1):
            words = [*METHODS[method], *overrides, f"seed={seed}", f"feed.path={data}"]
            for row in _cycles_of(load_recipe([str(recipe)], words), last, torch.device(device)):
                if row["cycle"] >= first:
                    rows.append({"seed": seed, **row})
                    _print(method, rows[-1:], header=len(rows) == 1)
        results[method] = rows
        print_table(f"{method}: mean of cycles {first} to {last}", _HEADER, [_cells("mean", _mean(rows))])
    return results


def _cycles_of(recipe: Recipe, last: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Train period after period; a row for each that was tested before it was trained."""

    def by_period(part: CutRows, state: LearnerState) -> CutRows:
        if part.cut.number == last:  # tested, and then there is nothing more to test
            state.recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 0})})
        session_N = hash64_array(part.rows.session_N, "period", part.cut.number)  # the protocol splits sessions there

        part = replace(part, rows=replace(part.rows, session_N=session_N))
        if state.learner is not None:
            running.update(_running(queries_of(part, state), state))
        return part

    trained_s, cut = 0.0, -1
    running: dict[str, float] = {}
    for manifest in replay(recipe, device, last, by_period):
        if manifest.cut > 0:
            yield _row(manifest, trained_s) | {"blend_running": dict(running)}
        trained_s, cut = manifest.envelope.seconds["train"], manifest.cut
    if cut < last:
        raise ConfigError(f"{recipe.feed.path} has {cut + 1} periods; cycles up to {last} need {last + 1}")


def _running(asked: Queries, state: LearnerState) -> dict[str, float]:
    """The learner's blend on a period, its weights moved on every ``_STRIDE`` queries; over the known ones."""
    blend, learner = state.recipe.blend, state.learner
    assert learner is not None
    asked = asked.take(np.lexsort((asked.row_Q, asked.shard_Q)))
    weights, calibration, values = state.weights, state.calibration, []
    for first in range(0, len(asked), _STRIDE):
        chunk = asked.take(np.arange(first, min(first + _STRIDE, len(asked))))
        version = learner.remixed(weights, calibration.exponents)
        judged = version.judge(chunk.contexts, chunk.target_T, chunk.offset_R)
        values.append({name: metric(judged.rank[BLEND], chunk.offset_R) for name, metric in METRICS.items()})
        p, slope = (per_query(of, chunk.offset_R) for of in (judged.probability, judged.slope))
        if blend.calibrate:
            calibration = recalibrate(calibration, weights, p, slope)
        weights = update(weights, p, blend.eta, blend.share).weights
    known_Q = known(asked, learner)
    return {name: float(np.concatenate([value[name] for value in values])[known_Q].mean()) for name in METRICS}


def _row(manifest: Manifest, trained_s: float) -> dict[str, Any]:
    metrics = manifest.facts["metrics"]
    known = metrics["on_known"]
    experts = [name for name in known if name not in ("live", "learner", "frozen")]
    return {
        "cycle": manifest.cut,
        **known["neural"],
        "train_s": trained_s,
        "score_s": manifest.envelope.seconds["score"],
        "peak_mb": peak_mb(),
        "queries": metrics["known"],
        "blend": known["learner"],
        "experts": {name: known[name] for name in experts},
    }


_OWN = ("recall@20", "recall@10", "mrr@20", "mrr@10", "recall@100")
_BLENDS = ("blend", "blend_running")
_HEADER = (
    *("cycle", "queries", "R@20", "R@10", "MRR@20", "MRR@10", "R@100"),
    *("blend R@20", "MRR@20", "running R@20", "MRR@20", "train s"),
)


def _cells(label: str, row: dict[str, Any]) -> list[str]:
    own = [f"{100 * row[name]:.2f}" for name in _OWN]
    blends = [f"{100 * row[blend][name]:.2f}" for blend in _BLENDS for name in ("recall@20", "mrr@20")]
    return [label, f"{row['queries']:.0f}", *own, *blends, f"{row['train_s']:.1f}"]


def _print(method: str, rows: list[dict[str, Any]], header: bool) -> None:
    title = f"{method}: neural alone and the blend, ADER protocol, %" if header else None
    print_table(title, _HEADER, [_cells(str(row["cycle"]), row) for row in rows], with_header=header)


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    plain = ("queries", *_OWN, "train_s")
    blends = {
        blend: {name: mean([row[blend][name] for row in rows]) for name in ("recall@20", "mrr@20")} for blend in _BLENDS
    }
    return {**{name: mean([row[name] for row in rows]) for name in plain}, **blends}


def _cycles(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)) or int(first) < 1:
        raise ConfigError(f"--cycles {text!r}: write a number from 1 on, or a range such as 1-4")
    return int(first), int(last) if dash else int(first)
