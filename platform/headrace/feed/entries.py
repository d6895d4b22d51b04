"""The records of the ledger, each one small JSON object, and their codec.

Every record also says how many cuts the ledger holds up to and with it (``cuts``), so that a reader finds a cut by
bisection and never reads the whole ledger to begin in its middle.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from headrace.errors import StoreError
from headrace.records import Cut, ItemsFile, Rollback, RowRange, Window
from headrace.store.store import PartRef


@dataclass(frozen=True)
class Open:
    """A new epoch begins. Made by ``LedgerWriter.open``; every older epoch's record beyond ``after`` is void."""

    number: int
    epoch: int
    after: int
    """Number of the last valid record before this one."""


@dataclass(frozen=True)
class Dropped:
    """Rows of a shard that cannot be used, while the others can. Made by feed/facts.py as part of a shard's record."""

    rows: tuple[int, ...] = ()
    """Their row numbers in the file, ascending."""
    reasons: tuple[tuple[str, int], ...] = ()
    """(reason in words, rows)."""
    first: tuple[str, ...] = ()
    """The first of them, to show."""


@dataclass(frozen=True)
class Shard:
    """A file of events and its facts. Made by feed/keeper.py; read by feed/rows.py and the driver."""

    number: int
    uri: str
    sha256: str
    size_bytes: int
    num_rows: int
    """Rows of the file, dropped ones included."""
    first_ts: int
    """Earliest event time, milliseconds; 0 in an empty shard."""
    last_ts: int
    group_rows: tuple[int, ...]
    """Rows of each key group, without the dropped ones."""
    types: tuple[tuple[str, str], ...]
    """(column, type) of the item column and of the carried ones; later shards must agree."""
    duplicate_of: int | None
    """Number of the shard whose content this one repeats: its rows train nothing."""
    facts: PartRef
    """The part that holds the distinct item ids by first row."""
    dropped: Dropped = Dropped()


@dataclass(frozen=True)
class Quarantine:
    """A file that is set aside whole, and why. Made by feed/keeper.py; read by the driver's report."""

    number: int
    uri: str
    sha256: str
    size_bytes: int
    num_rows: int
    """0 where the count is unknown."""
    reason: str
    first: tuple[str, ...] = ()
    """The first rows, or the first that cannot be used, to show; empty where the file cannot be read."""
    items: bool = False
    """Whether it is one of the side feed, and no shard."""


@dataclass(frozen=True)
class Release:
    """Something set aside goes back into the stream. Made by feed/keeper.py, where a person has asked for it."""

    number: int
    of: int
    """Number of the record that is released: of a file that was set aside, or of a cut that was rejected."""
    uri: str
    """The file that is to be looked at again; "" where it is a cut."""
    ranges: tuple[RowRange, ...]
    """The cut's rows, which now wait again."""
    num_rows: int
    """Rows that are no longer set aside."""
    items: bool = False
    """Whether the file is one of the side feed."""


@dataclass(frozen=True)
class GoBack:
    """An earlier version is served again. Made by feed/keeper.py, where a person has asked for it."""

    number: int
    rollback: Rollback


@dataclass(frozen=True)
class Stop:
    """Nothing follows in this epoch: every rank ends after the newest cut. Made by the driver; a resume skips it."""

    number: int
    epoch: int


Entry = Open | Shard | Quarantine | Release | GoBack | Cut | Stop


def encode(entry: Entry, cuts: int) -> bytes:
    """The record as JSON; ``cuts`` counts the ledger's cuts up to and with it."""
    match entry:
        case Cut() | Release():
            fields = asdict(entry) | {"ranges": [astuple(part) for part in entry.ranges]}
        case _:
            fields = asdict(entry)
    return json.dumps({"kind": type(entry).__name__.lower(), "cuts": cuts, **fields}, separators=(",", ":")).encode()


def decode(content: bytes) -> tuple[Entry, int]:
    """The record that ``encode`` wrote, and its count of cuts; StoreError when it is not one."""
    try:
        fields: dict[str, Any] = json.loads(content)
        kind, cuts = fields.pop("kind"), int(fields.pop("cuts"))
        return _build(kind, fields), cuts
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"a ledger record is damaged ({content[:60]!r}): restore it from a copy") from error


def _build(kind: str, fields: dict[str, Any]) -> Entry:
    match kind:
        case "open":
            return Open(**fields)
        case "shard":
            lists = {"group_rows": tuple(fields["group_rows"]), "types": tuple((a, b) for a, b in fields["types"])}
            dropped = _dropped(**fields.pop("dropped", {}))
            return Shard(**fields | lists | {"facts": PartRef(**fields["facts"]), "dropped": dropped})
        case "quarantine":
            return Quarantine(**fields | {"first": tuple(fields.get("first", ()))})
        case "release":
            return Release(**fields | {"ranges": _ranges(fields["ranges"])})
        case "cut":
            items = tuple(ItemsFile(**file) for file in fields.get("items", ()))
            rollback = Rollback(**back) if (back := fields.get("rollback")) else None
            window = Window(**window) if (window := fields.get("window")) else None
            lists = {"ranges": _ranges(fields["ranges"]), "items": items}
            return Cut(**fields | lists | {"rollback": rollback, "window": window})
        case "goback":
            return GoBack(**fields | {"rollback": Rollback(**fields["rollback"])})
        case "stop":
            return Stop(**fields)
    raise KeyError(kind)


def _ranges(listed: list[list[Any]]) -> tuple[RowRange, ...]:
    return tuple(RowRange(*part) for part in listed)


def _dropped(rows: Sequence[int] = (), reasons: Sequence[list[Any]] = (), first: Sequence[str] = ()) -> Dropped:
    return Dropped(tuple(rows), tuple((reason, num_rows) for reason, num_rows in reasons), tuple(first))
