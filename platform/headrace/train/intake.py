"""Step 1 of an increment: what each row of the cut is, and what it is seen against.

Every row gets one fate, so that the conservation law can be kept row by row. Rows that stay are merged with their
owners' past into one sorted log, from which queries, examples and counts are all made. Where the cut has a window,
rows that it does not pick are asked, counted and remembered like the others, and wait to be trained.
Shape legend: N rows of this rank, P past rows, Q queries.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.ids import Catalogue
from headrace.config.recipe import Recipe
from headrace.feed.window import picked_N
from headrace.history.segments import Columns, SegmentLog
from headrace.inputs.contexts import EventLog
from headrace.inputs.sessions import derive_sessions
from headrace.inputs.told import Codes, tell
from headrace.records import Rows, Window, hash64_array
from headrace.train.times import ANY_TIME, Times


class Fate(IntEnum):
    """What becomes of a row; each name is a term of the conservation law."""

    TRAINED = 0
    HELD_OUT = 1
    DUPLICATE = 2
    CAPPED = 3
    LATE_SET_ASIDE = 4
    QUARANTINED = 5
    DEFERRED = 6


@dataclass(frozen=True)
class Intake:
    """One rank's rows of a cut, as numbers, with their past. Made by ``take``, read by the rest of the increment."""

    rows: Rows
    fate_N: NDArray[np.int8]
    number_N: NDArray[np.int64]
    """Item numbers."""
    owner_N: NDArray[np.uint64]
    """Hash of the user, else of the session."""
    session_N: NDArray[np.uint64]
    told_N: Codes
    """What a model is told of the row beside its item and its time (inputs/told.py)."""
    key_N: NDArray[np.uint64]
    """What the row's context is gathered by, and ``log`` is sorted by: the session, or the owner."""
    log: EventLog
    """Kept rows and their owners' past."""
    begun_N: NDArray[np.bool_]
    """Whether the row's session has a strictly earlier event, here or in the past."""
    opened_N: NDArray[np.bool_]
    """Whether the row's session had events before this cut."""
    num_clamped: int
    """Rows whose time lay too far ahead; ``rows`` has the time that was set instead."""

    @property
    def trained_N(self) -> NDArray[np.bool_]:
        """Rows that the model learns from, as target or as context."""
        return np.asarray(self.fate_N == Fate.TRAINED)

    @property
    def learned_N(self) -> NDArray[np.bool_]:
        """Rows that are asked and counted, whether the model learns from them now or later."""
        return np.isin(self.fate_N, (Fate.TRAINED, Fate.DEFERRED))

    @property
    def kept_N(self) -> NDArray[np.bool_]:
        """Rows that enter history."""
        return _kept_N(self.fate_N)

    def counts(self) -> dict[str, int]:
        """Rows by fate."""
        return {fate.name.lower(): int((self.fate_N == fate).sum()) for fate in Fate}


def take(
    rows: Rows,
    catalogue: Catalogue,
    history: SegmentLog,
    seen: SegmentLog | None,
    recipe: Recipe,
    times: Times = ANY_TIME,
    window: Window | None = None,
) -> Intake:
    """Name every row's fate and merge the rows that stay with their past; changes nothing."""
    owner_N = owners(rows)
    late_N, ahead_N = times.late_N(rows), times.ahead_N(rows)
    num_clamped = 0
    if recipe.feed.ahead == "clamp" and ahead_N.any():
        num_clamped = int(ahead_N.sum())
        rows = replace(rows, ts_N=np.where(ahead_N, times.present_ms, rows.ts_N))
        ahead_N = np.zeros_like(ahead_N)
    fate_N = _fates(rows, owner_N, ~(late_N | ahead_N), seen, recipe)
    fate_N[late_N] = Fate.LATE_SET_ASIDE
    fate_N[ahead_N] = Fate.QUARANTINED
    if window is not None:
        fate_N[(fate_N == Fate.TRAINED) & ~picked_N(window, rows.user_N, rows.session_N)] = Fate.DEFERRED
    past = history.find(np.unique(owner_N[_kept_N(fate_N)]))
    return against(rows, fate_N, past, catalogue, recipe, num_clamped)


def against(
    rows: Rows, fate_N: NDArray[np.int8], past: Columns, catalogue: Catalogue, recipe: Recipe, num_clamped: int = 0
) -> Intake:
    """Rows whose fates are known, merged with ``past``: rows of their owners as ``SegmentLog.find`` gives them."""
    owner_N, kept_N = owners(rows), _kept_N(fate_N)
    num_past = len(past["key"])
    session_N = rows.session_N.copy()
    if (rows.session_N == 0).any():
        all_owner = np.concatenate([past["key"], owner_N[kept_N]])
        all_ts = np.concatenate([past["ts"], rows.ts_N[kept_N]])
        all_session = np.concatenate([past["session"], rows.session_N[kept_N]])
        derived = derive_sessions(all_owner, all_ts, all_session, recipe.feed.session_gap_s)
        session_N[kept_N] = derived[num_past:]
    number_N = catalogue.numbers(rows.item_N)
    key_N = session_N if recipe.inputs.context == "session" else owner_N
    past_key = past["session"] if recipe.inputs.context == "session" else past["key"]
    about_items = catalogue.listing.told(recipe.model.attributes, number_N)
    told_N = tell(rows.kind_N, {**rows.context, **about_items}, recipe.model.told)
    log = _merge(past_key, past, key_N, rows.ts_N, told_N, number_N, kept_N)
    begun_N, opened_N = _session_state(past["session"], past["ts"], session_N, rows.ts_N, kept_N)
    return Intake(rows, fate_N, number_N, owner_N, session_N, told_N, key_N, log, begun_N, opened_N, num_clamped)


