"""Herding: which examples of an item stand best for all of them (iCaRL, arXiv 1611.07725; ADER, arXiv 2007.12000).

One after the other, that example is taken with which the mean of those taken comes nearest to the mean of all. So any
first few of the order have nearly the mean of all. Pure numpy.
Shape legend: S examples, D width, G examples of one item.
"""

import numpy as np
from numpy.typing import NDArray

MOST = 200
"""Places of an item that are told apart; all later ones come together."""


def herding_order(item_S: NDArray[np.integer], direction_SD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each example's place (0, 1, ..) among those of its item; ``direction_SD`` are its encodings, of length 1."""
    order_S = np.full(len(item_S), MOST, dtype=np.float32)
    sorted_S = np.argsort(item_S, kind="stable")
    bounds = np.flatnonzero(np.diff(item_S[sorted_S])) + 1
    for member_G in np.split(sorted_S, bounds) if len(item_S) else ():
        chosen = _herd(direction_SD[member_G], min(len(member_G), MOST))
        order_S[member_G[chosen]] = np.arange(len(chosen))
    return order_S


def _herd(direction_GD: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """The first ``most`` in their order; of equal ones the first given."""
    x_GD = direction_GD.astype(np.float64)
    mean_D = x_GD.mean(axis=0)
    owed_D, is_free_G = mean_D.copy(), np.ones(len(x_GD), dtype=np.bool_)
    chosen = np.empty(most, dtype=np.int64)
    for place in range(most):
        best = int(np.argmax(np.where(is_free_G, x_GD @ owed_D, -np.inf)))
        chosen[place], is_free_G[best] = best, False
        owed_D += mean_D - x_GD[best]  # what the sum of those taken lacks to so many times the mean
    return chosen
