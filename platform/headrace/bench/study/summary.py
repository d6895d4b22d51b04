"""A study's figures as tables read them: means over seeds and cycles, and what was not run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from headrace.bench.study import forgetting
from headrace.bench.study.answers import NEURAL, RUNNING, Answers
from headrace.bench.study.paired import Figure, Interval, above
from headrace.bench.study.results import Row, Study

VOTERS = {NEURAL: "the neural expert alone", RUNNING: "what is served: the blend, its weights moving inside a cycle"}
"""Every table is given for each of them."""
SHOWN = ("recall@20", "mrr@20")
_BASELINE = "online"
_TUNED_ON = 4
"""Cycles that settings may have been chosen on."""
_FIGURES: tuple[Figure, ...] = tuple((voter, metric) for voter in VOTERS for metric in SHOWN)


@dataclass(frozen=True)
class Span:
    """Cycles that a table takes together."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" if self.last > self.first else f"{self.first}"

    @property
    def cycles(self) -> range:
        """All of them."""
        return range(self.first, self.last + 1)


class Summary:
    """Everything that is done in a study's folder."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.rows = study.rows()
        self._above: dict[str, dict[Figure, Interval]] = {}

    @property
    def methods(self) -> list[str]:
        """By name, in the order in which they began."""
        return list(self.rows)

    @property
    def last(self) -> int:
        """The last cycle that any method was tested on."""
        return max((row["cycle"] for rows in self.rows.values() for row in rows), default=0)

    @property
    def spans(self) -> list[Span]:
        """What means are taken over: the cycles that settings were tuned on, the others, and all."""
        whole = Span(1, self.last)
        return [Span(1, _TUNED_ON), Span(_TUNED_ON + 1, self.last), whole] if self.last > _TUNED_ON else [whole]

    def seeds(self, method: str) -> list[int]:
        """That have a row at all."""
        return sorted({row["seed"] for row in self.rows[method]})

    def at(self, method: str, cycle: int, voter: str, metric: str) -> float | None:
        """Mean over seeds; None where it was not run."""
        found = [_figures(row, voter)[metric] for row in self.rows[method] if row["cycle"] == cycle]
        return float(np.mean(found)) if found and None not in found else None

    def ranges(self, method: str, voter: str, metric: str) -> list[tuple[float | None, float | None]]:
        """The lowest and the highest of all seeds, cycle by cycle."""
        found: dict[int, list[float]] = {}
        for row in self.rows[method]:
            found.setdefault(row["cycle"], []).append(_figures(row, voter)[metric])
        cycles = range(1, self.last + 1)
        return [(min(found[cycle]), max(found[cycle])) if cycle in found else (None, None) for cycle in cycles]

    def mean(self, method: str, span: Span, voter: str, metric: str) -> float | None:
        """Plain mean over the span's cycles; None unless all were run."""
        found = [self.at(method, cycle, voter, metric) for cycle in span.cycles]
        return float(np.mean([value for value in found if value is not None])) if None not in found else None

    def seconds(self, method: str, cycle: int) -> float | None:
        """Of training up to this cycle's test, mean over seeds; None where a cycle before it was not run."""
        total = 0.0
        for before in range(1, cycle + 1):
            found = [row["train_s"] for row in self.rows[method] if row["cycle"] == before]
            if not found:
                return None
            total += float(np.mean(found))
        return total

    def counters(self, method: str) -> list[str]:
        """Names of the counters of a method."""
        return [name for name in self.rows[method][0]["experts"] if name != NEURAL]

    @cached_property
    def matrices(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By method and voter ("neural", "blend"): the mean matrix of R@20 over seeds, and its two figures."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for method, by_seed in self._study.forgetting().items():
            for voter in (NEURAL, "blend"):
                scores = [forgetting.matrix(rows, voter, "recall@20") for rows in by_seed.values()]
                size = max(len(score_IJ) for score_IJ in scores)
                mean_IJ = np.mean([score_IJ for score_IJ in scores if len(score_IJ) == size], axis=0)
                found.setdefault(method, {})[voter] = {
                    "recall@20": mean_IJ,
                    "average_forgetting": forgetting.average_forgetting(mean_IJ),
                    "backward_transfer": forgetting.backward_transfer(mean_IJ),
                }
        return found

    @property
    def is_held_out(self) -> bool:
        """Whether forgetting was measured on rows that were never trained."""
        rows = [row for by_seed in self._study.forgetting().values() for rows in by_seed.values() for row in rows]
        return bool(rows) and all(row["held_out"] for row in rows)

    def above_baseline(self, method: str) -> Mapping[Figure, Interval]:
        """How far it lies above ``online`` on the cycles that nothing was tuned on; nothing without them."""
        if method == _BASELINE or _BASELINE not in self.rows:
            return {}
        if method not in self._above:
            self._above[method] = self.compare(method, _BASELINE, self.spans[min(1, len(self.spans) - 1)].cycles)
        return self._above[method]

    def compare(self, ours: str, theirs: str, cycles: Sequence[int]) -> dict[Figure, Interval]:
        """Paired intervals over those of these cycles that both have with their first common seed.

        The other seeds take part that have all of them, too.
        """
        common = [seed for seed in self.seeds(ours) if seed in self.seeds(theirs)]
        done = {seed: self._done(ours, seed) & self._done(theirs, seed) & {*cycles} for seed in common}
        seeds = [seed for seed in common if done[seed] >= done[common[0]]]

        def tests(method: str) -> dict[int, list[Answers]]:
            return {cycle: [self._study.ranks(method, seed, cycle) for seed in seeds] for cycle in done[common[0]]}

        return above(tests(ours), tests(theirs), _FIGURES) if common else {}

    def _done(self, method: str, seed: int) -> set[int]:
        return {row["cycle"] for row in self.rows[method] if row["seed"] == seed}


def _figures(row: Row, voter: str) -> Mapping[str, Any]:
    """One voter's figures in a row, whose own are the neural expert's."""
    if voter == NEURAL:
        return row
    figures: Mapping[str, Any] = row[voter] if voter in row else row["experts"][voter]
    return figures
