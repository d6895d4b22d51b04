"""Which items a sampled softmax scores, and how often it should have expected to draw each: the Q of logQ.

A draw puts one point into each of ``num_draws`` strips of equal width, over items laid side by side with the width of
their expected count. So expected counts are exact whatever the shape of the distribution, hardly an item comes twice
in a uniform draw, and the strips keep the sum over the drawn items close to the sum over all. Imports no torch.
Shape legend: V rows of the table, E eligible items, N drawn items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 16  # of holding items at one expected draw; a handful settle it


@dataclass(frozen=True)
class Drawn:
    """The items that one step scores beside its targets. Made by ``Proposal.draw``, read by the training step."""

    column_N: NDArray[np.int64]
    """Among the eligible items, ascending and distinct."""
    correction_N: NDArray[np.float32]
    """log(how often it was drawn / how often it should be): added to its logit, it makes up for the draw."""


class Proposal:
    """The distribution that negatives are drawn from, over one eligible set.

    ``frequency_E``: draw in proportion to it, but for ``uniform_share`` of the draws; None: draw evenly. Where no more
    than ``num_draws`` items are eligible, each is drawn exactly once.
    """

    def __init__(
        self,
        num_draws: int,
        num_eligible: int,
        frequency_E: NDArray[np.float64] | None = None,
        uniform_share: float = 1.0,
    ) -> None:
        self.num_draws = min(num_draws, num_eligible)
        self.num_eligible = num_eligible
        self._expected_E: NDArray[np.float64] | None = None
        self._end_E: NDArray[np.float64] | None = None
        """Where each item ends when they lie side by side."""
        if frequency_E is not None and self.num_draws < num_eligible and frequency_E.sum() > 0.0:
            share_E = (1.0 - uniform_share) * frequency_E / frequency_E.sum() + uniform_share / num_eligible
            self._expected_E = _at_most_once(share_E, self.num_draws)
            self._end_E = np.cumsum(self._expected_E)

    def draw(self, draw: np.random.Generator) -> Drawn:
        """The items of one step, in time that depends on ``num_draws`` (and the logarithm of E) alone."""
        point_N = np.arange(self.num_draws) + draw.random(self.num_draws)
        if self._end_E is None:
            column_N = (point_N * (self.num_eligible / max(1, self.num_draws))).astype(np.int64)
        else:
            column_N = np.searchsorted(self._end_E, point_N, side="right")
        column_N = np.minimum(column_N, self.num_eligible - 1)  # rounding may carry the last point over the end
        column_N, count_N = np.unique(column_N, return_counts=True)
        even = self.num_draws / max(1, self.num_eligible)
        expected_N = even if self._expected_E is None else self._expected_E[column_N]
        return Drawn(column_N, np.log(count_N / expected_N).astype(np.float32))


class Frequencies:
    """How often each row of the table was a target; a target fades with every later one. Alike on every rank."""

    def __init__(self, half_life_targets: float) -> None:
        self.half_life_targets = half_life_targets
        self.count_V = np.zeros(0)

    def observe(self, slot_T: NDArray[np.int64], num_slots: int) -> None:
        """Count the targets of an increment, all ranks' in rank order; earlier ones fade by as many."""
        grown_V = np.zeros(max(num_slots, len(self.count_V)))
        grown_V[: len(self.count_V)] = self.count_V * 0.5 ** (len(slot_T) / self.half_life_targets)
        self.count_V = grown_V + np.bincount(slot_T, minlength=len(grown_V))

    def reset(self, slot_R: NDArray[np.int64]) -> None:
        """These rows belong to other items from now on; some may not have been counted yet."""
        self.count_V[slot_R[slot_R < len(self.count_V)]] = 0.0


def _at_most_once(share_E: NDArray[np.float64], num_draws: int) -> NDArray[np.float64]:
    """Expected counts in proportion to the shares, but none above one: a second draw of an item teaches nothing."""
    expected_E = share_E * num_draws
    for _ in range(_ROUNDS):
        is_full_E = expected_E >= 1.0
        rest = expected_E[~is_full_E].sum()
        wanted = num_draws - is_full_E.sum()
        if wanted <= 0 or rest * (1.0 + 1e-9) >= wanted:
            break
        expected_E = np.where(is_full_E, 1.0, expected_E * (wanted / rest))
    expected_E = np.minimum(expected_E, 1.0)
    scaled_E: NDArray[np.float64] = expected_E * (num_draws / expected_E.sum())
    return scaled_E
