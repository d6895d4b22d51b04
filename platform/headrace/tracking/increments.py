"""All commits so far as the report and its page see them: a few numbers of each, in rows of one increment or several.

Every figure is defined in docs/metrics.md. Shape legend: C commits, R rows of the report, A commits of a row.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.clock import train_s
from headrace.commit.summary import KEPT_FIGURES, Summary
from headrace.tracking.series import mean_difference

if TYPE_CHECKING:
    from headrace.commit.manifest import Verdict

_MOST_ROWS = 1000  # of a series in the report


class Outcome(NamedTuple):
    """What was decided on one increment. Made by ``Increments.outcomes``, read by the page."""

    cut: int
    version: int | None
    """Published by this increment; None where it was not."""
    verdict: "Verdict"
    reason: str


class Increments:
    """All commits so far, a few numbers of each, so that a run may go on for ever: some 500 bytes a commit."""

    def __init__(self, commits: Iterable[Summary] = ()) -> None:
        self.cuts = array("q")
        self.cut_of: dict[int, int] = {}
        """By version: the cut whose commit published it."""
        self.newest: Summary | None = None
        self.events = 0
        self.verdicts = Counter(publish=0, hold=0, reject=0)
        self.rejected: set[int] = set()
        """Cuts."""
        self._decided: list[tuple[Verdict, str]] = []
        """Verdict and reason of each commit; most are the same one."""
        self._decisions: dict[tuple[Verdict, str], tuple[Verdict, str]] = {}
        self._first: Summary | None = None
        self._later_events = 0
        self._later_train_s = 0.0
        self._series: dict[tuple[str, ...], array[float]] = {}
        for commit in commits:
            self.add(commit)

    def __len__(self) -> int:
        return len(self.cuts)

    def add(self, commit: Summary) -> None:
        """One more; they come by cut, the warm-up first."""
        if commit.version is not None:
            self.cut_of[commit.version] = commit.cut
        if commit.verdict == "reject":
            self.rejected.add(commit.cut)
        decision = (commit.verdict, commit.reason)
        self._decided.append(self._decisions.setdefault(decision, decision))
        if commit.cut != 0:
            self._later_events += commit.events
            self._later_train_s += train_s(commit.seconds)
        self._first, self.newest = self._first or commit, commit
        self.events += commit.events
        self.verdicts[commit.verdict] += 1
        known = dict(_figures(commit))
        for name in known.keys() - self._series.keys():
            self._series[name] = array("d", [math.nan] * len(self.cuts))
        for name, series in self._series.items():
            value = known.get(name)
            series.append(math.nan if value is None else value)
        self.cuts.append(commit.cut)

    @property
    def a_row(self) -> int:
        """Commits, one after the other, that share a row of the report: one, until there are too many."""
        return max(1, math.ceil(len(self) / _MOST_ROWS))

    @property
    def row_cuts(self) -> list[int]:
        """The newest cut of each row."""
        ends = [*range(self.a_row, len(self), self.a_row), len(self)] if len(self) else []
        return [self.cuts[end - 1] for end in ends]

    def series(self, *name: str) -> list[float | None]:
        """One value for each row, the mean of its commits'; None where there is none."""
        found = self._series.get(name)
        return [None] * len(self.row_cuts) if found is None else self.in_rows(found)

    def in_rows(self, value_C: Sequence[float] | NDArray[np.float64]) -> list[float | None]:
        """The means of each row's commits, of those that are not NaN; None where there is none."""
        if self.a_row == 1:
            return [None if math.isnan(value) else float(value) for value in value_C]
        rows = len(self.row_cuts)
        padded_RA = np.full((rows, self.a_row), np.nan)
        padded_RA.reshape(-1)[: len(value_C)] = value_C
        known_RA = np.isfinite(padded_RA)
        num_R, sum_R = known_RA.sum(axis=1), np.where(known_RA, padded_RA, 0.0).sum(axis=1)
        return [float(total / num) if num else None for total, num in zip(sum_R, num_R, strict=True)]

    def scores(self, figure: str) -> dict[str, Any]:
        """A figure of each version that is scored, and of each expert."""
        versions = {name: self.series(name, figure) for name in ("live", "learner", "frozen")}
        return {**versions, "experts": {name: self.series("experts", name, figure) for name in self._experts(figure)}}

    def vitals(self) -> dict[str, list[float | None]]:
        """How the learner was at each commit, by figure; what frozen found and live did not among them."""
        names = sorted(name[1] for name in self._series if name[0] == "vitals")
        found = {_plain(name): self.series("vitals", name) for name in names}
        if found:
            found["regret_at_20"] = self.in_rows(self._recall("frozen") - self._recall("live"))
        return found

    def live_above(self) -> dict[str, Any]:
        """Of recall@20, on the commits that have both: how far live lies above frozen and each expert, [mean, half].

        Half the width of a 95 % interval, as of independent commits; None where fewer than two have both.
        """
        live_C = self._recall("live")
        experts = {name: self._recall("experts", name) for name in self._experts("recall@20")}
        return {
            "frozen": mean_difference(live_C, self._recall("frozen")),
            "experts": {name: mean_difference(live_C, their_C) for name, their_C in experts.items()},
        }

    def _experts(self, figure: str) -> list[str]:
        return sorted(name[1] for name in self._series if name[0] == "experts" and name[2] == figure)

    def _recall(self, *name: str) -> NDArray[np.float64]:
        found = self._series.get((*name, "recall@20"))
        return np.full(len(self), np.nan) if found is None else np.array(found)

    def anchors(self) -> dict[str, list[float | None]]:
        """By the cut that completed them: what the neural expert made of held-out queries whenever they were asked."""
        names = sorted((name[1] for name in self._series if name[0] == "anchor"), key=int)
        return {name: self.series("anchor", name) for name in names}

    def weights(self) -> dict[str, list[float | None]]:
        """Each expert's weight after each commit."""
        names = sorted(name[1] for name in self._series if name[0] == "weights")
        return {name: self.series("weights", name) for name in names}

    def outcomes(self) -> list[Outcome]:
        """What was decided on each commit."""
        version_of = {cut: version for version, cut in self.cut_of.items()}
        return [
            Outcome(cut, version_of.get(cut), verdict, reason)
            for cut, (verdict, reason) in zip(self.cuts, self._decided, strict=True)
        ]

    @property
    def train_events_per_s(self) -> float | None:
        """Of the increments after the warm-up, which has a budget of its own; rejected ones were trained too."""
        return self._later_events / self._later_train_s if self._later_train_s > 0 else None

    @property
    def wall_s(self) -> float:
        """From the beginning of the first increment to the newest commit, pauses between two starts included."""
        if self._first is None or self.newest is None:
            return 0.0
        return (self.newest.wall_ms - self._first.wall_ms) / 1000 + sum(self._first.seconds.values())


def _figures(commit: Summary) -> Iterator[tuple[tuple[str, ...], float | None]]:
    for version, scores in commit.scores.items():
        yield from (((version, figure), (scores or {}).get(figure)) for figure in KEPT_FIGURES)
    for expert, scores in commit.expert_scores.items():
        yield from ((("experts", expert, figure), scores.get(figure)) for figure in KEPT_FIGURES)
    yield from ((("weights", expert), weight) for expert, weight in commit.weights.items())
    yield from ((("vitals", name), value) for name, value in commit.vitals.items())
    if commit.anchor is not None:
        yield ("anchor", f"{commit.anchor['cut']:.0f}"), commit.anchor["neural"]


def _plain(name: str) -> str:
    """A figure's name as a key of the report."""
    return name.replace("@", "_at_").replace("/", "_")
