"""How strong a behaviour a row shows: the highest of a recipe's levels (TBGRecall, arXiv 2508.11977).

A level is a kind of event, or a column that the log carries and that is true (or not 0) on the row.
Shape legend: N rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.records import Rows, kind_code


def level_of(rows: Rows, levels: Sequence[str], carried: Sequence[str]) -> NDArray[np.int8]:
    """The highest level (0, 1, ..) that each row shows; -1: none. ``carried`` are the names that are columns."""
    level_N = np.full(len(rows), -1, dtype=np.int8)
    for level, name in enumerate(levels):
        level_N[shows(rows, name, carried)] = level
    return level_N


def shows(rows: Rows, name: str, carried: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows show this behaviour; none where it is a column that these rows came without."""
    if name not in carried:
        return np.asarray(rows.kind_N == kind_code(name))
    if name not in rows.context:
        return np.zeros(len(rows), dtype=np.bool_)
    return _is_true(rows.context[name])


def _is_true(value_N: NDArray[Any]) -> NDArray[np.bool_]:
    if value_N.dtype.kind in "biuf":
        return np.asarray((value_N != 0) & (value_N == value_N))  # NaN is nothing, and is not true
    true = [str(value).lower() in ("true", "1", "1.0") for value in value_N.tolist()]
    return np.array(true, dtype=np.bool_)
