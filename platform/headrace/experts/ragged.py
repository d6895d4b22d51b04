"""Ragged arithmetic that the counters share: a context's recent items, sums by query and item, votes from sums.

Sums run in the order of their entries, so a query's vote is the same to the bit alone and in a batch. Shape legend: Q
queries, T ragged entries, C distinct cells (pairs of row and column), E eligible items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.experts.base import Sparse
from headrace.inputs.contexts import Contexts, offsets, ranges

_FEW = 1000  # keys that are sorted as they are
_ROOM = 16  # a dense table is as quick as sorting up to so many of its cells for each entry


@dataclass(frozen=True)
class Cells:
    """The distinct pairs (row, column) among ragged entries, ascending, and what lies in each."""

    row_C: NDArray[np.int64]
    column_C: NDArray[np.int64]
    total_C: NDArray[np.float64]
    """Sum of the values of a cell's entries, in their order."""
    first_C: NDArray[np.int64]
    """Index of each cell's first entry."""


@dataclass(frozen=True)
class Recent:
    """The newest distinct items of each context, by query, then newest first."""

    query_T: NDArray[np.int64]
    item_T: NDArray[np.int64]
    rank_T: NDArray[np.int64]
    """1: the newest of its context."""


def cells(
    row_T: NDArray[np.int64], column_T: NDArray[np.int64], value_T: NDArray[np.float64], num_columns: int
) -> Cells:
    """Group entries by (row, column); columns lie in [0, ``num_columns``)."""
    cell_T = row_T * np.int64(num_columns) + column_T
    order_T = stable_order(cell_T)
    sorted_T = cell_T[order_T]
    opens_T = np.ones(len(sorted_T), dtype=np.bool_)
    opens_T[1:] = sorted_T[1:] != sorted_T[:-1]
    first_C = order_T[opens_T]
    total_C = np.bincount(np.cumsum(opens_T) - 1, weights=value_T[order_T], minlength=len(first_C))
    return Cells(row_T[first_C], column_T[first_C], total_C.astype(np.float64), first_C)


def stable_order(key_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """What sorts non-negative keys, equal ones in the order given.

    By digits of 16 bits, lowest first: numpy sorts those by radix, several times faster than whole integers.
    """
    if len(key_T) < _FEW:
        return np.argsort(key_T, kind="stable")
    order_T = np.argsort(key_T.astype(np.uint16), kind="stable")
    for shift in range(16, int(key_T.max()).bit_length(), 16):
        order_T = order_T[np.argsort((key_T[order_T] >> shift).astype(np.uint16), kind="stable")]
    return order_T


def spread(start_T: NDArray[np.int64], length_T: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For ragged rows of a flat array: the row that each element belongs to, and where the element lies."""
    return np.repeat(np.arange(len(start_T)), length_T), ranges(start_T, length_T)


def highest(value_T: NDArray[np.floating], most: int) -> NDArray[np.int64]:
    """Ascending places of the ``most`` highest values; of equal ones the later."""
    if len(value_T) <= most:
        return np.arange(len(value_T))
    lowest = np.partition(value_T, len(value_T) - most)[len(value_T) - most]
    keep_T = value_T > lowest
    keep_T[np.flatnonzero(value_T == lowest)[np.count_nonzero(keep_T) - most :]] = True
    return np.flatnonzero(keep_T)


def steps_back(contexts: Contexts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each event of the contexts: its query, and how many events are newer in its context."""
    query_T = np.repeat(np.arange(len(contexts)), contexts.length_Q)
    return query_T, contexts.offset_R[1:][query_T] - 1 - np.arange(len(query_T))


def recent_items(contexts: Contexts, last: int, num_items: int) -> Recent:
    """The ``last`` newest distinct items of each context, without those numbered ``num_items`` or higher."""
    query_T, back_T = steps_back(contexts)
    known_T = np.flatnonzero((contexts.item_T >= 0) & (contexts.item_T < num_items))[::-1]
    query_T, item_T, back_T = query_T[known_T], contexts.item_T[known_T], back_T[known_T]
    newest = cells(query_T, item_T, np.zeros(len(known_T)), num_items).first_C  # reversed: the newest comes first
    query_T, item_T, back_T = query_T[newest], item_T[newest], back_T[newest]
    order = stable_order(query_T * (int(back_T.max(initial=0)) + 1) + back_T)
    query_T, item_T = query_T[order], item_T[order]
    rank_T = 1 + np.arange(len(query_T)) - np.searchsorted(query_T, query_T, side="left")
    keep_T = rank_T <= last
    return Recent(query_T[keep_T], item_T[keep_T], rank_T[keep_T])


class Columns:
    """Where item numbers lie in the eligible set; the set asked last is remembered as a table, which beats a search."""

    def __init__(self) -> None:
        self._memo: tuple[Eligible, NDArray[np.int64]] | None = None

    def of(self, number_T: NDArray[np.int64], eligible: Eligible) -> NDArray[np.int64]:
        """The column of each number (none is negative); -1 for those outside."""
        if self._memo is None or self._memo[0] is not eligible:
            column_I = np.full(2 + int(eligible.number_E.max(initial=-1)), -1, dtype=np.int64)  # the last one stays -1
            column_I[eligible.number_E] = np.arange(len(eligible))
            self._memo = (eligible, column_I)
        return np.take(self._memo[1], number_T, mode="clip")


def vote(
    query_T: NDArray[np.int64],
    column_T: NDArray[np.int64],
    value_T: NDArray[np.float64],
    num_queries: int,
    num_columns: int,
) -> Sparse:
    """Each query's shares of its values, summed by column; -1 is not eligible; a query without values above 0 abstains.

    Rows lie by query and column.
    """
    inside_T = (column_T >= 0) & (value_T > 0.0)
    row_C, column_C, total_C = _sums(query_T[inside_T], column_T[inside_T], value_T[inside_T], num_queries, num_columns)
    sum_Q = np.bincount(row_C, weights=total_C, minlength=num_queries)
    length_Q = np.bincount(row_C, minlength=num_queries).astype(np.int64)
    return Sparse(offsets(length_Q), column_C, (total_C / sum_Q[row_C]).astype(np.float32))


def _sums(
    row_T: NDArray[np.int64], column_T: NDArray[np.int64], value_T: NDArray[np.float64], num_rows: int, num_columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Rows, columns and sums of the cells that hold anything; values are above 0, and summed in their order."""
    if num_rows * num_columns > _ROOM * len(row_T):
        found = cells(row_T, column_T, value_T, num_columns)
        return found.row_C, found.column_C, found.total_C
    cell_T = row_T * num_columns + column_T
    total_X = np.asarray(np.bincount(cell_T, weights=value_T, minlength=num_rows * num_columns), dtype=np.float64)
    cell_C = np.flatnonzero(total_X > 0.0)
    row_C, column_C = np.divmod(cell_C, num_columns)
    return row_C, column_C, total_X[cell_C]
