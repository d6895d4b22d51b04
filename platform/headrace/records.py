"""Frozen records that cross rooms and processes, and the one seeded 64-bit hash.

Python's own ``hash`` is salted per process; everything random or partitioned in Headrace is drawn from ``hash64``.
Shape legend: N rows of a cut, I distinct item ids of a cut.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_GROUPS = 64
"""Rows are partitioned by hash(user, else session) modulo this; a rank owns the groups g with g mod world = rank."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    """One round of splitmix64 over a 64-bit integer."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _word(part: int | str) -> int:
    """A part of a key as a 64-bit integer; strings through blake2b."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
    return part & _MASK


def hash64(*parts: int | str) -> int:
    """Hash a key of integers and strings to 64 bits; equal in every process, on every machine."""
    state = 0
    for part in parts:
        state = _mix(state ^ _word(part))
    return state


def hash64_array(values_N: NDArray[Any], *prefix: int | str) -> NDArray[np.uint64]:
    """Hash each value as ``hash64(*prefix, value)`` would, vectorised for integers; strings are hashed one by one."""
    state = np.uint64(hash64(*prefix))
    if values_N.dtype.kind in "iu":
        words_N = values_N.astype(np.uint64)
    else:
        values = values_N.tolist()  # numpy's own strings would lose trailing NULs, and pad all to the longest
        words = {value: _word(str(value)) for value in dict.fromkeys(values)}
        words_N = np.fromiter((words[value] for value in values), dtype=np.uint64, count=len(values))
    with np.errstate(over="ignore"):
        x_N = (words_N ^ state) + np.uint64(_GOLDEN)
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x_N ^ (x_N >> np.uint64(31)), dtype=np.uint64)


def generator(*parts: int | str) -> np.random.Generator:
    """A generator of its own for one purpose: (seed, purpose, increment, step, rank). Its state is never saved."""
    return np.random.default_rng(hash64(*parts))


@dataclass(frozen=True)
class RowRange:
    """Rows ``start`` to ``stop`` of one shard. Made by feed/ledger.py, read by feed/rows.py."""

    shard: int
    """Number of the shard's record in the ledger."""
    start: int
    stop: int
    num_dropped: int = 0
    """Rows between them that are in the file, but cannot be used."""
    released: bool = False
    """Whether a person has put these rows back, so that their age is no reason to set them aside."""

    @property
    def num_rows(self) -> int:
        """Rows that a cut of this range takes."""
        return self.stop - self.start - self.num_dropped


@dataclass(frozen=True)
class ItemsFile:
    """A file of the side feed, as a cut names it. Made and read by feed/items.py."""

    uri: str
    sha256: str
    num_rows: int


@dataclass(frozen=True)
class Rollback:
    """A person has rolled back: an earlier version is served again, and the learner goes back to it at the next cut.

    Made by feed/ledger.py; the next cut carries it to every rank, and commits hold it.
    """

    request: int
    """Number of the person's request (commit/rollbacks.py)."""
    to: int
    """The version that is served again."""
    cut: int
    """The commit that published it."""
    version: int
    """The number under which it is served from now on: higher than any that a cut up to now can publish."""


@dataclass(frozen=True)
class Window:
    """Whose rows an increment trains, and how far back. Made by feed/window.py; every cut of such a recipe carries one.

    Of the cut itself, the rows that are picked; before them, as ``again``, those of the cuts from ``first`` on.
    """

    kind: str
    """Of the recipe's ``feed.window``, whose figures follow."""
    turn: int
    """The cut's number: whose turn it is, or what is drawn."""
    first: int
    """The oldest cut whose row ranges are read again; ``turn`` where there is none."""
    since_ms: int
    """Event time at which the window begins. Rows from before it are trained only if they never were."""
    span_s: int
    buckets: int = 1
    share: float = 1.0
    of: str = "user"


@dataclass(frozen=True)
class Cut:
    """What one increment takes. Made by feed/ledger.py before it is trained; read by every rank."""

    number: int
    """0 is the warm-up; also the number of the increment and of its commit."""
    ranges: tuple[RowRange, ...]
    num_rows: int
    events_in: int
    """Rows of every shard recorded in the ledger up to this cut, duplicates included."""
    duplicate: int
    """Rows of shards, recorded up to this cut, whose content had landed before under another name."""
    quarantined: int
    """Rows of shards, recorded up to this cut, that were set aside (0 where the count is unknown) or dropped."""
    pending: int
    """Rows recorded up to this cut that no cut has taken yet, or that were put back and not taken again."""
    record: int
    """Number of this record in the ledger."""
    released: int = 0
    """Rows of rejected cuts that were put back up to this cut."""
    items: tuple[ItemsFile, ...] = ()
    """Files of the side feed that are in force from this cut on."""
    rollback: Rollback | None = None
    """What the learner goes back to before it trains; of several the newest."""
    window: Window | None = None
    """Which rows are trained; None: those of the cut."""


@dataclass(frozen=True)
class Rows:
    """One rank's rows of one cut, in ledger order. Made by feed/rows.py, read by train/increment.py."""

    shard_N: NDArray[np.int64]
    row_N: NDArray[np.int64]
    group_N: NDArray[np.uint8]
    user_N: NDArray[np.uint64]
    """Hash of the user; 0 where there is none."""
    session_N: NDArray[np.uint64]
    """Hash of the session; 0 where sessions are derived from a gap of inactivity."""
    item_N: NDArray[Any]
    """Raw ids: int64, or objects holding str."""
    ts_N: NDArray[np.int64]
    """Event time, milliseconds since the epoch."""
    kind_N: NDArray[np.int16]
    """``kind_code`` of the event's kind."""
    target_N: NDArray[np.bool_]
    """Whether the recipe predicts events of this kind."""
    weight_N: NDArray[np.float32]
    event_N: NDArray[np.uint64]
    """Hash of the event id (by default of shard and row)."""
    context: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Optional columns, carried as they came."""

    def __len__(self) -> int:
        return len(self.row_N)


@dataclass(frozen=True)
class ItemRows:
    """Rows of the side feed, in the order of its files. Made by feed/items.py, read by catalogue/."""

    item_N: NDArray[Any]
    """Raw ids: int64, or objects holding str."""
    ts_N: NDArray[np.int64]
    retired_N: NDArray[np.bool_]
    name_N: NDArray[Any]
    """For people; "" where there is none."""
    attributes: Mapping[str, NDArray[Any]]
    """By column: what the item is like, as text; "" where it is unknown."""


@dataclass(frozen=True)
class Again:
    """One rank's rows of earlier cuts that a cut's window picks, in ledger order. Made by feed/rows.py."""

    rows: Rows
    cut_N: NDArray[np.int64]
    """The cut that took each."""


@dataclass(frozen=True)
class CutRows:
    """A cut with the rows of one rank and the ids that every rank must number alike. Made by feed/, read by train/."""

    cut: Cut
    rows: Rows
    item_I: NDArray[Any]
    """The distinct raw item ids of the whole cut (all ranks' rows), by first row in ledger order."""
    told: ItemRows | None = None
    """What the side feed says from this cut on; alike on every rank."""
    again: Again | None = None
    """Rows of the cut's window; None where it has no window."""


def kind_code(kind: str) -> int:
    """A stable small integer for an event's kind."""
    return hash64("kind", kind) & 0x7FFF
