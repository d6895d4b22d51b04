"""The items that may be answered. Shape legend: E eligible items, T any list of numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEVER = np.iinfo(np.int64).min // 2
"""The time of what has not happened."""


@dataclass(frozen=True)
class Eligible:
    """The items that may be answered: one set for softmax, experts, ranking and serving, made once per commit."""

    number_E: NDArray[np.int64]
    """Ascending item numbers."""

    def __len__(self) -> int:
        return len(self.number_E)

    def column_of(self, number_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """The column of each number among the eligible; -1 for those outside."""
        if not len(self.number_E):
            return np.full(len(number_T), -1, dtype=np.int64)
        column_T = np.minimum(np.searchsorted(self.number_E, number_T), len(self.number_E) - 1)
        return np.where(self.number_E[column_T] == number_T, column_T, -1).astype(np.int64)
