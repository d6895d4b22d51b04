"""A drift signal: the model's recall on a cut lies far below what it was on earlier ones.

How far cuts differ is measured, not derived from their number of queries, since queries for one hot item are found or
missed together; the binomial deviation is only its floor. Counts cuts, no clock.
"""

import numpy as np
from numpy.typing import NDArray

_FADE = 0.95
"""What an earlier cut weighs, for each later one."""
_LEAST_CUTS = 5
"""Of past before anything is said."""


class Drift:
    """Mean and deviation of the recall of past cuts, fading; ``state`` is all that it remembers."""

    def __init__(self) -> None:
        self.state: NDArray[np.float64] = np.zeros(3)
        """Cuts' worth of past, their mean, and the sum of squares around it."""

    def deviations(self, recall: float, num_queries: int) -> float:
        """By how many deviations this cut lies below its past; 0 where there is too little of that."""
        count, mean, squares = self.state.tolist()
        if count < _LEAST_CUTS * _FADE**_LEAST_CUTS:  # which so many cuts, faded, exceed and fewer do not
            return 0.0
        floor = max(mean * (1.0 - mean), 1e-6) / max(num_queries, 1)
        return float((mean - recall) / np.sqrt(max(squares / count, floor)))

    def add(self, recall: float) -> None:
        """This cut is past."""
        count, mean, squares = (self.state * [_FADE, 1.0, _FADE]).tolist()
        away = recall - mean
        count += 1.0
        mean += away / count
        self.state = np.array([count, mean, squares + away * (recall - mean)])

    def forget(self) -> None:
        """What is usual is learned anew."""
        self.state = np.zeros(3)
