"""A checkpoint between the passes of one increment: for benchmarks, whose increments take an hour.

Production has none: it begins an increment again from the commit before. Whoever goes on from here has first done all
that comes before the passes, so only what they move is kept; then the increment ends with the same bytes.
"""

import numpy as np

from headrace.models.build import Parts
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.store.store import Store
from headrace.train.early_stop import EarlyStop
from headrace.train.step import TrainStep

_SPLIT = "|"  # between a part's name and an array's
_STEP, _STOP, _PASSES = "step/", "stop/", "passes"


class Checkpoint:
    """An object of a store, replaced whole after every pass. Of a group of one: other ranks would need their own."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.earlier_s = 0.0
        """Seconds that the passes gone on from had taken."""

    def resume(self, step: TrainStep, stop: EarlyStop | None) -> list[float]:
        """Bring both to where ``keep`` left them, and give the losses of the passes so far; none, if there is nothing.

        Runs before the first pass, when all else is as it was before the first pass then.
        """
        if not self._store.exists(self._name):
            return []
        parts: Parts = {}
        for key, array in load_arrays(self._store.get(self._name)).items():
            part, name = key.split(_SPLIT)
            parts.setdefault(part, {})[name] = array
        step.rewind(_under(_STEP, parts))
        if stop is not None:
            stop.load(_under(_STOP, parts))
        self.earlier_s = float(parts[_PASSES]["seconds"][0])
        return [float(loss) for loss in parts[_PASSES]["losses"]]

    def keep(self, step: TrainStep, stop: EarlyStop | None, losses: list[float], seconds: float) -> None:
        """Runs after every pass; ``seconds`` is what those of this process have taken."""
        parts = {f"{_STEP}{name}": part for name, part in step.snapshot().items()}
        if stop is not None:
            parts |= {f"{_STOP}{name}": part for name, part in stop.state().items()}
        parts[_PASSES] = {"losses": np.array(losses), "seconds": np.array([self.earlier_s + seconds])}
        flat = {f"{part}{_SPLIT}{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        self._store.put(self._name, dump_arrays(flat))

    def done(self) -> None:
        """The increment is committed."""
        self._store.delete(self._name)


def _under(prefix: str, parts: Parts) -> Parts:
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}
