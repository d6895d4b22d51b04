"""The sequential test behind publication: whether what is served is at least as good as the trusted version.

Both answer the same queries, and each item that was a target in a cut has one sign (-1: live answered fewer of its
queries, 1: more): all queries for an item that many want tip together, so that they are one piece of evidence and not
many. A gambler who doubts live stakes a share b of the capital on every item whose sign is not 0, and gets back
1 - b sign. While live is at least as good, no strategy can be expected to win, so that the capital ever reaches 1 / a
with probability at most a, however long one looks and whenever one stops (testing by betting: arXiv 2010.09686;
e-processes: arXiv 2210.01948).
The capital is spread evenly over a grid of stakes, so none is tuned to the size of a loss, and over the cuts of a
window, each share being staked from its cut on, so that what live won before an increment went wrong does not count for
it. Stakes stay fixed, hence the capital is a function of two counts for each cut: the order of items is of no
consequence, and a trial resumes from a few numbers. It is looked at after each cut, when something can be done.
Shape legend: I items, B stakes, C cuts of a window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STAKES_B = (np.arange(32) + 0.5) / 32
_MAX_LOG_E = 690.0  # what a float, and JSON, can still hold

CONTESTS = ("blend", "neural")
"""What is compared: what is served, and the neural expert alone, since a blend can hide a model that decays."""


@dataclass(frozen=True)
class Tally:
    """Evidence for and against "live is at least as good as trusted"."""

    items: int = 0
    better: int = 0
    """Items of which live answered more queries."""
    worse: int = 0

    @classmethod
    def of(cls, sign_I: NDArray[np.integer]) -> "Tally":
        """What these items say."""
        return cls(len(sign_I), int((sign_I > 0).sum()), int((sign_I < 0).sum()))

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(self.items + other.items, self.better + other.better, self.worse + other.worse)

    @property
    def e_value(self) -> float:
        """The capital of a gambler who began with 1 before these items."""
        log_B = self.worse * np.log1p(_STAKES_B) + self.better * np.log1p(-_STAKES_B)
        highest = float(log_B.max())
        mean = math.fsum(np.exp(log_B - highest).tolist()) / len(_STAKES_B)
        return math.exp(min(highest + math.log(mean), _MAX_LOG_E))


def e_value(tally_C: Sequence[Tally], window: int) -> float:
    """The capital after these cuts of a window, where an equal share of it waited for each of the window's cuts."""
    num_cuts, since, capital = len(tally_C), Tally(), 0.0
    for tally in reversed(tally_C):
        since += tally
        capital += since.e_value / max(window, num_cuts)
    return capital + max(window - num_cuts, 0) / max(window, num_cuts)


@dataclass(frozen=True)
class Trial:
    """Which version is trusted, and how far the trial of its successors has come. State; made here, kept in commits.

    A window opens with the first cut on which live and trusted differ. The version that was live then becomes trusted
    after ``window`` cuts, in which it or its descendants were on trial all the time.
    """

    trusted: int = 0
    """The commit (by cut) that passed last; the warm-up is trusted to begin with."""
    opened: int | None = None
    """The commit that was live when the window opened; None: no window is open."""
    tallies: Mapping[str, tuple[Tally, ...]] = field(default_factory=lambda: dict.fromkeys(CONTESTS, ()))
    """By contest, one of each cut of the window so far."""

    @property
    def cuts(self) -> int:
        """Cuts of the window so far."""
        return len(self.tallies[CONTESTS[0]])

    @property
    def needed(self) -> set[int]:
        """The commits that must stay in the store."""
        return {self.trusted} if self.opened is None else {self.trusted, self.opened}

    def add(self, live: int, signs: Mapping[str, NDArray[np.integer]]) -> "Trial":
        """With one more cut, on which the commit ``live`` was compared; one without queries counts for nothing."""
        if not len(signs[CONTESTS[0]]):
            return self
        tallies = {name: (*self.tallies[name], Tally.of(signs[name])) for name in CONTESTS}
        return Trial(self.trusted, live if self.opened is None else self.opened, tallies)

    def total(self, name: str) -> Tally:
        """The window's cuts together."""
        return sum(self.tallies[name], Tally())

    def e_values(self, window: int) -> dict[str, float]:
        """Evidence against live, by contest; ``window`` cuts are looked at in all."""
        return {name: e_value(self.tallies[name], window) for name in CONTESTS}

    def settled(self, window: int) -> "Trial":
        """Once ``window`` cuts have passed: the opening version is trusted, and a new window may open."""
        if self.opened is None or self.cuts < window:
            return self
        return Trial(self.opened)

    def restarted(self) -> "Trial":
        """The same trusted version, with no evidence against those to come."""
        return Trial(self.trusted)

    def state(self) -> dict[str, Any]:
        """Plain JSON for the commit."""
        counts = {name: [[t.items, t.better, t.worse] for t in self.tallies[name]] for name in CONTESTS}
        return {"trusted": self.trusted, "opened": self.opened, **counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Trial":
        """The trial whose ``state`` this was."""
        tallies = {name: tuple(Tally(*counts) for counts in state[name]) for name in CONTESTS}
        return cls(state["trusted"], state["opened"], tallies)
