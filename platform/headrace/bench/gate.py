"""``headrace bench gate``: what the sequential test costs on clean data, and how soon it sees an increment gone wrong.

Clean: increments as they come; every roll back is a false alarm. Poisoned: in every so many-th increment the item ids
are permuted among its rows, so that every label is wrong while counts, shares and norms look as ever. Counted are the
cuts from the poisoned one to the one that begins by rolling back: 1 is the least, since a version must be live to be
compared. An increment that the hard rules reject is none of the test's business, and is told apart. What a poisoned one
costs is told twice: against trusted, as the test sees it, and against the clean replay of the same cuts.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.output import print_table
from headrace.commit.manifest import Manifest
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe, ReplayConfig
from headrace.errors import ConfigError
from headrace.evaluation.sequential import CONTESTS
from headrace.feed.landing import Landing, shard_name
from headrace.feed.synthetic import shard_events
from headrace.records import CutRows, generator
from headrace.train.offline import replay
from headrace.train.state import LearnerState

_SETTLED = 20
"""Increments after the warm-up before the first poisoned one."""


def run(
    *,
    increments: int = 1000,
    poisons: int = 20,
    every: int = 10,
    data: Path | None = None,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/quickstart.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure ``increments`` clean ones, then ``poisons`` poisoned ones, ``every`` so many-th; 0 leaves a part out.

    ``data`` is a log that the recipe replays; without one, the recipe's synthetic stream.
    """
    made = load_recipe([str(recipe)], list(overrides))
    result: dict[str, Any] = {"window": made.gate.window, "false_alarm": made.gate.false_alarm}
    with tempfile.TemporaryDirectory(prefix="headrace-gate-") as folder:
        clean: list[Manifest] = []
        if increments:
            source = _source(made, data, folder, increments)
            clean = list(replay(source, torch.device(device), increments))
            result["clean"] = _clean(clean)
        if poisons:
            last = _SETTLED + poisons * every
            source = _source(made, data, folder, last)

            def poison(part: CutRows, _: LearnerState) -> CutRows:
                return _permuted(part, made.seed) if _is_poisoned(part.cut.number, every) else part

            poisoned = list(replay(source, torch.device(device), last, poison))
            result["poisoned"] = _poisoned(poisoned, every) | {"below_clean": _below_clean(poisoned, clean, every)}
    _print(result)
    return result


def _source(made: Recipe, data: Path | None, folder: str, last_cut: int) -> Recipe:
    """The recipe, with a log to replay, file by file where the stream is synthetic."""
    evaluation = made.evaluation.model_copy(update={"frozen_every": 10**9})  # not asked for, and not cheap
    if data is not None:
        feed = made.feed.model_copy(update={"path": str(data)})
        return made.model_copy(update={"feed": feed, "evaluation": evaluation})
    if made.feed.synthetic is None:
        raise ConfigError("the recipe has no [feed.synthetic]: name a log with --data")
    landing = Landing(folder)
    for index in range(landing.num_landed(), last_cut + 1):
        landing.land(shard_name(index), shard_events(made.feed.synthetic, made.seed, index))
    changed = {"path": folder, "cut": "shard", "synthetic": None, "replay": ReplayConfig(slice_s="file")}
    return made.model_copy(update={"feed": made.feed.model_copy(update=changed), "evaluation": evaluation})


def _is_poisoned(cut: int, every: int) -> bool:
    return cut >= _SETTLED and (cut - _SETTLED) % every == 0


def _permuted(part: CutRows, seed: int) -> CutRows:
    """The same rows with item ids dealt out anew."""
    order_N = generator(seed, "poison", part.cut.number).permutation(len(part.rows))
    rows = dataclasses.replace(part.rows, item_N=part.rows.item_N[order_N])
    return dataclasses.replace(part, rows=rows)


def _clean(manifests: Sequence[Manifest]) -> dict[str, Any]:
    reviews = [m.facts["review"] for m in manifests if m.facts["review"]["e_values"]]
    alarms = [name for found in reviews for name in found["alarms"]]
    windows = sum(found["window_cut"] == 1 for found in reviews)
    return {
        "increments": len(manifests) - 1,
        "compared": len(reviews),
        "queries": _mean_queries(manifests),
        "windows": windows,
        "rolled_back": sum(bool(found["alarms"]) for found in reviews),
        "alarms": {name: alarms.count(name) for name in CONTESTS},
        "highest_e": {name: max((found["e_values"][name] for found in reviews), default=1.0) for name in CONTESTS},
        "verdicts": {
            verdict: sum(m.verdict == verdict for m in manifests) for verdict in ("publish", "hold", "reject")
        },
        "neural_recall_at_20": float(np.mean([_neural(m) for m in manifests if _scored(m)])),
    }


