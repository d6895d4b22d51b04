"""``headrace bench coldstart``: how well items are found that nobody, or hardly anybody, has touched.

Every query of a cut is asked of the learner that finished the cut before, and counted under what it knew of the target:
the trained events of it. Without a log the stream is the synthetic shop, whose items are launched together, and whose
side feed names each one a shard before it is met: then an item of no events can be found by its attributes, or, without
attributes ("ids only"), by nothing but luck. With ``--data`` the log is replayed, where an item of no events cannot be
answered, and the question is what rows that start from a mean are worth against random ones. Imports no ray.
Shape legend: T targets.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.bench.output import print_table
from headrace.blend.weights import NEURAL
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.recommend.recommender import BLEND
from headrace.records import CutRows
from headrace.train.offline import queries_of, replay
from headrace.train.state import LearnerState

SHOP = (
    "feed.cut=shard",
    "feed.synthetic.num_items=2000",
    "feed.synthetic.events_per_shard=1000",
    "feed.synthetic.warmup_events=20000",
    "feed.synthetic.births_per_shard=10",
    "feed.synthetic.launch_items=20",
    "feed.synthetic.items=true",
    "columns.user_id=user_id",
    "columns.event=event",
    "inputs.max_events=20",
    "model.width=48",
    "model.blocks=1",
    "model.dropout=0.1",
    "train.batch=128",
    "train.learning_rate=1e-3",
    "train.warmup_epochs=6",
    "train.epochs=2",
    "evaluation.max_queries=300",
    "gate.window=0",
)
"""The synthetic shop, small enough for minutes on a laptop."""
_ATTRIBUTES = 'catalogue.attributes=["category","aisle","colour"]'
SHOP_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "attributes": (_ATTRIBUTES,),
    "ids only": (),
    "ids only, mean": ("catalogue.fresh_rows=mean",),
}
LOG_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "mean": ("catalogue.fresh_rows=mean",),
    "random": ("catalogue.fresh_rows=random",),
}
AGES = {"0": (0, 1), "1-4": (1, 5), "5-19": (5, 20), "20+": (20, np.iinfo(np.int64).max)}
"""Trained events of a target when it is asked for: from, to."""
_CUTOFFS = (20, 100)


class Tally:
    """Hits of one variant's answers, by voter and by what was known of the target."""

    def __init__(self) -> None:
        self.asked = dict.fromkeys(AGES, 0)
        self.hits = {(voter, age, k): 0 for voter in (BLEND, NEURAL) for age in AGES for k in _CUTOFFS}
        self.found: dict[int, dict[str, float]] = {}
        """Of each item that was asked for before any event of it: how many it had when it was first found, by voter."""

    def add(
        self, target_T: NDArray[np.int64], count_T: NDArray[np.int64], rank: Mapping[str, NDArray[np.int64]]
    ) -> None:
        """Count targets (item numbers) that had been met ``count_T`` times, and where they ranked."""
        for number in target_T[count_T == 0].tolist():
            self.found.setdefault(number, dict.fromkeys((BLEND, NEURAL), float("inf")))
        for voter in (BLEND, NEURAL):
            hit_T = rank[voter] <= _CUTOFFS[-1]
            for number, count in zip(target_T[hit_T].tolist(), count_T[hit_T].tolist(), strict=True):
                if number in self.found:
                    self.found[number][voter] = min(self.found[number][voter], count)
        for age, (first, stop) in AGES.items():
            of_age_T = (count_T >= first) & (count_T < stop)
            self.asked[age] += int(of_age_T.sum())
            for voter in (BLEND, NEURAL):
                for k in _CUTOFFS:
                    self.hits[voter, age, k] += int((rank[voter][of_age_T] <= k).sum())

    def recall(self, voter: str, age: str, k: int) -> float | None:
        """Share of the targets of this age that were among the best k; None where there was none."""
        return self.hits[voter, age, k] / self.asked[age] if self.asked[age] else None

    def events_until_found(self, voter: str) -> float | None:
        """Events after which half of the new items had been among the best 100 once; None where that took too long."""
        median = float(np.median([found[voter] for found in self.found.values()])) if self.found else float("inf")
        return median if np.isfinite(median) else None

    def result(self) -> dict[str, Any]:
        """Plain JSON: queries and recall by age, and untouched items' recall over well-known ones'."""
        recall = {
            voter: {age: {f"recall@{k}": self.recall(voter, age, k) for k in _CUTOFFS} for age in AGES}
            for voter in (BLEND, NEURAL)
        }
        ratio = {voter: _ratio(self.recall(voter, "0", 100), self.recall(voter, "20+", 100)) for voter in recall}
        found = {voter: self.events_until_found(voter) for voter in recall}
        return {
            "queries": dict(self.asked),
            "recall": recall,
            "cold_over_warm_recall@100": ratio,
            "new_items": len(self.found),
            "events_until_found": found,
        }


def run(
    *,
    data: Path | None = None,
    increments: int = 40,
    device: str = "cpu",
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run each variant over ``increments`` cuts after the warm-up and print recall by the target's trained events."""
    if data is None:
        base, words, variants = [str(recipe)] if recipe else [], [*SHOP], SHOP_VARIANTS
    else:
        base, words, variants = [str(recipe or Path("jobs/recipes/globo.toml"))], [f"feed.path={data}"], LOG_VARIANTS
    result = {}
    for variant, special in variants.items():
        tally = _measure(load_recipe(base, [*words, *special, *overrides]), increments, torch.device(device))
        result[variant] = tally.result()
        _print(variant, tally, with_header=len(result) == 1)
    return result


def _measure(recipe: Recipe, increments: int, device: torch.device) -> Tally:
    tally = Tally()
    for _ in replay(recipe, device, increments, _asking(tally)):
        pass
    return tally


def _asking(tally: Tally) -> Callable[[CutRows, LearnerState], CutRows]:
    """What looks at each cut before it is taken, and leaves it as it is."""

    def ask(part: CutRows, state: LearnerState) -> CutRows:
        if state.learner is not None:
            asked = queries_of(part, state)
            judged = state.learner.judge(asked.contexts, asked.target_T, asked.offset_R)
            tally.add(asked.target_T, state.catalogue.count_I[asked.target_T], judged.rank)
        return part

    return ask


def _ratio(cold: float | None, warm: float | None) -> float | None:
    return cold / warm if cold is not None and warm else None


def _print(variant: str, tally: Tally, *, with_header: bool) -> None:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    rows = []
    for voter in (BLEND, NEURAL):
        recall = [cell(tally.recall(voter, age, k)) for age in AGES for k in _CUTOFFS]
        ratio = _ratio(tally.recall(voter, "0", 100), tally.recall(voter, "20+", 100))
        found = tally.events_until_found(voter)
        rows.append([f"{variant}, {voter}", *recall, cell(ratio), "-" if found is None else f"{found:g}"])
    header = [
        "rows of new items",
        *(f"{age} R@{k}" for age in AGES for k in _CUTOFFS),
        "0 over 20+, R@100",
        "events until found",
    ]
    asked = ", ".join(f"{count:,} with {age}" for age, count in tally.asked.items())
    title = f"recall, %, by trained events of the target: {asked}" if with_header else None
    print_table(title, header, rows, with_header=with_header)
