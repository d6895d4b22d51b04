"""How much of a study is left: a guess in minutes, from what its cycles have taken so far in this process."""

from collections.abc import Mapping

from headrace.bench.study.variants import Variant
from headrace.clock import monotonic_s

Cell = tuple[str, int, int]
"""A method's name, a seed, a cycle."""


class Progress:
    """Counts down. ``weights``: about how long each cell that is not done takes, against the others."""

    def __init__(self, weights: Mapping[Cell, float]) -> None:
        self._weight = dict(weights)
        self._num_all = len(weights)
        self._spent_s, self._spent_weight = 0.0, 0.0
        self._since_s = monotonic_s()

    def done(self, variant: Variant, cycle: int) -> str:
        """This cycle is tested; how many of all are, and about how long the others will take, in words."""
        now_s = monotonic_s()
        self._spent_s += now_s - self._since_s
        self._since_s = now_s
        self._spent_weight += self._weight.pop((variant.name, variant.recipe.seed, cycle), 0.0)
        left_s = sum(self._weight.values()) * self._spent_s / max(self._spent_weight, 1e-9)
        count = f"{self._num_all - len(self._weight)}/{self._num_all}"
        return f"{count}, {_duration(left_s)} left" if self._weight else count


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
