"""Which column is what, with the reason in words: by name first, then by type, cardinality and rhythm.

Every role is scored alike: words of the name that speak for it, words that speak against it (``product_category`` is
not a product), and whether its values could play the part. What is named on the command line is never guessed.
Shape legend: N rows of the sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.onboard.columns import Column, Unit, is_text, to_ms
from headrace.onboard.words import count, listing, share

_NAMES: dict[str, tuple[str, ...]] = {
    "ts": ("timestamp", "time", "ts", "datetime", "when", "date", "created", "at", "dat", "day", "clock", "stamp"),
    "item_id": (
        *("item", "product", "article", "movie", "video", "track", "song", "sku", "asin", "isbn", "book", "listing"),
        *(
            "content",
            "photo",
            "news",
            "doc",
            "document",
            "offer",
            "material",
            "hotel",
            "recipe",
            "game",
            "app",
            "goods",
        ),
        *("stock", "stockcode", "business", "poi", "venue", "location", "place", "artist", "post", "page", "url"),
        *("ad", "job", "course", "show", "episode", "podcast", "aid", "iid", "pid", "anime", "property", "clip"),
    ),
    "session_id": (
        *("session", "sess", "visit", "basket", "order", "invoice", "cart", "trip", "transaction", "sid", "playlist"),
        *("receipt", "ticket", "trans"),
    ),
    "user_id": (
        *("user", "visitor", "customer", "client", "household", "member", "account", "reviewer", "person", "buyer"),
        *("reader", "viewer", "listener", "uid", "cookie", "anonymous", "profile", "subscriber", "device", "shopper"),
        *("owner", "author", "player", "cust", "consumer", "fullvisitor"),
    ),
    "event": ("event", "action", "behavior", "behaviour", "kind", "activity", "interaction", "type", "feedback"),
    "event_id": ("event", "message", "record", "row", "log", "uuid", "guid", "interaction", "hit"),
}
_TAILS = {"", "id", "ids", "key", "no", "num", "nr", "code", "number", "uuid", "guid", "hash", "sk", "idx", "index"}
_ATTRIBUTES = {
    *("category", "cat", "categories", "type", "price", "brand", "title", "name", "count", "quantity", "qty", "store"),
    *("rating", "age", "gender", "city", "country", "region", "status", "description", "language", "department"),
    *("rank", "position", "score", "agent", "group", "genre", "class", "level", "duration", "length", "os", "lat"),
    *("lon", "channel", "amount", "value", "size", "color", "colour", "step", "referrer", "zip", "currency", "seller"),
    *("merchant", "manufacturer", "family", "subcategory", "section", "tab", "segment"),
}
_KINDS = {
    *("view", "click", "purchase", "buy", "cart", "like", "impression", "pv", "fav", "favorite", "play", "transaction"),
    *("addtocart", "order", "orders", "carts", "clicks", "views", "share", "save", "rate", "skip", "read", "watch"),
}
PASSIVE = ("impression", "impressed", "expos", "shown", "show", "skip", "dislike", "remove", "hide", "search", "scroll")
"""Words in a kind that say that the person did not choose the item: context, never predicted."""


@dataclass(frozen=True)
class Guess:
    """Which column plays which part. Made by ``guess``, read by everything that comes after."""

    item_id: str
    ts: str
    unit: Unit
    session_id: str | None
    user_id: str | None
    event: str | None
    event_id: str | None
    reasons: tuple[tuple[str, str, str], ...]
    """(part, column, why), in words."""

    @property
    def named(self) -> dict[str, str]:
        """Role to column, for the parts that are played."""
        roles = ("item_id", "ts", "session_id", "user_id", "event", "event_id")
        return {role: name for role in roles if (name := getattr(self, role)) is not None}


def guess(columns: Sequence[Column], pinned: Mapping[str, str | None]) -> Guess:
    """Give the columns of a sample their parts; DataError, naming what is there, where an item or a time is missing.

    ``pinned``: role to column (None: there is none) as the command line says.
    """
    free = {column.name: column for column in columns}
    found = _said(pinned, free)
    why = dict.fromkeys(found, "as you said")
    if "ts" not in found:
        found["ts"], why["ts"] = _time(list(free.values()))
    time = found["ts"]
    if time is None or time.unit is None:
        raise DataError(f"no column can be the time{_there(columns)}; name it with columns.ts=NAME")
    free.pop(time.name, None)
    for role in ("item_id", "session_id", "user_id"):
        if role not in found:
            found[role], why[role] = _named(role, list(free.values()))
            if (taken := found[role]) is not None:
                del free[taken.name]
    _fill_by_rhythm(found, why, free, time, pinned)
    _refuse_missing(found, columns)
    for role, find in (("event", _kind), ("event_id", _event_id)):
        if role not in found:
            found[role], why[role] = find(list(free.values()))
            if (taken := found[role]) is not None:
                del free[taken.name]
    return _result(found, why)


def _said(pinned: Mapping[str, str | None], free: dict[str, Column]) -> dict[str, Column | None]:
    """The parts that the command line gives, whose columns are then no longer free."""
    found: dict[str, Column | None] = {}
    for role, name in pinned.items():
        if name is not None and name not in free:
            raise DataError(f"columns.{role}={name}: no such column among {listing(list(free), 20)}")
        found[role] = free.pop(name) if name is not None else None
    return found


def _refuse_missing(found: Mapping[str, Column | None], columns: Sequence[Column]) -> None:
    if found["item_id"] is None:
        raise DataError(f"no column can be the item{_there(columns)}; name it with columns.item_id=NAME")
    if found["session_id"] is None and found["user_id"] is None:
        raise DataError(
            f"no column says whose events these are{_there(columns)}; name it with columns.user_id=NAME or "
            "columns.session_id=NAME"
        )


def is_passive(kind: str) -> bool:
    """Whether a kind of event is something that happened to the person rather than a choice."""
    return any(word in kind.lower() for word in PASSIVE)


def _result(found: Mapping[str, Column | None], why: Mapping[str, str]) -> Guess:
    labels = {"item_id": "item", "ts": "time", "session_id": "session", "user_id": "user"}
    labels |= {"event": "kind of event", "event_id": "id of the event"}
    name = {role: None if column is None else column.name for role, column in found.items()}
    item, time = found["item_id"], found["ts"]
    assert item is not None
    assert time is not None
    assert time.unit is not None
    return Guess(
        item_id=item.name,
        ts=time.name,
        unit=time.unit,
        session_id=name["session_id"],
        user_id=name["user_id"],
        event=name["event"],
        event_id=name["event_id"],
        reasons=tuple((labels[role], name[role] or "-", why[role]) for role in labels),
    )


def _there(columns: Sequence[Column]) -> str:
    told = [f"{c.name} ({'all null' if c.num_distinct == 0 else c.type})" for c in columns]
    return f" among {listing(told, 20)}" if told else ": the files have no columns"


def _name_score(column: Column, role: str) -> int:
    """4: the name says so and says id; 3: it says so; 1: it mentions it; below 0: it is an attribute of it."""
    words, joined = set(column.words), column.joined
    best = 0
    for word in _NAMES[role]:
        if word in words or (joined.startswith(word) and joined[len(word) :] in _TAILS):
            says_id = bool(words & {"id", "key", "no", "code"}) or (joined != word and joined.endswith("id"))
            best = max(best, 4 if says_id else 3)
        elif len(word) > 3 and word in joined:
            best = max(best, 1)
    against = _ATTRIBUTES - {"type", "name"} if role == "event" else _ATTRIBUTES
    return best - 3 * len(words & against)


def _time(columns: Sequence[Column]) -> tuple[Column | None, str]:
    def points(column: Column) -> float:
        named = _name_score(column, "ts")
        kind = {"time": 5.0, "text": 3.0, "order": -3.0}.get(column.unit or "", 1.0)
        sounds_like_id = "id" in column.words or column.joined.endswith("id")
        order = [place for place, word in enumerate(_NAMES["ts"]) if word in column.words]
        return named + kind + column.rising - 6 * sounds_like_id - 0.01 * min(order, default=len(_NAMES["ts"]))

    able = [c for c in columns if c.unit is not None and c.null_share <= 0.5]
    best = max(able, key=points, default=None)
    if best is None or points(best) < 1.5:
        return None, ""
    assert best.unit is not None
    told = {
        "time": f"its type is {best.type}",
        "text": "its text reads as dates",
        "order": "its name; small integers, taken as seconds, so spans of time mean little",
    }
    unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}.get(best.unit, "")
    return best, told.get(best.unit, f"its numbers are {unit} since 1970")


def _named(role: str, columns: Sequence[Column]) -> tuple[Column | None, str]:
    """The column whose name speaks most for an id's part, if its values could play it."""
    able = [c for c in columns if c.is_id and _can(role, c)]
    best = max(able, key=lambda c: (_name_score(c, role), -len(c.name)), default=None)
    if best is None or _name_score(best, role) < 2:
        return None, "no column's name says so"
    return best, f"its name; {count(best.num_distinct)} distinct in the first {count(best.num_rows)} rows"


