"""Arithmetic behind the page's curves: a running mean with its noise, fewer points than increments, round ticks.

Shape legend: C increments (commits), K those that are kept to be drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEAST_WINDOW = 5  # increments that a running mean is taken over, in a short run
_WINDOWS = 12  # that a long run is divided into
_DENSE = 200  # high over low up to which a logarithmic axis has ticks between powers of ten


@dataclass(frozen=True)
class Curve:
    """A mean and how far off it may be, by increment; NaN where there is nothing."""

    mean_C: Floats
    half_C: Floats
    """Half the width of the 95 % band; NaN where a single value cannot tell."""


def floats(series: Sequence[float | None]) -> Floats:
    """NaN for None."""
    return np.array([math.nan if value is None else value for value in series], dtype=np.float64)


def window_of(num_increments: int) -> int:
    """How many increments a running mean is taken over: odd, so that it has a middle."""
    return max(_LEAST_WINDOW, num_increments // _WINDOWS) | 1


def running_mean(value_C: Floats, window: int) -> Curve:
    """Of the values around each increment, from the first one to the last; the band is 1.96 standard errors of it.

    The errors are those of independent increments.
    """
    known_C = np.isfinite(value_C)
    if not known_C.any():
        return Curve(np.full(len(value_C), np.nan), np.full(len(value_C), np.nan))
    middle = float(value_C[known_C].mean())  # taken off first: squares of small differences keep their digits
    off_C = np.where(known_C, value_C - middle, 0.0)
    num_C, sum_C, squares_C = (_window_sum(terms, window) for terms in (known_C.astype(float), off_C, off_C**2))
    first, last = np.flatnonzero(known_C)[[0, -1]]
    inside_C = (np.arange(len(value_C)) >= first) & (np.arange(len(value_C)) <= last)
    mean_C = np.where(inside_C & (num_C > 0), sum_C / np.maximum(num_C, 1), np.nan)
    variance_C = np.maximum(squares_C - sum_C**2 / np.maximum(num_C, 1), 0) / np.maximum(num_C - 1, 1)
    half_C = np.where(num_C > 1, 1.96 * np.sqrt(variance_C / np.maximum(num_C, 1)), np.nan)
    return Curve(mean_C + middle, half_C)


def mean_difference(ours_C: Floats, theirs_C: Floats) -> list[float] | None:
    """Mean over the increments that have both, and half its 95 % band; None for fewer than two of them."""
    both_C = (ours_C - theirs_C)[np.isfinite(ours_C - theirs_C)]
    if len(both_C) < 2:
        return None
    return [float(both_C.mean()), float(1.96 * both_C.std(ddof=1) / math.sqrt(len(both_C)))]


def kept(num_increments: int, most: int) -> NDArray[np.int64]:
    """Evenly spaced increments, first and last among them, at most so many."""
    return np.unique(np.linspace(0, num_increments - 1, min(num_increments, most)).round().astype(np.int64))


def spread(value_C: Floats, most: int) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """Neighbours taken together, so that at most so many are left: the middle one; least, median and greatest value."""
    groups = np.array_split(np.arange(len(value_C)), min(len(value_C), most)) if len(value_C) else []
    rows = []
    for group in groups:
        known = value_C[group][np.isfinite(value_C[group])]
        rows.append((known.min(), np.median(known), known.max()) if len(known) else (np.nan, np.nan, np.nan))
    least_K, median_K, most_K = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return np.array([group[len(group) // 2] for group in groups], dtype=np.int64), least_K, median_K, most_K


def stretches(known_K: NDArray[np.bool_]) -> list[slice]:
    """Where it is true without a pause."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], known_K, [False])).astype(np.int8)))
    return [slice(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, the first not above ``low`` and the last not below ``high``."""
    span = max(high - low, 1e-9)
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The same for a logarithmic axis: powers of ten, and 2 and 5 times them where there are few."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    factors = (1, 2, 5) if high < _DENSE * low else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    below, above = [tick for tick in ticks if tick <= low], [tick for tick in ticks if tick >= high]
    return [tick for tick in ticks if below[-1] <= tick <= above[0]]


def _window_sum(term_C: Floats, window: int) -> Floats:
    reached = np.append(0.0, np.cumsum(term_C))
    index_C = np.arange(len(term_C))
    half = window // 2
    return np.asarray(reached[np.minimum(index_C + half + 1, len(term_C))] - reached[np.maximum(index_C - half, 0)])
