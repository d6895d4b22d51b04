"""How much of a study is left: a guess in minutes, from what its cycles have taken so far in this process."""

from collections.abc import Collection, Sequence

from headrace.bench.study.results import Study
from headrace.bench.study.variants import WINDOW_PERIODS, Variant
from headrace.clock import monotonic_s

_Cell = tuple[str, int, int]


class Progress:
    """Counts down. ``chosen``: methods with their seeds; ``wanted``: the cycles that are asked for."""

    def __init__(self, study: Study, chosen: Sequence[Variant], wanted: Collection[int]) -> None:
        self._weight: dict[_Cell, float] = {}
        for variant in chosen:
            cells = study.cells(variant)
            cycles = wanted if variant.reference == "joint" else range(1, max(wanted) + 1)
            for cycle in cycles:
                if not cells.has(cycle):
                    self._weight[_cell(variant, cycle)] = _weight(variant, cycle)
        self._num_all = len(self._weight)
        self._spent_s, self._spent_weight = 0.0, 0.0
        self._since_s = monotonic_s()

    def done(self, variant: Variant, cycle: int) -> str:
        """This cycle is tested; how many of all are, and about how long the others will take, in words."""
        now_s = monotonic_s()
        self._spent_s += now_s - self._since_s
        self._since_s = now_s
        self._spent_weight += self._weight.pop(_cell(variant, cycle), 0.0)
        left_s = sum(self._weight.values()) * self._spent_s / max(self._spent_weight, 1e-9)
        count = f"{self._num_all - len(self._weight)}/{self._num_all}"
        return f"{count}, {_duration(left_s)} left" if self._weight else count


def _cell(variant: Variant, cycle: int) -> _Cell:
    return variant.name, variant.recipe.seed, cycle


def _weight(variant: Variant, cycle: int) -> float:
    """About how long a cycle takes, in tests: a test takes as long as the training of one period, more or less."""
    train = variant.recipe.train
    warmup = train.warmup_epochs / max(train.epochs, 1)
    match variant.reference:
        case "joint":
            return 1.0 + warmup * cycle
        case "frozen":
            return 1.0 + (warmup if cycle == 1 else 0.0)
        case "joint_warm":
            return 1.0 + (warmup if cycle == 1 else cycle)
        case "window":
            return 1.0 + (warmup if cycle == 1 else min(cycle, WINDOW_PERIODS))
        case _:
            return 1.0 + (warmup if cycle == 1 else 1.0)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