def _can(role: str, column: Column) -> bool:
    present = column.num_rows * (1 - column.null_share)
    if role == "session_id":  # one row each is an event's id; missing in many rows, it tells of some events only
        return column.null_share <= 0.05 and 1 < column.num_distinct <= 0.9 * present
    if role == "user_id":
        return column.null_share <= 0.9 and column.num_distinct > 1
    return column.null_share <= 0.5 and column.num_distinct > 1


def _fill_by_rhythm(
    found: dict[str, Column | None],
    why: dict[str, str],
    free: dict[str, Column],
    time: Column,
    pinned: Mapping[str, str | None],
) -> None:
    """Where names do not help: people come in bursts, items do not; of what is left, the item has most values."""
    able = [
        c
        for c in free.values()
        if c.is_id and not set(c.words) & _ATTRIBUTES and _can("session_id", c) and c.num_distinct >= 3
    ]
    if not found["session_id"] and not found["user_id"] and "user_id" not in pinned:
        needed = 1 if found["item_id"] else 2
        if len(able) >= needed:
            owner = min(able, key=lambda c: _rhythm(c, time))
            found["user_id"], why["user_id"] = owner, "a guess: its rows come in bursts, as people do"
            able.remove(owner)
            del free[owner.name]
    if found["item_id"] is None and able:
        item = max(able, key=lambda c: c.num_distinct)
        found["item_id"] = item
        why["item_id"] = f"a guess: of what is left it has the most values, {count(item.num_distinct)}"
        del free[item.name]


