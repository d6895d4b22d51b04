"""What to expect of an item's row before anything was learned about the item: from those that are like it.

An additive model of rows over attributes: the mean of all, and for each value of each attribute what its items have in
common beside it, shrunk towards nothing where they are few; fitted by turns (backfitting). Without attributes it is the
mean. Sums run in float64 in one order, so that all ranks find the same. Imports no torch.
Shape legend: D items to learn from, R rows wanted, A attributes, W width, C values of an attribute.
"""

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
    mean_W = weight_D @ row_DW.astype(np.float64) / weight_D.sum()
    num_attributes = code_DA.shape[1]
    sizes = np.maximum(code_DA.max(axis=0, initial=-1), code_RA.max(axis=0, initial=-1)) + 2  # the last: unknown
    effects = [np.zeros((size, row_DW.shape[1])) for size in sizes]
    rest_DW = row_DW - mean_W
    for _ in range(_SWEEPS if num_attributes > 1 else num_attributes):
        for place in range(num_attributes):
            rest_DW += effects[place][code_DA[:, place]]
            _fit(effects[place], rest_DW, weight_D, code_DA[:, place])
            rest_DW -= effects[place][code_DA[:, place]]
    found_RW = np.broadcast_to(mean_W, (len(code_RA), len(mean_W))).copy()
    for place in range(num_attributes):
        found_RW += effects[place][code_RA[:, place]]
    return found_RW.astype(np.float32)


def _fit(
    effect_CW: NDArray[np.float64],
    rest_DW: NDArray[np.float64],
    weight_D: NDArray[np.float64],
    code_D: NDArray[np.int32],
) -> None:
    """Write what the items of each value have in common; the effect of the unknown value, the last, stays zero."""
    order_D = np.argsort(code_D, kind="stable")
    order_D = order_D[np.searchsorted(code_D[order_D], 0) :]
    if not len(order_D):
        return
    value_U, first_U = np.unique(code_D[order_D], return_index=True)
    total_U = np.add.reduceat(weight_D[order_D], first_U)
    weighted_DW = rest_DW[order_D] * weight_D[order_D, None]
    effect_CW[value_U] = np.add.reduceat(weighted_DW, first_U, axis=0) / (total_U + _SHRINK)[:, None]
