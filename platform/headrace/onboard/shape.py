"""What a log is like: baskets or sequences, where sessions end, what is predicted, whether items go stale.

Each finding is a value of the recipe and a sentence that says what it rests on.
Shape legend: N rows, I items, S sessions.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.inputs.sessions import derive_sessions
from headrace.onboard.columns import plain
from headrace.onboard.guess import Guess, is_passive
from headrace.onboard.log import Log
from headrace.onboard.words import count, listing, share, span

WARMUP = 0.8
"""Share of the events that the warm-up takes; the rest is scored."""
MIN_EVENTS = 50
RARE_REPEATS = 0.02
"""Below this share, what somebody had before says nothing of what comes next."""
_GAPS_S = (1800, 7200, 86400, 7 * 86400, 30 * 86400, 365 * 86400)
_ALIVE_S = (3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 4 * 86400, 7 * 86400, 14 * 86400, 30 * 86400)
_SLICES_S = (1, 5, 10, 30, 60, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_DAYS = (1, 2, 7, 14, 28, 91, 182, 364)
_MOST_SLICES = 16


@dataclass(frozen=True)
class Shape:
    """What was found. Made by ``shape_of``, read by the recipe's writer."""

    num_items: int
    num_owners: int
    num_sessions: int
    span_s: float
    is_set: bool
    gap_s: int | None
    """Where sessions are derived: the inactivity that ends one."""
    context: str
    """"session" or "user"."""
    repeats: float
    """Share of events on an item that their context had before."""
    alive_s: int | None
    target_kinds: tuple[str, ...]
    """Empty: all."""
    first_slice_s: int
    slice_s: int
    max_owner_events: int
    findings: tuple[str, ...]
    """In words."""


def shape_of(log: Log, guess: Guess) -> Shape:
    """Look at all rows of a log; DataError where it is too small, or its times do not move."""
    if len(log) < MIN_EVENTS:
        raise DataError(f"the log has {count(len(log))} events that can be used: at least {MIN_EVENTS} are needed")
    span_s = float(log.ts_N[-1] - log.ts_N[0]) / 1000
    if span_s <= 0:
        raise DataError(f"every event has the same time in {guess.ts!r}: nothing comes before anything")
    item_N = _codes(log, guess.item_id)
    findings: list[str] = []
    gap_s, is_set, session_N = _sessions(log, guess, findings)
    has_user = guess.user_id is not None
    context = "user" if has_user and (is_set or guess.session_id is None) else "session"
    if is_set and not has_user:
        raise DataError(
            "events of a session share one time, so sessions are baskets; then what somebody bought before is the "
            "context, and no column says who: name it with columns.user_id=NAME"
        )
    repeats = _repeats(item_N, session_N if context == "session" else log.owner_N, context, findings)
    alive_s = _alive(item_N, log.ts_N, findings)
    kinds = _kinds(log, guess, findings)
    split = int(WARMUP * len(log))
    findings.append(_news(item_N, split))
    _, per_owner = np.unique(log.owner_N, return_counts=True)
    return Shape(
        num_items=int(item_N.max()) + 1,
        num_owners=len(per_owner),
        num_sessions=len(np.unique(session_N)),
        span_s=span_s,
        is_set=is_set,
        gap_s=gap_s,
        context=context,
        repeats=repeats,
        alive_s=alive_s,
        target_kinds=kinds,
        first_slice_s=max(1, int(np.ceil((log.ts_N[split] - log.ts_N[0]) / 1000))),
        slice_s=_slice((log.ts_N[-1] - log.ts_N[split]) / 1000),
        max_owner_events=int(per_owner.max()),
        findings=tuple(findings),
    )


