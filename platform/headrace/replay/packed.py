"""Examples as replay keeps them: narrow columns, with the cut and the key group of each, and back again.

A column belongs to one of three levels: the example, its context's events, its targets; offsets say which rows of the
lower two are whose. Shape legend: N examples, R = N + 1 offsets, E context events, T targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.inputs import contexts as inputs
from headrace.inputs.contexts import Contexts, offsets, ranges
from headrace.inputs.examples import Examples
from headrace.records import Rows
from headrace.replay.policy import Candidates

_EXAMPLE = {"cut": np.int32, "group": np.uint8, "as_of": np.int64, "session": np.uint64}
_EVENT = {"item": np.int32, "ts": np.int64, "kind": np.int16}
_TARGET = {
    "position": np.int32,
    "target": np.int32,
    "weight": np.float32,
    "target_ts": np.int64,
    "shard": np.int32,
    "row": np.int32,
}
_OFFSETS = {"event_offset": np.int32, "target_offset": np.int32}
_INDEX_BYTES = 17  # in the buffer: its place among the alive, the summed weights, whether it is alive


def _width(columns: dict[str, Any]) -> int:
    return sum(np.dtype(kind).itemsize for kind in columns.values())


_EXAMPLE_BYTES = _width(_EXAMPLE) + _width(_OFFSETS) + _INDEX_BYTES
_EVENT_BYTES, _TARGET_BYTES = _width(_EVENT), _width(_TARGET)


@dataclass(frozen=True)
class Packed:
    """Examples in narrow columns, never changed; a part of a snapshot as they are."""

    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.columns["cut"])

    @property
    def size_N(self) -> NDArray[np.int64]:
        """Bytes that each example takes, the buffer's index of it included."""
        events_N, targets_N = (np.diff(self.columns[name]).astype(np.int64) for name in _OFFSETS)
        return _EXAMPLE_BYTES + _EVENT_BYTES * events_N + _TARGET_BYTES * targets_N

    def candidates(self) -> Candidates:
        """What policies look at."""
        columns = self.columns
        first_N = columns["target_offset"][:-1]
        return Candidates(
            columns["cut"],
            columns["as_of"],
            columns["target"][first_N],
            columns["shard"][first_N],
            columns["row"][first_N],
            self.size_N,
        )

    def take(self, index_B: NDArray[np.integer]) -> "Packed":
        """These examples, in this order."""
        columns = self.columns
        taken: dict[str, NDArray[Any]] = {name: columns[name][index_B] for name in _EXAMPLE}
        for name, level in (("event_offset", _EVENT), ("target_offset", _TARGET)):
            start_B = columns[name][index_B].astype(np.int64)
            length_B = columns[name][1:][index_B] - start_B
            flat = ranges(start_B, length_B)
            taken[name] = offsets(length_B).astype(np.int32)
            taken |= {column: columns[column][flat] for column in level}
        return Packed(taken)

    def examples(self) -> Examples:
        """As the training loop reads them."""
        columns = self.columns
        contexts = Contexts(
            columns["item"].astype(np.int64),
            columns["ts"],
            columns["kind"],
            columns["event_offset"].astype(np.int64),
            columns["as_of"],
            columns["session"],
        )
        return Examples(
            contexts,
            np.repeat(np.arange(len(self)), np.diff(columns["target_offset"])),
            columns["position"].astype(np.int64),
            columns["target"].astype(np.int64),
            columns["weight"],
            columns["target_ts"],
            columns["shard"].astype(np.int64),
            columns["row"].astype(np.int64),
        )


def pack(examples: Examples, group_S: NDArray[np.uint8], cut: int) -> Packed:
    """A copy of the examples of one cut, sorted by key group, else in their order; each has a target."""
    contexts, num = examples.contexts, len(examples)
    per_S = np.bincount(examples.sequence_T, minlength=num)
    assert (per_S > 0).all(), "an example without a target has no name and teaches nothing"
    whole = {
        "cut": np.full(num, cut),
        "group": group_S,
        "as_of": contexts.as_of_Q,
        "session": contexts.session_Q,
        "event_offset": contexts.offset_R,
        "target_offset": offsets(per_S),
        "item": contexts.item_T,
        "ts": contexts.ts_T,
        "kind": contexts.kind_T,
        "position": examples.position_T,
        "target": examples.target_T,
        "weight": examples.weight_T,
        "target_ts": examples.ts_T,
        "shard": examples.shard_T,
        "row": examples.row_T,
    }
    kinds = {**_EXAMPLE, **_OFFSETS, **_EVENT, **_TARGET}
    narrow = {name: whole[name].astype(kind) for name, kind in kinds.items()}
    assert all(np.array_equal(narrow[name], whole[name]) for name in ("target", "shard", "row")), "more than 31 bits"
    return Packed(narrow).take(np.argsort(group_S, kind="stable"))


def concatenate(parts: Sequence[Packed]) -> Packed:
    """All examples of these, one after the other; nothing where there are none."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, NDArray[Any]] = {}
    for name, kind in {**_EXAMPLE, **_EVENT, **_TARGET}.items():
        joined[name] = np.concatenate([np.zeros(0, dtype=kind), *(part.columns[name] for part in parts)])
    for name, kind in _OFFSETS.items():
        lengths = [np.diff(part.columns[name]) for part in parts]
        joined[name] = offsets(np.concatenate([np.zeros(0, dtype=np.int64), *lengths])).astype(kind)
    return Packed(joined)


def groups_of(examples: Examples, rows: Rows) -> NDArray[np.uint8]:
    """The key group of each example: that of the row of its first target. ``rows`` are the cut's, in ledger order."""
    first_S = np.searchsorted(examples.sequence_T, np.arange(len(examples)))
    reach = 1 + max(int(rows.row_N.max(initial=0)), int(examples.row_T.max(initial=0)))
    name_N = rows.shard_N * reach + rows.row_N
    order_N = np.argsort(name_N, kind="stable")
    name_S = examples.shard_T[first_S] * reach + examples.row_T[first_S]
    found_S = order_N[np.minimum(np.searchsorted(name_N, name_S, sorter=order_N), len(rows) - 1)]
    assert np.array_equal(name_N[found_S], name_S), "these examples are not of these rows"
    return rows.group_N[found_S]


def join(first: Examples, second: Examples) -> Examples:
    """Both, one after the other: new examples and replayed ones in one pass."""
    return Examples(
        inputs.concatenate([first.contexts, second.contexts]),
        np.concatenate([first.sequence_T, second.sequence_T + len(first)]),
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("position_T", "target_T", "weight_T", "ts_T", "shard_T", "row_T")
        ),
    )
