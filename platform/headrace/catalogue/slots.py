"""Which item holds which row of the item table.

Items hold numbers for ever, and rows for as long as they are of use: a row that its item has lost goes to the next one
that needs a row, the lowest free row first. Shape legend: I items (by number), V rows of the table ever in use.
"""

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""No row; or, of a row, no item."""


class Slots:
    """Items and rows, both ways. Never changes: who holds one keeps what it said."""

    def __init__(self, number_V: NDArray[np.int64], num_items: int) -> None:
        self.number_V = number_V
        """The item of each row; -1: it is free."""
        self.slot_I = np.full(num_items, NONE, dtype=np.int64)
        """The row of each item; -1: it has none."""
        held_R = np.flatnonzero(number_V != NONE)
        self.slot_I[number_V[held_R]] = held_R

    @classmethod
    def empty(cls) -> "Slots":
        """No items, no rows."""
        return cls(np.zeros(0, dtype=np.int64), 0)

    def grown(self, num_items: int) -> "Slots":
        """With room for items up to this many; new ones have no row."""
        return Slots(self.number_V, num_items)

    def assigned(self, wanted_I: NDArray[np.bool_]) -> "Slots":
        """Every wanted item with a row, in the order of numbers, and no other; rows held before stay where they are."""
        number_V = self.number_V.copy()
        held_R = np.flatnonzero(number_V != NONE)
        number_V[held_R[~wanted_I[number_V[held_R]]]] = NONE
        new_K = np.flatnonzero(wanted_I & (self.slot_I == NONE))
        free_R = np.flatnonzero(number_V == NONE)[: len(new_K)]
        number_V[free_R] = new_K[: len(free_R)]
        return Slots(np.append(number_V, new_K[len(free_R) :]), len(wanted_I))