def _codes(log: Log, name: str) -> NDArray[np.int64]:
    return np.asarray(plain(log.table[name]).dictionary_encode().indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _sessions(log: Log, guess: Guess, findings: list[str]) -> tuple[int | None, bool, NDArray[Any]]:
    """The gap (None: a column says), whether sessions are sets, and each row's session."""
    if guess.session_id is not None:
        session_N: NDArray[Any] = _codes(log, guess.session_id)
        _, first_S, inverse_N, size_S = np.unique(session_N, return_index=True, return_inverse=True, return_counts=True)
        together_N = log.ts_N == log.ts_N[first_S][inverse_N]
        whole_S = np.bincount(inverse_N, weights=together_N, minlength=len(size_S)) == size_S
        several_S = size_S > 1
        set_share = float(whole_S[several_S].mean()) if several_S.any() else 0.0
        if set_share > 0.5:
            findings.append(
                f"sessions are baskets: in {share(set_share)} of those with several events, all share a time"
            )
        else:
            findings.append(f"sessions are sequences of {size_S.mean():.1f} events on average")
        return None, set_share > 0.5, session_N
    order_N = np.lexsort((log.ts_N, log.owner_N))
    same_N = np.diff(log.owner_N[order_N].view(np.int64)) == 0
    gap_N = np.diff(log.ts_N[order_N])[same_N] / 1000
    if not len(gap_N):
        raise DataError(f"nobody has two events (by {guess.user_id!r}): there is nothing to predict from")
    together = float((gap_N == 0).mean())
    if together > 0.4:
        gap_s, is_set = 1, True
        findings.append(
            f"no session column; {share(together)} of events share their user's time: each time is a basket"
        )
    else:
        apart_N = gap_N[gap_N > 0]
        gap_s, is_set = next((gap for gap in _GAPS_S if (apart_N <= gap).mean() >= 0.3), 10 * 365 * 86400), False
        findings.append(f"no session column: a session ends after {span(gap_s)} without an event of its user")
    owner_N, ts_N = log.owner_N, log.ts_N
    return gap_s, is_set, derive_sessions(owner_N, ts_N, np.zeros(len(log), dtype=np.uint64), gap_s)


def _repeats(item_N: NDArray[np.int64], key_N: NDArray[Any], context: str, findings: list[str]) -> float:
    _, key_code_N = np.unique(key_N, return_inverse=True)
    pair_N = key_code_N.astype(np.int64) * (item_N.max() + 1) + item_N
    again = 1 - len(np.unique(pair_N)) / len(pair_N)
    told = f"{share(again)} of events are on an item that the same {context} had before"
    findings.append(
        f"repeats: {told}" if again >= RARE_REPEATS else f"repeats are rare: {told}; no expert for own items"
    )
    return float(again)


def _alive(item_N: NDArray[np.int64], ts_N: NDArray[np.int64], findings: list[str]) -> int | None:
    """The age at which items are dropped; None where they keep. Looks at items that came up in the log's first half."""
    size = int(item_N.max()) + 1
    first_I = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first_I, item_N, ts_N)
    count_I = np.bincount(item_N, minlength=size)
    begin, end = ts_N[0] + 0.1 * (ts_N[-1] - ts_N[0]), ts_N[0] + 0.6 * (ts_N[-1] - ts_N[0])
    some_I = (first_I > begin) & (first_I < end) & (count_I >= 5)
    if some_I.sum() < 30:
        findings.append("whether items go stale cannot be seen: too few came up within the log; all may be answered")
        return None
    age_N = (ts_N - first_I[item_N])[some_I[item_N]]  # of new items at their events
    rest_N = (ts_N[-1] - first_I[item_N])[some_I[item_N]]  # from their first event to the log's end
    early = float((age_N < rest_N / 4).mean())
    typical_s = float(np.median(age_N)) / 1000
    order_N = np.lexsort((ts_N, item_N))
    same_N = np.diff(item_N[order_N]) == 0
    gap_N = np.diff(ts_N[order_N])[same_N] / 1000
    alive_s = next((alive for alive in _ALIVE_S if (gap_N <= alive).mean() >= 0.99), None)
    if early < 0.6 or alive_s is None or alive_s * 4000 > ts_N[-1] - ts_N[0]:
        findings.append(
            f"items keep: {share(1 - early)} of the events on new ones come after a quarter of the time they could have"
        )
        return None
    findings.append(
        f"items go stale: half of the events on new ones come within {span(typical_s)} of their first; so items are "
        f"answered for {span(alive_s)} after their last event"
    )
    return alive_s


def _kinds(log: Log, guess: Guess, findings: list[str]) -> tuple[str, ...]:
    if guess.event is None:
        return ()
    tally = Counter(str(kind) for kind in plain(log.table[guess.event]).drop_null().to_pylist())
    told = listing([f"{kind} {share(number / len(log))}" for kind, number in tally.most_common()])
    chosen = tuple(kind for kind, _ in tally.most_common() if not is_passive(kind))
    if len(tally) < 2 or not chosen or len(chosen) == len(tally):
        findings.append(f"kinds: {told}; all are predicted" if len(tally) > 1 else f"one kind of event: {told}")
        return ()
    findings.append(f"kinds: {told}; predicted: {listing(chosen)}; the others are context")
    return chosen


def _news(item_N: NDArray[np.int64], split: int) -> str:
    known_I = np.zeros(int(item_N.max()) + 1, dtype=np.bool_)
    known_I[item_N[:split]] = True
    return (
        f"{share(1 - float(known_I[item_N[split:]].mean()))} of the last fifth's events are on items that came up in it"
    )


def _slice(span_s: float) -> int:
    lengths = (*_SLICES_S, *(day * 86400 for day in _DAYS))
    return next((length for length in lengths if span_s / length <= _MOST_SLICES), lengths[-1])
