"""What to expect of an item's row before anything was learned about the item: from those that are like it.

An additive model of rows over attributes: the mean of all, and for each value of each attribute what its items have in
common beside it, shrunk towards nothing where they are few; fitted by turns (backfitting), on sums by value, so that a
turn costs no more than there are pairs of values. Without attributes it is the mean. Sums run in float64 in one order,
so that all ranks find the same. Imports no torch.
Shape legend: D items to learn from, R rows wanted, A attributes, W width, C values of an attribute, K pairs of values.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SWEEPS = 4
_SHRINK = 1.0
"""Items' worth of nothing that every value of an attribute begins with."""


def estimate(
    row_DW: NDArray[np.float32], weight_D: NDArray[np.float64], code_DA: NDArray[np.int32], code_RA: NDArray[np.int32]
) -> NDArray[np.float32]:
    """The rows ``(R, W)`` to expect of items with the attributes ``code_RA`` (-1: unknown); D must not be empty.

    ``weight_D``: how far each item to learn from has itself been learned.
    """
    weighted_DW = row_DW * weight_D[:, None]
    mean_W = weighted_DW.sum(axis=0) / weight_D.sum()
    weighted_DW -= weight_D[:, None] * mean_W
    places = range(code_DA.shape[1])
    sizes = np.maximum(code_DA.max(axis=0, initial=-1), code_RA.max(axis=0, initial=-1)) + 2  # the last: unknown
    total_CW = [_sums(code_DA[:, place], weighted_DW, sizes[place]) for place in places]
    weight_C = [np.bincount(code_DA[:, place] % sizes[place], weight_D, sizes[place]) for place in places]
    pairs = {
        (one, other): _pairs(code_DA[:, one], code_DA[:, other], weight_D)
        for one in places
        for other in places
        if one != other
    }
    effect_CW = [np.zeros_like(total) for total in total_CW]
    for _ in range(_SWEEPS):
        for one in places:
            rest_CW = total_CW[one].copy()
            for other in places:
                if other != one:
                    pairs[one, other].subtract(effect_CW[other], rest_CW)
            effect_CW[one] = rest_CW / (weight_C[one] + _SHRINK)[:, None]
            effect_CW[one][-1] = 0.0
    found_RW = np.broadcast_to(mean_W, (len(code_RA), len(mean_W))).copy()
    for place in places:
        found_RW += effect_CW[place][code_RA[:, place]]
    return found_RW.astype(np.float32)


@dataclass(frozen=True)
class _Pairs:
    """The values of two attributes that meet in some item, sorted by the first one's, and how much they weigh."""

    one_K: NDArray[np.int64]
    other_K: NDArray[np.int64]
    weight_K: NDArray[np.float64]

    def subtract(self, effect_CW: NDArray[np.float64], rest_CW: NDArray[np.float64]) -> None:
        """Take the other attribute's effects out of the first one's sums, in place."""
        if len(self.one_K):
            value_U, first_U = np.unique(self.one_K, return_index=True)
            rest_CW[value_U] -= np.add.reduceat(effect_CW[self.other_K] * self.weight_K[:, None], first_U, axis=0)


def _pairs(one_D: NDArray[np.int32], other_D: NDArray[np.int32], weight_D: NDArray[np.float64]) -> _Pairs:
    both_D = np.flatnonzero((one_D >= 0) & (other_D >= 0))
    key_D = one_D[both_D].astype(np.int64) << 32 | other_D[both_D]
    key_K, pair_D = np.unique(key_D, return_inverse=True)
    weight_K = np.asarray(np.bincount(pair_D, weight_D[both_D], len(key_K)), dtype=np.float64)
    return _Pairs(key_K >> 32, key_K & 0xFFFFFFFF, weight_K)


def _sums(code_D: NDArray[np.int32], value_DW: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Sums by code ``(C, W)``; unknown ones count nowhere."""
    total_CW = np.zeros((size, value_DW.shape[1]))
    order_D = np.argsort(code_D, kind="stable")
    order_D = order_D[np.searchsorted(code_D[order_D], 0) :]
    if len(order_D):
        code_U, first_U = np.unique(code_D[order_D], return_index=True)
        total_CW[code_U] = np.add.reduceat(value_DW[order_D], first_U, axis=0)
    return total_CW
