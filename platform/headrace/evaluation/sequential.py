"""The sequential test behind publication: whether what is served is at least as good as the trusted version.

Both answer the same queries; of each only the sign counts (-1: live answered worse, 1: better). A gambler who doubts
live stakes a share b of the capital on every query whose sign is not 0, and gets back 1 - b sign. While live is at
least as good, no strategy can be expected to win, so that the capital ever reaches 1 / a with probability at most a,
however long one looks and whenever one stops (testing by betting: arXiv 2010.09686; e-processes: arXiv 2210.01948).
The capital is spread evenly over a grid of stakes, so none is tuned to the size of a loss. Stakes stay fixed over a
trial, hence the capital is a function of two counts: the order of queries is of no consequence, and a trial resumes
from a few numbers. It is looked at after each cut, which is when something can be done about it.
Shape legend: Q queries, B stakes.
"""

import math
from collections.abc import Mapping
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
    """Evidence so far against "live is at least as good as trusted"."""

    queries: int = 0
    better: int = 0
    """Queries that live answered better."""
    worse: int = 0

    def add(self, sign_Q: NDArray[np.integer]) -> "Tally":
        """With these queries too."""
        better, worse = int((sign_Q > 0).sum()), int((sign_Q < 0).sum())
        return Tally(self.queries + len(sign_Q), self.better + better, self.worse + worse)

    @property
    def e_value(self) -> float:
        """The gambler's capital, who began with 1."""
        log_B = self.worse * np.log1p(_STAKES_B) + self.better * np.log1p(-_STAKES_B)
        highest = float(log_B.max())
        mean = math.fsum(np.exp(log_B - highest).tolist()) / len(_STAKES_B)
        return math.exp(min(highest + math.log(mean), _MAX_LOG_E))


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
    cuts: int = 0
    """Cuts of the window so far."""
    tallies: Mapping[str, Tally] = field(default_factory=lambda: dict.fromkeys(CONTESTS, Tally()))

    @property
    def needed(self) -> set[int]:
        """The commits that must stay in the store."""
        return {self.trusted} if self.opened is None else {self.trusted, self.opened}

    def add(self, live: int, signs: Mapping[str, NDArray[np.integer]]) -> "Trial":
        """With one more cut, on which the commit ``live`` was compared; one without queries counts for nothing."""
        if not len(signs[CONTESTS[0]]):
            return self
        tallies = {name: self.tallies[name].add(signs[name]) for name in CONTESTS}
        return Trial(self.trusted, live if self.opened is None else self.opened, self.cuts + 1, tallies)

    def alarms(self, false_alarm: float) -> tuple[str, ...]:
        """The contests whose evidence has reached 1 / ``false_alarm``."""
        return tuple(name for name in CONTESTS if self.tallies[name].e_value >= 1.0 / false_alarm)

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
        counts = {name: [tally.queries, tally.better, tally.worse] for name, tally in self.tallies.items()}
        return {"trusted": self.trusted, "opened": self.opened, "cuts": self.cuts, **counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Trial":
        """The trial whose ``state`` this was."""
        tallies = {name: Tally(*state[name]) for name in CONTESTS}
        return cls(state["trusted"], state["opened"], state["cuts"], tallies)
