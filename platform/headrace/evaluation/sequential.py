"""The sequential test behind publication: whether what is served is at least as good as the trusted version.

Both answer the same queries, and each target has a gain (-1: live missed it, 1: trusted did, at 20). A gambler who
doubts live stakes a share b of the capital on every target whose gain is not 0, and gets back 1 - b gain. While live is
at least as good, no strategy can be expected to win, so that the capital ever reaches 1 / a with probability at most a,
however long one looks and whenever one stops (testing by betting: arXiv 2010.09686; e-processes: arXiv 2210.01948).
All queries for an item that many want tip together, so that they are not as many pieces of evidence: a cut's counts are
divided by its design effect, the variance of the sum of gains with items as clusters over that with none.
The capital is spread evenly over a grid of stakes, so none is tuned to the size of a loss, and over the cuts of a
window, each share being staked from its cut on, so that what live won before an increment went wrong does not count for
it. Stakes stay fixed, hence the capital is a function of two counts for each cut: the order of targets is of no
consequence, and a trial resumes from a few numbers. It is looked at after each cut, when something can be done.
Shape legend: T targets, B stakes, C cuts of a window.
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

    targets: int = 0
    better: float = 0.0
    """Targets that live found and trusted did not, over the design effect."""
    worse: float = 0.0
    effect: float = 1.0
    """The design effect of a single cut."""

    @classmethod
    def of(cls, gain_T: NDArray[np.integer], item_T: NDArray[np.integer]) -> "Tally":
        """What a cut's targets say; ``item_T`` are their items."""
        effect = _design_effect(gain_T.astype(np.float64), item_T)
        return cls(len(gain_T), float((gain_T > 0).sum()) / effect, float((gain_T < 0).sum()) / effect, effect)

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(self.targets + other.targets, self.better + other.better, self.worse + other.worse)

    @property
    def e_value(self) -> float:
        """The capital of a gambler who began with 1 before these targets."""
        log_B = self.worse * np.log1p(_STAKES_B) + self.better * np.log1p(-_STAKES_B)
        highest = float(log_B.max())
        mean = math.fsum(np.exp(log_B - highest).tolist()) / len(_STAKES_B)
        return math.exp(min(highest + math.log(mean), _MAX_LOG_E))


def _design_effect(gain_T: NDArray[np.float64], item_T: NDArray[np.integer]) -> float:
    """Variance of the summed gains with items as clusters, over that of independent ones; at least 1."""
    apart_T = gain_T - gain_T.mean() if len(gain_T) else gain_T
    alone = float((apart_T**2).sum())
    if alone == 0.0:
        return 1.0
    together_I = np.bincount(np.unique(item_T, return_inverse=True)[1], weights=apart_T)
    return max(1.0, float((together_I**2).sum()) / alone)


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

    def add(self, live: int, gains: Mapping[str, NDArray[np.integer]], item_T: NDArray[np.integer]) -> "Trial":
        """With one more cut, on which the commit ``live`` was compared; one without queries counts for nothing."""
        if not len(item_T):
            return self
        tallies = {name: (*self.tallies[name], Tally.of(gains[name], item_T)) for name in CONTESTS}
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

    def state(self) -> dict[str, Any]:
        """Plain JSON for the commit."""
        counts = {name: [[t.targets, t.better, t.worse, t.effect] for t in self.tallies[name]] for name in CONTESTS}
        return {"trusted": self.trusted, "opened": self.opened, **counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Trial":
        """The trial whose ``state`` this was."""
        tallies = {name: tuple(Tally(*counts) for counts in state[name]) for name in CONTESTS}
        return cls(state["trusted"], state["opened"], tallies)
