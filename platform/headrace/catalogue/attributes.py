"""What the side feed has said of items: whether they are for sale, their names for people, and what they are like.

Of several rows about one item the latest ``ts`` counts, and of equal ones the one that came last. A row is in force
from the increment on whose cut names its file, whatever its ``ts``: a shop that retires an item means now.
Shape legend: I items (by number), N rows of the side feed, A attributes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import NEVER
from headrace.config.models import told_attribute
from headrace.records import ItemRows

UNKNOWN = -1
"""The code of an attribute that nobody has told."""
_CHUNK = 65536  # names in one part

Parts = dict[str, dict[str, NDArray[Any]]]


class Listing:
    """The side feed's word on every item of a catalogue, by number. Grows with it."""

    def __init__(self, attributes: Sequence[str] = ()) -> None:
        self.attributes = tuple(attributes)
        self.ts_I = np.full(0, NEVER, dtype=np.int64)
        """Of the latest row about each item, ms; ``NEVER`` where there was none."""
        self.retired_I = np.zeros(0, dtype=np.bool_)
        self.code_IA = np.full((0, len(attributes)), UNKNOWN, dtype=np.int32)
        """What each item is like: codes of each attribute's values."""
        self._codes: tuple[dict[str, int], ...] = tuple({} for _ in attributes)
        self._names: dict[int, str] = {}

    @property
    def listed_I(self) -> NDArray[np.bool_]:
        """Items that the side feed knows."""
        return np.asarray(self.ts_I != NEVER)

    def name(self, number: int) -> str | None:
        """What people call this item; None where nobody has said."""
        return self._names.get(number)

    def values(self, number: int) -> dict[str, str]:
        """What is known of an item, by attribute."""
        return {
            attribute: list(codes)[code]
            for attribute, codes, code in zip(self.attributes, self._codes, self.code_IA[number], strict=True)
            if code != UNKNOWN
        }

    def told(self, attributes: Sequence[str], number_N: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is known of these items (-1: unknown ones), a column of words for each attribute; None: nothing."""
        columns = {}
        for attribute in attributes:
            place = self.attributes.index(attribute)
            words = np.array([*self._codes[place], None], dtype=object)
            code_N = np.full(len(number_N), UNKNOWN)
            code_N[number_N >= 0] = self.code_IA[number_N[number_N >= 0], place]
            columns[told_attribute(attribute)] = words[code_N]
        return columns

    def grow(self, num_items: int) -> None:
        """Make room for items up to this many."""
        more = num_items - len(self.ts_I)
        self.ts_I = np.append(self.ts_I, np.full(more, NEVER, dtype=np.int64))
        self.retired_I = np.append(self.retired_I, np.zeros(more, dtype=np.bool_))
        fresh_IA = np.full((more, len(self.attributes)), UNKNOWN, dtype=np.int32)
        self.code_IA = np.concatenate([self.code_IA, fresh_IA])

    def apply(self, number_N: NDArray[np.int64], rows: ItemRows) -> None:
        """Take over what these rows say of the items ``number_N``; older than what is known, they say nothing."""
        order_N = np.lexsort((rows.ts_N, number_N))
        last_N = np.append(np.diff(number_N[order_N]) != 0, True)[: len(order_N)]
        index_K = order_N[last_N]
        index_K = index_K[rows.ts_N[index_K] >= self.ts_I[number_N[index_K]]]
        number_K = number_N[index_K]
        self.ts_I[number_K] = rows.ts_N[index_K]
        self.retired_I[number_K] = rows.retired_N[index_K]
        for place, attribute in enumerate(self.attributes):
            if attribute in rows.attributes:
                self.code_IA[number_K, place] = self._coded(place, rows.attributes[attribute][index_K])
        for number, name in zip(number_K.tolist(), rows.name_N[index_K].tolist(), strict=True):
            if name:
                self._names[number] = name

    def state(self) -> Parts:
        """Named parts; none before the side feed has said anything."""
        if not self.listed_I.any():
            return {}
        parts: Parts = {"listing": {"ts": self.ts_I, "retired": self.retired_I, "code": self.code_IA}}
        for place, (attribute, codes) in enumerate(zip(self.attributes, self._codes, strict=True)):
            parts[f"attributes/{place:02d}"] = {"name": _text([attribute]), "value": _text(list(codes))}
        for start in range(0, len(self.ts_I), _CHUNK):
            names = [self._names.get(number, "") for number in range(start, min(start + _CHUNK, len(self.ts_I)))]
            parts[f"names/{start // _CHUNK:05d}"] = {"name": _text(names)}
        return parts

    def of(self, attributes: Sequence[str]) -> "Listing":
        """The same with these attributes; what has not been told of one is unknown."""
        if tuple(attributes) == self.attributes:
            return self
        other = Listing(attributes)
        other.ts_I, other.retired_I, other._names = self.ts_I, self.retired_I, self._names
        places = [self.attributes.index(name) if name in self.attributes else None for name in attributes]
        other._codes = tuple({} if place is None else self._codes[place] for place in places)
        unknown_I = np.full(len(self.ts_I), UNKNOWN, dtype=np.int32)
        columns = [unknown_I if place is None else self.code_IA[:, place] for place in places]
        other.code_IA = np.array(columns, dtype=np.int32).reshape(len(attributes), len(self.ts_I)).T.copy()
        return other

    @classmethod
    def from_state(cls, parts: Mapping[str, Mapping[str, NDArray[Any]]], num_items: int) -> "Listing":
        """The listing whose ``state`` this was, of a catalogue of ``num_items``."""
        if "listing" not in parts:
            listing = cls()
            listing.grow(num_items)
            return listing
        attributes = [part for name, part in sorted(parts.items()) if name.startswith("attributes/")]
        listing = cls([str(part["name"][0]) for part in attributes])
        listing.ts_I, listing.retired_I, listing.code_IA = (
            parts["listing"][name].copy() for name in ("ts", "retired", "code")
        )
        listing._codes = tuple({value: code for code, value in enumerate(part["value"])} for part in attributes)
        names = [parts[name]["name"].tolist() for name in sorted(parts) if name.startswith("names/")]
        told = enumerate(name for chunk in names for name in chunk)
        listing._names = {number: name for number, name in told if name}
        return listing

    def _coded(self, place: int, value_K: NDArray[Any]) -> NDArray[np.int32]:
        """Codes of an attribute's values, in the order in which they were first met; the empty one is unknown."""
        codes = self._codes[place]
        made = [UNKNOWN if not value else codes.setdefault(value, len(codes)) for value in value_K.tolist()]
        return np.array(made, dtype=np.int32)


def _text(values: Sequence[str]) -> NDArray[Any]:
    return np.array(values, dtype=object)
