"""Raw item ids, their numbers, and which of them hold a row of the item table.

A number names one item for ever: history, replay, inputs and counters hold numbers. Only rows of the table (slots) are
reused: ``settle`` decides, once an increment and by event time alone, which items hold one. An item without a row is
not answered, and is passed over where it stands in a context.
Shape legend: I items (by number), N events, E eligible items, V rows of the table ever in use.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.attributes import Listing
from headrace.catalogue.eligible import NEVER, Eligible
from headrace.catalogue.slots import NONE, Slots
from headrace.config.feed import CatalogueConfig
from headrace.records import ItemRows

_CHUNK = 65536  # ids in one part: they only grow at the end, so all parts but the last stay as they are


class Catalogue:
    """All items of one state. Numbers follow first appearance, so ranks that see the same ids number them alike."""

    def __init__(self, attributes: Sequence[str] = ()) -> None:
        self._ids: list[Any] = []
        self._number_of: dict[Any, int] = {}
        self.first_ts_I = np.zeros(0, dtype=np.int64)
        """Event time of an item's first trained event, ms; ``NEVER`` before it."""
        self.last_ts_I = np.zeros(0, dtype=np.int64)
        self.count_I = np.zeros(0, dtype=np.int64)
        """Trained events of each item."""
        self.listing = Listing(attributes)
        """What the side feed has said of them."""
        self._slots = Slots.empty()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def slot_I(self) -> NDArray[np.int64]:
        """The row of the item table of each number; -1: it has none."""
        return self._slots.slot_I

    @property
    def number_V(self) -> NDArray[np.int64]:
        """The number that holds each row of the item table; -1: nobody does."""
        return self._slots.number_V

    @property
    def num_slots(self) -> int:
        """Rows of the item table that are or were in use."""
        return len(self._slots.number_V)

    def admit(self, raw_I: NDArray[Any]) -> int:
        """Give the unknown ids among these the next numbers, in this order. How many there were."""
        before = len(self._ids)
        for raw in raw_I.tolist():
            if raw not in self._number_of:
                self._number_of[raw] = len(self._ids)
                self._ids.append(raw)
        added = len(self._ids) - before
        if added:
            never = np.full(added, NEVER, dtype=np.int64)
            self.first_ts_I = np.concatenate([self.first_ts_I, never])
            self.last_ts_I = np.concatenate([self.last_ts_I, never])
            self.count_I = np.concatenate([self.count_I, np.zeros(added, dtype=np.int64)])
            self._slots = self._slots.grown(len(self._ids))
            self.listing.grow(len(self._ids))
        return added

    def numbers(self, raw_N: NDArray[Any]) -> NDArray[np.int64]:
        """The number of each raw id; -1 for unknown ones."""
        find = self._number_of.get
        return np.fromiter((find(raw, -1) for raw in raw_N.tolist()), dtype=np.int64, count=len(raw_N))

    def raw_ids(self, number_K: NDArray[np.integer]) -> list[Any]:
        """The raw ids (int or str) of these numbers."""
        return [self._ids[number] for number in number_K.tolist()]

    def observe(self, number_N: NDArray[np.int64], ts_N: NDArray[np.int64]) -> None:
        """Note trained events; the order of the calls does not matter."""
        np.maximum.at(self.last_ts_I, number_N, ts_N)
        first_I = np.full(len(self), np.iinfo(np.int64).max)
        np.minimum.at(first_I, number_N, ts_N)
        seen_I = self.first_ts_I != NEVER
        self.first_ts_I = np.where(seen_I, np.minimum(self.first_ts_I, first_I), first_I)
        self.first_ts_I[self.first_ts_I == np.iinfo(np.int64).max] = NEVER
        np.add.at(self.count_I, number_N, 1)

    def tell(self, rows: ItemRows) -> None:
        """Take over what the side feed says; it may name items that nobody has touched."""
        self.admit(rows.item_N)
        self.listing.apply(self.numbers(rows.item_N), rows)

    def settle(self, watermark_ms: int, config: CatalogueConfig) -> None:
        """Once an increment's events are noted: the items that are of use get or keep a row, all others lose theirs."""
        wanted_I = ((self.count_I >= config.min_events) | self.listing.listed_I) & ~self.listing.retired_I
        if config.forget_s is not None:
            wanted_I &= self._sign_I >= watermark_ms - config.forget_s * 1000
        if config.max_items is not None:
            wanted_I = self._least_idle(wanted_I, config.max_items)
        self._slots = self._slots.assigned(wanted_I)

    def eligible(self, watermark_ms: int, alive_s: int | None) -> Eligible:
        """The items that hold a row, are not retired, and gave a sign of life within ``alive_s`` of the watermark."""
        oldest = NEVER + 1 if alive_s is None else watermark_ms - alive_s * 1000
        eligible_I = (self._sign_I >= oldest) & (self.slot_I != NONE) & ~self.listing.retired_I
        return Eligible(np.flatnonzero(eligible_I).astype(np.int64))

    def touched(self, eligible: Eligible) -> Eligible:
        """Those of the eligible items that a trained event has named: a softmax can only push the others down."""
        touched_E = self.last_ts_I[eligible.number_E] != NEVER
        return eligible if touched_E.all() else Eligible(eligible.number_E[touched_E])

    @property
    def _sign_I(self) -> NDArray[np.int64]:
        """The last sign of life of each item: an event, or a row of the side feed."""
        return np.maximum(self.last_ts_I, self.listing.ts_I)

    def _least_idle(self, wanted_I: NDArray[np.bool_], max_items: int) -> NDArray[np.bool_]:
        """At most ``max_items`` of the wanted items: those met last; of equals those with a row, then lower numbers."""
        number_K = np.flatnonzero(wanted_I)
        order_K = np.lexsort((number_K, self.slot_I[number_K] == NONE, -self._sign_I[number_K]))
        kept_I = np.zeros_like(wanted_I)
        kept_I[number_K[order_K[:max_items]]] = True
        return kept_I

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Named parts: the ids in chunks, one part with what changes, and who holds which row."""
        parts: dict[str, dict[str, NDArray[Any]]] = {
            "items": {"first_ts": self.first_ts_I, "last_ts": self.last_ts_I, "count": self.count_I},
            "slots": {"number": self.number_V},
        }
        for start in range(0, len(self._ids), _CHUNK):
            chunk = self._ids[start : start + _CHUNK]
            dtype: Any = object if isinstance(chunk[0], str) else np.int64
            parts[f"ids/{start // _CHUNK:05d}"] = {"id": np.array(chunk, dtype=dtype)}
        return parts | self.listing.state()

    @classmethod
    def from_state(cls, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> "Catalogue":
        """The catalogue whose ``state`` this was."""
        catalogue = cls()
        for name in sorted(parts):
            if name.startswith("ids/"):
                catalogue._ids.extend(parts[name]["id"].tolist())
        catalogue._number_of = {raw: number for number, raw in enumerate(catalogue._ids)}
        catalogue.first_ts_I = parts["items"]["first_ts"].copy()
        catalogue.last_ts_I = parts["items"]["last_ts"].copy()
        catalogue.count_I = parts["items"]["count"].copy()
        catalogue.listing = Listing.from_state(parts, len(catalogue))
        catalogue._slots = Slots(parts["slots"]["number"].copy(), len(catalogue))
        return catalogue
