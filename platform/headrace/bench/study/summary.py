"""A study's figures as tables read them: means over seeds and cycles, and what was not run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from headrace.bench.study import forgetting
from headrace.bench.study.answers import NEURAL, Answers
from headrace.bench.study.kinds import Kind
from headrace.bench.study.paired import Figure, Interval, above
from headrace.bench.study.results import Row, Study
from headrace.recommend.recommender import BLEND

BASELINE = "online"


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

    def __init__(self, study: Study, kind: Kind) -> None:
        self._study = study
        self.kind = kind
        self.rows = study.rows()
        self._above: dict[str, dict[Figure, Interval]] = {}

    @property
    def methods(self) -> list[str]:
        """By name, in the order in which they began."""
        return list(self.rows)

    @property
    def last(self) -> int:
        """The last cycle that any method was tested on."""
        return max((row["cycle"] for rows in self.rows.values() for row in rows), default=self.kind.first - 1)

    @property
    def cycles(self) -> range:
        """All that there may be rows of."""
        return range(self.kind.first, self.last + 1)

    @property
    def spans(self) -> list[Span]:
        """What means are taken over: the cycles that settings were tuned on, the others, and all."""
        first, tuned, last = self.kind.first, self.kind.tuned, self.last
        return (
            [Span(first, tuned), Span(tuned + 1, last), Span(first, last)]
            if first <= tuned < last
            else [Span(first, last)]
        )

    @property
    def reported(self) -> Span:
        """What nothing was tuned on; all where there is nothing else."""
        return self.spans[min(1, len(self.spans) - 1)]

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
        return [(min(found[cycle]), max(found[cycle])) if cycle in found else (None, None) for cycle in self.cycles]

    def mean(self, method: str, span: Span, voter: str, metric: str) -> float | None:
        """Over the span's cycles, as the kind of study says; None unless all were run."""
        found = [self.at(method, cycle, voter, metric) for cycle in span.cycles]
        if not found or None in found:
            return None
        queries = {row["cycle"]: row["queries"] for row in self.rows[method]}
        weights = [queries[cycle] if self.kind.by_query else 1 for cycle in span.cycles]
        return float(np.average(np.array(found, dtype=np.float64), weights=weights))

    def part_mean(self, method: str, voter: str, part: str, cutoff: int) -> float | None:
        """Recall of the targets of one part, over all queries that have some; None where there are none."""
        rows = [_figures(row, voter) for row in self.rows[method]]
        found = [(row[f"{part}_recall@{cutoff}"], row[f"{part}_queries"]) for row in rows if row[f"{part}_queries"]]
        values, weights = zip(*found, strict=True) if found else ((), ())
        return float(np.average(values, weights=weights)) if found else None

    def seconds(self, method: str, cycle: int) -> float | None:
        """Of training up to this cycle's test, mean over seeds; None where a cycle before it was not run."""
        total = 0.0
        for before in range(self.kind.first, cycle + 1):
            found = [row["train_s"] for row in self.rows[method] if row["cycle"] == before]
            if not found:
                return None
            total += float(np.mean(found))
        return total

    def cpu_s(self, method: str, cycles: Sequence[int]) -> float | None:
        """CPU seconds of reading and training for these cycles' tests, mean over seeds; None where rows do not say."""
        found = {
            cycle: [row["cpu_s"] for row in self.rows[method] if row["cycle"] == cycle and "cpu_s" in row]
            for cycle in cycles
        }
        return float(sum(np.mean(of) for of in found.values())) if all(found.values()) else None

    def counters(self, method: str) -> list[str]:
        """Names of the counters of a method."""
        return [name for name in self.rows[method][0]["experts"] if name != NEURAL]

    @cached_property
    def matrices(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By method and voter ("neural", "blend"): the mean matrix of R@20 over seeds, and its two figures."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for method, by_seed in self._study.forgetting().items():
            for voter in (NEURAL, BLEND):
                scores = [forgetting.matrix(rows, voter, "recall@20") for rows in by_seed.values()]
                size = max(len(score_IJ) for score_IJ in scores)
                mean_IJ = np.mean([score_IJ for score_IJ in scores if len(score_IJ) == size], axis=0)
                found.setdefault(method, {})[voter] = {
                    "recall@20": mean_IJ,
                    "average_forgetting": forgetting.average_forgetting(mean_IJ),
                    "backward_transfer": forgetting.backward_transfer(mean_IJ),
                }
        return found

    def forgotten_by_columns(self, method: str) -> float | None:
        """See ``forgetting.forgotten_by_columns``; mean over seeds."""
        told = [forgetting.forgotten_by_columns(rows) for rows in self._study.forgetting().get(method, {}).values()]
        known = [value for value in told if value is not None]
        return float(np.mean(known)) if known else None

    @property
    def is_held_out(self) -> bool:
        """Whether forgetting was measured on rows that were never trained."""
        rows = [row for by_seed in self._study.forgetting().values() for rows in by_seed.values() for row in rows]
        return bool(rows) and all(row["held_out"] for row in rows)

    def above_baseline(self, method: str) -> Mapping[Figure, Interval]:
        """How far it lies above ``online`` on the cycles that nothing was tuned on; nothing without them."""
        if method == BASELINE or BASELINE not in self.rows:
            return {}
        if method not in self._above:
            self._above[method] = self.compare(method, BASELINE, self.reported.cycles)
        return self._above[method]

    def best_counter(self, method: str, span: Span) -> str | None:
        """The counter with the highest R@20 of all, chosen in hindsight."""
        means = {name: self.mean(method, span, name, "recall@20") for name in self.counters(method)}
        known = {name: value for name, value in means.items() if value is not None}
        return max(known, key=known.__getitem__) if known else None

    def above_best_counter(self, method: str) -> tuple[str, Mapping[Figure, Interval]] | None:
        """The best counter, and how far what is served lies above it on the cycles that nothing was tuned on."""
        served, counter = list(self.kind.voters)[-1], self.best_counter(method, self.reported)
        if counter is None:
            return None
        done = self._done(method, self.seeds(method)[0]) & {*self.reported.cycles}
        seeds = [seed for seed in self.seeds(method) if self._done(method, seed) >= done]
        tests = {cycle: [self._study.ranks(method, seed, cycle) for seed in seeds] for cycle in sorted(done)}
        theirs = {
            cycle: [replace(one, ranks={served: one.ranks[counter]}) for one in answers]
            for cycle, answers in tests.items()
        }
        figures = [(served, metric) for metric in self.kind.shown]
        return counter, above(tests, theirs, figures, by_query=self.kind.by_query, by_slice=self.kind.by_slice)

    def compare(self, ours: str, theirs: str, cycles: Sequence[int]) -> dict[Figure, Interval]:
        """Paired intervals over those of these cycles that both have with their first common seed.

        The other seeds take part that have all of them, too.
        """
        common = [seed for seed in self.seeds(ours) if seed in self.seeds(theirs)]
        done = {seed: self._done(ours, seed) & self._done(theirs, seed) & {*cycles} for seed in common}
        seeds = [seed for seed in common if done[seed] >= done[common[0]]]

        def tests(method: str) -> dict[int, list[Answers]]:
            return {cycle: [self._study.ranks(method, seed, cycle) for seed in seeds] for cycle in done[common[0]]}

        if not common:
            return {}
        figures = [(voter, metric) for voter in self.kind.voters for metric in self.kind.shown]
        kind = self.kind
        return above(tests(ours), tests(theirs), figures, by_query=kind.by_query, by_slice=kind.by_slice)

    def _done(self, method: str, seed: int) -> set[int]:
        return {row["cycle"] for row in self.rows[method] if row["seed"] == seed}


def _figures(row: Row, voter: str) -> Mapping[str, Any]:
    """One voter's figures in a row, whose own are the neural expert's."""
    if voter == NEURAL:
        return row
    figures: Mapping[str, Any] = row[voter] if voter in row else row["experts"][voter]
    return figures
