"""The records of the ledger, each one small JSON object, and their codec.

Every record also says how many cuts the ledger holds up to and with it (``cuts``), so that a reader finds a cut by
bisection and never reads the whole ledger to begin in its middle.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from headrace.errors import StoreError
from headrace.records import Cut, RowRange
from headrace.store.store import PartRef


@dataclass(frozen=True)
class Open:
    """A new epoch begins. Made by ``LedgerWriter.open``; every older epoch's record beyond ``after`` is void."""

    number: int
    epoch: int
    after: int
    """Number of the last valid record before this one."""


@dataclass(frozen=True)
class Shard:
    """A file of events and its facts. Made by feed/keeper.py; read by feed/rows.py and the driver."""

    number: int
    uri: str
    sha256: str
    size_bytes: int
    num_rows: int
    first_ts: int
    """Earliest event time, milliseconds; 0 in an empty shard."""
    last_ts: int
    group_rows: tuple[int, ...]
    """Rows of each key group."""
    types: tuple[tuple[str, str], ...]
    """(column, type) of the item column and of the carried ones; later shards must agree."""
    duplicate_of: int | None
    """Number of the shard whose content this one repeats: its rows train nothing."""
    facts: PartRef
    """The part that holds the distinct item ids by first row."""


@dataclass(frozen=True)
class Quarantine:
    """A file that is set aside unread, and why. Made by feed/keeper.py; read by the driver's report."""

    number: int
    uri: str
    sha256: str
    size_bytes: int
    num_rows: int
    """0 where the count is unknown."""
    reason: str


@dataclass(frozen=True)
class Stop:
    """Nothing follows in this epoch: every rank ends after the newest cut. Made by the driver; a resume skips it."""

    number: int
    epoch: int


Entry = Open | Shard | Quarantine | Cut | Stop


def encode(entry: Entry, cuts: int) -> bytes:
    """The record as JSON; ``cuts`` counts the ledger's cuts up to and with it."""
    match entry:
        case Cut():
            fields = asdict(entry) | {"ranges": [[part.shard, part.start, part.stop] for part in entry.ranges]}
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
            return Shard(**fields | lists | {"facts": PartRef(**fields["facts"])})
        case "quarantine":
            return Quarantine(**fields)
        case "cut":
            return Cut(**fields | {"ranges": tuple(RowRange(*part) for part in fields["ranges"])})
        case "stop":
            return Stop(**fields)
    raise KeyError(kind)