def _rhythm(column: Column, time: Column) -> float:
    """Median over mean gap between rows of one value: 0.7 where they come at random, near 0 in bursts."""
    assert time.unit is not None
    there = pc.and_(pc.is_valid(column.values), pc.is_valid(time.values))
    code_N = column.values.filter(there).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    ts_N: NDArray[np.int64] = to_ms(time.values.filter(there), time.unit, time.name).to_numpy()
    order_N = np.lexsort((ts_N, code_N))
    same_N = np.diff(code_N[order_N]) == 0
    gap_N = np.diff(ts_N[order_N])[same_N]
    return float(np.median(gap_N) / max(1.0, gap_N.mean())) if len(gap_N) else 1.0


def _kind(columns: Sequence[Column]) -> tuple[Column | None, str]:
    able = [c for c in columns if c.is_id and 0 < c.num_distinct <= 30 and c.null_share <= 0.5]
    known = [c for c in able if is_text(c.values.type) and _kinds_of(c) & _KINDS]
    if known:
        best = max(known, key=lambda c: _name_score(c, "event"))
        return best, f"its values: {listing(sorted(_kinds_of(best)), 6)}"
    best_named = max(able, key=lambda c: _name_score(c, "event"), default=None)
    if best_named is None or _name_score(best_named, "event") < 3:
        return None, "no column says; all events count alike"
    return best_named, f"its name; {count(best_named.num_distinct)} kinds"


def _kinds_of(column: Column) -> set[str]:
    return {str(value).lower() for value in pc.unique(column.values.drop_null()).to_pylist()}


def _event_id(columns: Sequence[Column]) -> tuple[Column | None, str]:
    for column in columns:
        unique = column.num_distinct >= 0.999 * column.num_rows and column.null_share == 0
        if column.is_id and unique and (_name_score(column, "event_id") >= 3 or column.joined == "id"):
            return column, f"its name, and {share(column.num_distinct / column.num_rows)} of its values are distinct"
    return None, "no column; an event is known by its file and row"


def schema_key(schema: pa.Schema) -> tuple[str, ...]:
    """What files must have in common to be one log: their columns' names."""
    return tuple(sorted(schema.names))
