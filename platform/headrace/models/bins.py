"""Rows of tokens joined into sequences of one width ("bins"), so that next to nothing of a step is padding.

Which rows share a bin follows from their sizes alone: the largest first, each into the first bin that has room. Bins
are as wide as the fullest row, or wider where that costs less: what is padding is computed for nothing, and a token
compares itself with all places of its bin.
Shape legend: B rows, S sizes that occur, W widths tried, G bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_WIDTHS = 17
"""Tried, from that of the fullest row to twice that."""
_BESIDE = 256
"""What a place costs beside its comparisons, in comparisons: more of it fills bins better, and makes them wider."""


@dataclass(frozen=True)
class Bins:
    """Where rows lie. Made by ``join``."""

    bin_B: Ints
    at_B: Ints
    """The first place of each row in its bin."""
    number: int
    width: int

    @property
    def places(self) -> int:
        """Of all bins."""
        return self.number * self.width


def join(size_B: Ints) -> Bins:
    """Rows of so many tokens in bins; those of one bin lie in their order. One without tokens takes a place, too."""
    size_B = np.maximum(size_B, 1)
    size_S, count_S = (of_S[::-1] for of_S in np.unique(size_B, return_counts=True))
    width_W = size_S.max(initial=1) * (_WIDTHS - 1 + np.arange(_WIDTHS)) // (_WIDTHS - 1)
    taken_SWG, free_WG = _first_fit(size_S, count_S, width_W)
    fill_WG = width_W[:, None] - free_WG
    number_W, fill_W = (fill_WG > 0).sum(axis=1), fill_WG.max(axis=1, initial=1)
    best = int(np.argmin(number_W * fill_W * (fill_W + _BESIDE)))
    taken_SG = taken_SWG[:, best]
    bin_B = np.empty_like(size_B)
    bin_B[np.argsort(-size_B, kind="stable")] = np.repeat(
        np.tile(np.arange(taken_SG.shape[1]), len(size_S)), taken_SG.ravel()
    )
    order_B = np.argsort(bin_B, kind="stable")
    end_B, sorted_B = np.cumsum(size_B[order_B]), bin_B[order_B]
    at_B = np.empty_like(size_B)
    begin_B = end_B - size_B[order_B]
    at_B[order_B] = begin_B - begin_B[np.searchsorted(sorted_B, sorted_B)]
    return Bins(bin_B, at_B, int(number_W[best]), int(fill_W[best]))


def _first_fit(size_S: Ints, count_S: Ints, width_W: Ints) -> tuple[Ints, Ints]:
    """How many rows of each size each bin takes, by the bins' width, and what is free then; sizes descend."""
    # of bins filled one after the other, at most one is not more than half full
    num_bins = min(int(count_S.sum()), int(2 * (size_S * count_S).sum() // width_W[0]) + 1)
    free_WG = np.repeat(width_W[:, None], num_bins, axis=1)
    taken_SWG = np.empty((len(size_S), *free_WG.shape), dtype=np.int64)
    for taken_WG, size, count in zip(taken_SWG, size_S.tolist(), count_S.tolist(), strict=True):
        room_WG = free_WG // size
        before_WG = np.cumsum(room_WG, axis=1) - room_WG
        np.minimum(np.maximum(count - before_WG, 0), room_WG, out=taken_WG)
        free_WG -= taken_WG * size
    return taken_SWG, free_WG