def owners(rows: Rows) -> NDArray[np.uint64]:
    """Hash of each row's user, else of its session."""
    return np.where(rows.user_N != 0, rows.user_N, rows.session_N)


def held_out(owner_N: NDArray[np.uint64], recipe: Recipe) -> NDArray[np.bool_]:
    """Whose rows are never trained."""
    draw_N = hash64_array(owner_N, recipe.seed, "held out").astype(np.float64) / 2.0**64
    return np.asarray(draw_N < recipe.evaluation.eval_share)


def _kept_N(fate_N: NDArray[np.int8]) -> NDArray[np.bool_]:
    return np.isin(fate_N, (Fate.TRAINED, Fate.DEFERRED, Fate.HELD_OUT))


def _fates(
    rows: Rows, owner_N: NDArray[np.uint64], believed_N: NDArray[np.bool_], seen: SegmentLog | None, recipe: Recipe
) -> NDArray[np.int8]:
    """The fates of rows whose time is believed; the others neither repeat an event nor count against their user."""
    fate_N = np.full(len(rows), Fate.TRAINED, dtype=np.int8)
    fate_N[held_out(owner_N, recipe)] = Fate.HELD_OUT
    new_N = believed_N.copy()
    if seen is not None:
        horizon_ms = recipe.feed.duplicate_horizon_s * 1000
        new_N[believed_N] = _first_arrivals(rows.event_N[believed_N], rows.ts_N[believed_N], seen, horizon_ms)
    order_N = np.argsort(np.where(new_N, owner_N, 0), kind="stable")
    grouped = np.where(new_N, owner_N, 0)[order_N]
    place_N = np.empty(len(rows), dtype=np.int64)
    place_N[order_N] = np.arange(len(rows)) - np.searchsorted(grouped, grouped, side="left")
    fate_N[place_N >= recipe.feed.max_events_per_user] = Fate.CAPPED
    fate_N[~new_N] = Fate.DUPLICATE
    return fate_N


def _first_arrivals(
    event_N: NDArray[np.uint64], ts_N: NDArray[np.int64], seen: SegmentLog, horizon_ms: int
) -> NDArray[np.bool_]:
    """Rows whose event id has not arrived before, in this cut or within the horizon of event time."""
    unique_U, first_U, inverse_N = np.unique(event_N, return_index=True, return_inverse=True)
    past = seen.find(unique_U)
    newest_U = np.full(len(unique_U), np.iinfo(np.int64).min // 2)
    np.maximum.at(newest_U, np.searchsorted(unique_U, past["key"]), past["ts"])
    first_N = np.zeros(len(event_N), dtype=bool)
    first_N[first_U] = True
    return np.asarray(first_N & (ts_N - newest_U[inverse_N] > horizon_ms))


def _merge(
    past_key: NDArray[np.uint64],
    past: Columns,
    key_N: NDArray[np.uint64],
    ts_N: NDArray[np.int64],
    told_N: Codes,
    number_N: NDArray[np.int64],
    kept_N: NDArray[np.bool_],
) -> EventLog:
    key = np.concatenate([past_key, key_N[kept_N]])
    ts = np.concatenate([past["ts"], ts_N[kept_N]])
    item = np.concatenate([past["item"].astype(np.int64), number_N[kept_N]])
    kind = np.concatenate([past["kind"], told_N[kept_N]])
    order = np.lexsort((ts, key))  # stable: the past comes first, then the ledger's order
    return EventLog(key[order], ts[order], item[order], kind[order])


def _session_state(
    past_session: NDArray[np.uint64],
    past_ts: NDArray[np.int64],
    session_N: NDArray[np.uint64],
    ts_N: NDArray[np.int64],
    kept_N: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each row: has its session a strictly earlier event; had it any before this cut."""
    session = np.concatenate([past_session, session_N[kept_N]])
    unique_S, inverse = np.unique(session, return_inverse=True)
    first_S = np.full(len(unique_S), np.iinfo(np.int64).max)
    np.minimum.at(first_S, inverse, np.concatenate([past_ts, ts_N[kept_N]]))
    past_S = np.zeros(len(unique_S), dtype=bool)
    past_S[inverse[: len(past_session)]] = True
    begun_N, opened_N = np.zeros(len(ts_N), dtype=bool), np.zeros(len(ts_N), dtype=bool)
    place = inverse[len(past_session) :]
    begun_N[kept_N] = first_S[place] < ts_N[kept_N]
    opened_N[kept_N] = past_S[place]
    return begun_N, opened_N