def _poisoned(manifests: Sequence[Manifest], every: int) -> dict[str, Any]:
    cuts = {m.cut: m for m in manifests}
    given = [cut for cut in cuts if _is_poisoned(cut, every) and cut + every in cuts]
    rejected = [cut for cut in given if cuts[cut].verdict == "reject"]
    delays: list[int | None] = []
    by: list[list[str]] = []
    lost: list[int] = []
    for cut in sorted(set(given) - set(rejected)):
        found = next((n for n in range(1, every + 1) if cuts[cut + n].facts["review"]["rolled_back_to"]), None)
        delays.append(found)
        by.append(cuts[cut + found].facts["review"]["alarms"] if found else [])
        lost.append(cuts[cut + found].facts["review"]["reverted"] if found else 0)
    harms = {name: [_below(cuts, cut + 1, name) for cut in given if cut not in rejected] for name in CONTESTS}
    caught = [delay for delay in delays if delay is not None]
    return {
        "given": len(given),
        "rejected_by_hard_rules": len(rejected),
        "queries": _mean_queries(manifests),
        "cuts_until_rolled_back": delays,
        "caught_within": {str(n): sum(delay <= n for delay in caught) for n in (1, 3, every)},
        "seen_by": {name: sum(name in names for names in by) for name in CONTESTS},
        "rows_lost": float(np.mean(lost)) if lost else 0.0,
        "below_trusted": {name: float(np.mean(harm)) if harm else 0.0 for name, harm in harms.items()},
        "other_roll_backs": sum(bool(m.facts["review"]["rolled_back_to"]) for m in manifests) - len(caught),
    }


def _below(cuts: Mapping[int, Manifest], cut: int, name: str) -> float:
    """How far live was below trusted on this cut: the share of targets it misses alone, less that it finds alone."""
    review = cuts[cut].facts["review"]
    worse, better = review["worse_better"].get(name, (0, 0))
    return float((worse - better) * review["design_effect"].get(name, 1.0) / max(review["targets"], 1))


def _below_clean(poisoned: Sequence[Manifest], clean: Sequence[Manifest], every: int) -> dict[str, list[float]]:
    """How far recall@20 is below the clean replay's, on the cuts before a poisoned one and on those after it."""
    pairs = {m.cut: (m, other) for m, other in zip(poisoned, clean, strict=False) if _scored(m) and _scored(other)}
    given = [cut for cut in pairs if _is_poisoned(cut, every) and cut - 1 in pairs and cut + 1 in pairs]

    def below(cut: int, figure: Callable[[Manifest], float]) -> float:
        return figure(pairs[cut][1]) - figure(pairs[cut][0])

    figures = {"live": _live, "neural": _neural}
    return {
        name: [float(np.mean([below(cut + step, figure) for cut in given])) for step in (-1, 1)]
        for name, figure in figures.items()
        if given
    }


def _scored(manifest: Manifest) -> bool:
    return bool(manifest.facts["metrics"]["queries"])


def _live(manifest: Manifest) -> float:
    return float(manifest.facts["metrics"]["live"]["recall@20"])


def _neural(manifest: Manifest) -> float:
    return float(manifest.facts["metrics"]["experts"]["neural"]["recall@20"])


def _mean_queries(manifests: Sequence[Manifest]) -> float:
    return float(np.mean([m.facts["metrics"]["queries"] for m in manifests[1:]]))


def _print(result: dict[str, Any]) -> None:
    rows = []
    if clean := result.get("clean"):
        share = clean["rolled_back"] / max(clean["windows"], 1)
        rows += [
            ["clean increments", str(clean["increments"])],
            ["queries a cut", f"{clean['queries']:.0f}"],
            ["windows", str(clean["windows"])],
            ["false alarms", f"{clean['rolled_back']} ({share:.2%} of windows)"],
            ["highest e, blend / neural", " / ".join(f"{clean['highest_e'][name]:.3g}" for name in CONTESTS)],
        ]
    if poisoned := result.get("poisoned"):
        passed = len(poisoned["cuts_until_rolled_back"])
        below = " / ".join(f"{100 * poisoned['below_trusted'][name]:.1f}" for name in CONTESTS)
        within = ", ".join(f"{count} in {n}" for n, count in poisoned["caught_within"].items())
        rows += [
            ["poisoned increments", str(poisoned["given"])],
            ["rejected by hard rules", str(poisoned["rejected_by_hard_rules"])],
            ["on the cut after, below trusted: blend / neural", f"{below} points"],
            *[
                [f"{name} below the clean replay, cut before / after", f"{100 * before:.1f} / {100 * after:.1f} points"]
                for name, (before, after) in poisoned["below_clean"].items()
            ],
            ["rolled back within cuts", f"{within} of {passed}"],
            ["seen by blend / neural", " / ".join(str(poisoned["seen_by"][name]) for name in CONTESTS)],
            ["other roll backs", str(poisoned["other_roll_backs"])],
        ]
    print_table("the gate's sequential test", ("figure", "value"), rows)
