"""``headrace bench staleness``: what freshness is worth on a log, with the blend as it is served.

The log is replayed in slices of a minute. Every so many minutes the newest cut's queries are answered by the versions
that were current so long ago: all of them on the same queries, each with the items, counters and weights of its time.
Imports neither ray nor wandb.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.output import print_table
from headrace.bench.plot import write_line
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.evaluation.metrics import METRICS
from headrace.recommend.recommender import BLEND, Recommender
from headrace.records import CutRows
from headrace.train.offline import queries_of, replay
from headrace.train.state import LearnerState

LAGS = {"0": 0, "1 min": 1, "10 min": 10, "1 h": 60, "6 h": 360, "24 h": 1440}
"""Minutes, which are cuts. "0" is the version that finished the cut before."""
_SHOWN = ("recall@20", "mrr@20")


@dataclass
class _Watch:
    """Keeps the versions that will be asked, and asks them when their time has come."""

    every: int
    versions: dict[int, Recommender] = field(default_factory=dict)
    """By the cut that each finished."""
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    queries: int = 0

    def look(self, part: CutRows, state: LearnerState) -> CutRows:
        """Before this cut is trained: keep the learner if it will be asked, and ask whoever is to answer this cut."""
        if state.learner is None:
            return part
        cut, finished = part.cut.number, part.cut.number - 1
        if any((finished + 1 + lag) % self.every == 0 for lag in LAGS.values()):
            self.versions[finished] = deepcopy(state.learner).freeze()
        if cut % self.every == 0 and all(finished - lag in self.versions for lag in LAGS.values()):
            asked = queries_of(part, state)
            self.queries += len(asked)
            for name, lag in LAGS.items():
                version = self.versions[finished - lag]
                rank_T = version.judge(asked.contexts, asked.target_T, asked.offset_R).rank[BLEND]
                for metric in _SHOWN:
                    found = METRICS[metric](rank_T, asked.offset_R).tolist()
                    self.values.setdefault(name, {}).setdefault(metric, []).extend(found)
        oldest = finished - max(LAGS.values())
        self.versions = {n: version for n, version in self.versions.items() if n >= oldest}
        return part


def run(
    *,
    data: Path,
    increments: int = 2880,
    every: int = 60,
    plot: Path | None = None,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/globo.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Replay ``increments`` minutes after the warm-up; each ``every``-th is asked of all. Figures are shares.

    ``plot``: an SVG file to draw recall into.
    """
    words = [
        "feed.replay.slice_s=60",
        "evaluation.frozen_every=1000000000",
        "evaluation.max_queries=100",
        "gate.window=0",
    ]
    made = load_recipe([str(recipe)], [*words, *overrides, f"feed.path={data}"])
    watch = _Watch(every)
    for _ in replay(made, torch.device(device), increments, watch.look):
        pass
    if not watch.queries:
        raise ConfigError(f"no cut had versions of all lags: it takes more than {max(LAGS.values())} increments")
    rows = {lag: {name: float(np.mean(found)) for name, found in of.items()} for lag, of in watch.values.items()}
    print_table(
        f"the blend by the age of the version that answers, {watch.queries} queries",
        ("lag", "R@20", "MRR@20"),
        [[lag, *(f"{100 * row[name]:.2f}" for name in _SHOWN)] for lag, row in rows.items()],
    )
    if plot is not None:
        recall = {lag: 100 * row["recall@20"] for lag, row in rows.items()}
        write_line(plot, "Recall@20 by the age of the version that answers", "age of the version", recall)
    return {"queries": watch.queries, "lags_min": LAGS, "rows": rows}
