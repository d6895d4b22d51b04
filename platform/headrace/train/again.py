"""What an increment is due to train: the rows of its cut that the window picks, and those of earlier cuts beside them.

Rows that are read again become an intake like the cut's own, so that examples are made of both by the same rule: a
row's context is what its owner did strictly before it. The rows of an owner in the window, old and new, are context for
one another; beneath the oldest of them comes what history keeps from before it. They are trained and nothing else:
neither asked, nor counted, nor remembered again. A row that was deferred passes to the trained ones when its turn
trains it first. Without a window all of this is the cut's own intake.
Shape legend: N rows of this rank, A of them read again, P past rows, S sequences, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.feed.window import picked_before_N
from headrace.history.segments import Columns
from headrace.inputs.examples import Examples
from headrace.records import Again, Cut, CutRows, Rows, Window
from headrace.train.deferrals import Noted
from headrace.train.group import Group
from headrace.train.intake import Fate, Intake, against, held_out, owners
from headrace.train.state import LearnerState


@dataclass(frozen=True)
class Due:
    """What is trained. Made by ``due`` before anything changes, read by train/increment.py."""

    own: Intake
    """The cut's rows: asked, counted and remembered."""
    intake: Intake
    """What examples are made of."""
    first_N: NDArray[np.bool_]
    """Which of its rows no increment has trained before."""
    noted: Noted = field(default_factory=Noted)
    """Rows of the cut that must not be read again as they stand; of all ranks, as are the numbers below."""
    at_last: Mapping[int, int] = field(default_factory=dict)
    """By earlier cut: rows of it that waited until now."""
    num_again: int = 0
    """Rows of earlier cuts that are trained, those included."""

    def first_time(self, made: Examples) -> Examples:
        """The targets that are trained for the first time, with their contexts: what replay has not kept yet."""
        if self.first_N.all():
            return made
        rows = self.intake.rows
        reach = 1 + int(rows.row_N.max(initial=0))
        name_F = (rows.shard_N * reach + rows.row_N)[self.first_N]
        is_first_T = np.isin(made.shard_T * reach + made.row_T, name_F)
        return made.targets(np.flatnonzero(is_first_T))

    def facts(self, window: Window | None, is_trained: bool) -> dict[str, Any] | None:
        """Plain JSON for the commit; None where the cut has no window."""
        if window is None:
            return None
        again, at_last = (self.num_again, sum(self.at_last.values())) if is_trained else (0, 0)
        return {"first_cut": window.first, "again": again, "at_last": at_last}


def due(part: CutRows, own: Intake, state: LearnerState, group: Group) -> Due:
    """What this increment trains; changes nothing. Every rank calls it."""
    window = part.cut.window
    if window is None or part.again is None:
        return Due(own, own, np.ones(len(own.rows), dtype=bool))
    kept, is_first_A = _kept(part.again, window, state)
    is_due_A = is_first_A | (kept.rows.ts_N >= window.since_ms)
    own_N = np.flatnonzero(own.trained_N)
    rows = _join(kept.rows, _take(own.rows, own_N))
    fate_N = np.full(len(rows), Fate.TRAINED, dtype=np.int8)
    fate_N[: len(is_due_A)][~is_due_A] = Fate.HELD_OUT  # context for the others
    intake = against(rows, fate_N, _before(rows, state), state.catalogue, state.recipe)
    first_N = np.concatenate([is_first_A, np.ones(len(own_N), dtype=bool)])
    waited_A = np.bincount(kept.cut_N[is_first_A] - window.first, minlength=window.turn - window.first)
    parts = group.gather(
        {
            **_noted(part, own).arrays,
            "waited": waited_A.astype(np.int64),
            "again": np.array([is_due_A.sum()], dtype=np.int64),
        }
    )
    waited = dict(enumerate(np.sum([rank["waited"] for rank in parts], axis=0).tolist(), start=window.first))
    waiting = state.deferrals.waiting  # and no more than that: a recipe that holds out fewer has rows that never waited
    at_last = {cut: min(count, waiting[cut]) for cut, count in waited.items() if count and cut in waiting}
    return Due(own, intake, first_N, Noted.join(parts), at_last, sum(int(rank["again"][0]) for rank in parts))


def settle(trained: Due, cut: Cut, num_deferred: int, state: LearnerState) -> None:
    """After an increment that stays: so many of its rows wait, and those of earlier cuts that no longer do are trained.

    What passes from one term of the conservation law to another passes here.
    """
    num_at_last = sum(trained.at_last.values())
    state.rows["deferred"] -= num_at_last
    state.rows["trained"] += num_at_last
    state.deferrals = state.deferrals.accepted(cut, num_deferred, trained.at_last, trained.noted)


def _kept(again: Again, window: Window, state: LearnerState) -> tuple[Again, NDArray[np.bool_]]:
    """The rows that may be trained, with the times that they have, and which of them never were."""
    keep_N, ts_N = state.deferrals.stand(again)
    keep_N &= ~held_out(owners(again.rows), state.recipe)
    index_A = np.flatnonzero(keep_N)
    rows, cut_A = replace(_take(again.rows, index_A), ts_N=ts_N[index_A]), again.cut_N[index_A]
    before_A = picked_before_N(window, rows.user_N, rows.session_N, cut_A, state.deferrals.rejected)
    return Again(rows, cut_A), ~before_A


def _before(rows: Rows, state: LearnerState) -> Columns:
    """What history keeps of the rows' owners from before the oldest of each."""
    owner_N = owners(rows)
    owner_U, place_N = np.unique(owner_N, return_inverse=True)
    oldest_U = np.full(len(owner_U), np.iinfo(np.int64).max)
    np.minimum.at(oldest_U, place_N, rows.ts_N)
    past = state.history.find(owner_U)
    earlier_P = past["ts"] < oldest_U[np.searchsorted(owner_U, past["key"])]
    return {name: column[earlier_P] for name, column in past.items()}


def _noted(part: CutRows, own: Intake) -> Noted:
    """Rows of the cut that were set aside, or given another time than is in the file."""
    aside_N = ~own.kept_N
    noted_M = np.flatnonzero(aside_N | (own.rows.ts_N != part.rows.ts_N))
    rows = own.rows
    return Noted.of(part.cut.number, rows.shard_N[noted_M], rows.row_N[noted_M], rows.ts_N[noted_M], aside_N[noted_M])


def _columns(rows: Rows) -> dict[str, NDArray[Any]]:
    return {name: column for name, column in rows.__dict__.items() if name != "context"}


def _take(rows: Rows, index_A: NDArray[np.int64]) -> Rows:
    taken: dict[str, Any] = {name: column[index_A] for name, column in _columns(rows).items()}
    return Rows(**taken, context={name: column[index_A] for name, column in rows.context.items()})


def _join(first: Rows, second: Rows) -> Rows:
    others = _columns(second)
    joined: dict[str, Any] = {name: np.concatenate([column, others[name]]) for name, column in _columns(first).items()}
    carried = dict.fromkeys([*first.context, *second.context])  # in order; a shard need not have them all
    return Rows(
        **joined, context={name: np.concatenate([_carried(rows, name) for rows in (first, second)]) for name in carried}
    )


def _carried(rows: Rows, name: str) -> NDArray[Any]:
    """A column that the log carries; None where these rows came without."""
    return rows.context[name] if name in rows.context else np.full(len(rows), None, dtype=object)
