"""What a learner remembers of the cuts that its window reaches: which rows wait, and what their files do not say.

A window reads rows again from where they landed. What became of them when their cut was taken is not in the files: that
the gate rejected it, that a row was set aside, that its time was set to the present. The few that this concerns are
kept here, alike on every rank, as long as the window reaches their cut. So are the numbers of rows that no increment
has trained yet, by cut. Rows of a cut that the window has passed stay deferred for good, and are told apart as *left*.
Shape legend: M noted rows, N rows that are read again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.records import Again, Cut

_COLUMNS = ("cut", "shard", "row", "ts")
_SET_ASIDE = -1


@dataclass(frozen=True)
class Noted:
    """Rows that are not to be read again as they stand in their files."""

    arrays: Mapping[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(0, dtype=np.int64) for name in _COLUMNS}
    )
    """cut, shard and row, and ts: the time that a row was given; -1: it was set aside."""

    def __len__(self) -> int:
        return len(self.arrays["cut"])

    @classmethod
    def of(
        cls,
        cut: int,
        shard_M: NDArray[np.int64],
        row_M: NDArray[np.int64],
        ts_M: NDArray[np.int64],
        aside_M: NDArray[np.bool_],
    ) -> "Noted":
        """Rows of one cut, of which ``aside_M`` were set aside, and the others given another time."""
        ts_M = np.where(aside_M, _SET_ASIDE, ts_M)
        return cls({"cut": np.full(len(row_M), cut, dtype=np.int64), "shard": shard_M, "row": row_M, "ts": ts_M})

    @classmethod
    def join(cls, parts: Iterable[Mapping[str, NDArray[Any]]]) -> "Noted":
        """All of these, in order."""
        listed = list(parts)
        return cls({name: np.concatenate([part[name] for part in listed]) for name in _COLUMNS})

    def since(self, first: int) -> "Noted":
        """Those of the cuts from ``first`` on."""
        keep_M = self.arrays["cut"] >= first
        return Noted({name: column[keep_M] for name, column in self.arrays.items()})


@dataclass(frozen=True)
class Deferrals:
    """Part of the learner's state. Changes by ``accepted`` and ``reject``; read by train/again.py and the commit."""

    waiting: Mapping[int, int] = field(default_factory=dict)
    """By cut: rows of it that no increment has trained yet; only cuts that have some."""
    left: int = 0
    """Rows that no increment has trained, of cuts that no window will reach any more."""
    rejected: tuple[int, ...] = ()
    """Cuts that the gate rejected: their rows are not trained, and at their turn nothing was."""
    noted: Noted = field(default_factory=Noted)

    def stand(self, again: Again) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which rows that are read again may be used, and the times that they have."""
        keep_N, ts_N = np.isin(again.cut_N, self.rejected, invert=True), again.rows.ts_N.copy()
        noted = self.noted.arrays
        reach = 1 + max(int(again.rows.row_N.max(initial=0)), int(noted["row"].max(initial=0)))
        name_M = noted["shard"] * reach + noted["row"]
        name_N = again.rows.shard_N * reach + again.rows.row_N
        some_N = np.isin(name_N, name_M)
        order_M = np.argsort(name_M)
        set_N = noted["ts"][order_M[np.searchsorted(name_M, name_N[some_N], sorter=order_M)]]
        keep_N[some_N] &= set_N != _SET_ASIDE
        ts_N[some_N] = set_N
        return keep_N, ts_N

    def accepted(self, cut: Cut, num_deferred: int, at_last: Mapping[int, int], noted: Noted) -> "Deferrals":
        """After an increment that stays: so many of its rows wait, and so many of earlier cuts no longer do."""
        first = cut.number + 1 if cut.window is None else cut.window.first
        waiting = {number: count - at_last.get(number, 0) for number, count in self.waiting.items()}
        waiting[cut.number] = num_deferred
        left = sum(count for number, count in waiting.items() if number < first)
        return Deferrals(
            {number: count for number, count in waiting.items() if number >= first and count},
            self.left + left,
            tuple(number for number in self.rejected if number >= first),
            Noted.join([self.noted.since(first).arrays, noted.arrays]),
        )

    def reject(self, cut: Cut) -> "Deferrals":
        """After an increment that was taken back."""
        return self if cut.window is None else replace(self, rejected=(*self.rejected, cut.number))

    @property
    def num_deferred(self) -> int:
        """Rows that have not been trained, whether they still may be or not."""
        return sum(self.waiting.values()) + self.left

    def state(self) -> dict[str, Any]:
        """Plain JSON for a commit, beside the noted rows."""
        waiting = [[number, count] for number, count in self.waiting.items()]
        return {"waiting": waiting, "left": self.left, "rejected": list(self.rejected)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], noted: Noted) -> "Deferrals":
        """What ``state`` gave."""
        return cls(dict(state["waiting"]), state["left"], tuple(state["rejected"]), noted)
