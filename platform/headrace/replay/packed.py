"""Examples as replay keeps them: narrow records, with the cut and the key group of each, and back again.

Three arrays hold records of an example, of its context's events and of its targets; an example says where its own begin
and how many there are. The arrays are plain bytes, a record to a row, so that few copies move all of a record's fields.
Shape legend: N examples, E context events, T targets, B gathered, G sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.inputs import contexts as inputs
from headrace.inputs.contexts import Contexts, offsets, ranges
from headrace.inputs.examples import Examples
from headrace.records import Rows
from headrace.replay.policy import Candidates

_EXAMPLE = np.dtype(
    [
        ("as_of", "<i8"),
        ("session", "<u8"),
        ("cut", "<i4"),
        ("event_start", "<i4"),
        ("num_events", "<i4"),
        ("target_start", "<i4"),
        ("num_targets", "<i4"),
        ("group", "u1"),
        ("order", "<f4"),
        ("told", "<i8"),
    ]
)
_TARGET = [("ts", "<i8"), ("item", "<i4"), ("position", "<i4"), ("weight", "<f4"), ("shard", "<i4"), ("row", "<i4")]
_VARIED = {
    "event": [np.dtype([("ts", "<i8"), ("item", "<i4"), ("kind", kind)]) for kind in ("<i2", "<i8")],
    "target": [np.dtype(_TARGET), np.dtype([*_TARGET, ("level", "i1")])],
}
"""Told apart by their sizes: with the kind alone, and with features (inputs/told.py); without and with levels."""
_SIZES = {"example": _EXAMPLE.itemsize, **{name: records[0].itemsize for name, records in _VARIED.items()}}
_INDEX_BYTES = 17  # in the buffer: its place among the alive, the summed weights, whether it is alive


@dataclass(frozen=True)
class Packed:
    """Examples, never changed. ``arrays`` (uint8, a record to a row) are a part of a snapshot as they are."""

    arrays: dict[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.arrays["example"])

    def records(self, name: str) -> NDArray[Any]:
        """The "example", "event" or "target" records, one-dimensional."""
        array = self.arrays[name]
        known = _VARIED.get(name, [_EXAMPLE])
        return array.view(next(record for record in known if record.itemsize == array.shape[1]))[:, 0]

    @property
    def size_N(self) -> NDArray[np.int64]:
        """Bytes that each example takes, the buffer's index of it included."""
        example_N = self.records("example")
        size_N = np.full(len(self), _EXAMPLE.itemsize + _INDEX_BYTES, dtype=np.int64)
        size_N += self.arrays["event"].shape[1] * example_N["num_events"].astype(np.int64)
        size_N += self.arrays["target"].shape[1] * example_N["num_targets"].astype(np.int64)
        return size_N

    def candidates(self) -> Candidates:
        """What policies look at."""
        example_N = self.records("example")
        first_N = self.records("target")[example_N["target_start"]]
        return Candidates(
            example_N["cut"],
            example_N["as_of"],
            first_N["item"],
            first_N["shard"],
            first_N["row"],
            self.size_N,
            example_N["order"],
        )

    def take(self, index_B: NDArray[np.integer]) -> "Packed":
        """These examples, in this order."""
        return gather([self], [index_B])

    def examples(self) -> Examples:
        """As the training loop reads them."""
        example_N, event_E, target_T = (self.records(name) for name in ("example", "event", "target"))
        contexts = Contexts(
            event_E["item"].astype(np.int64),
            event_E["ts"].copy(),
            event_E["kind"].copy(),
            offsets(example_N["num_events"].astype(np.int64)),
            example_N["as_of"].copy(),
            example_N["session"].copy(),
            example_N["told"].copy(),
        )
        return Examples(
            contexts,
            np.repeat(np.arange(len(self)), example_N["num_targets"]),
            target_T["position"].astype(np.int64),
            target_T["item"].astype(np.int64),
            target_T["weight"].copy(),
            target_T["ts"].copy(),
            target_T["shard"].astype(np.int64),
            target_T["row"].astype(np.int64),
            target_T["level"].copy() if "level" in (target_T.dtype.names or ()) else None,
        )


def pack(
    examples: Examples, group_S: NDArray[np.uint8], cut: int, order_S: NDArray[np.float32] | None = None
) -> Packed:
    """A copy of the examples of one cut, sorted by key group, else in their order; each has a target.

    ``order_S``: see ``Candidates.order_N``.
    """
    contexts, num = examples.contexts, len(examples)
    per_S = np.bincount(examples.sequence_T, minlength=num)
    assert (per_S > 0).all(), "an example without a target has no name and teaches nothing"
    event: dict[str, NDArray[Any]] = {"ts": contexts.ts_T, "item": contexts.item_T, "kind": contexts.kind_T}
    target: dict[str, NDArray[Any]] = {
        "ts": examples.ts_T,
        "item": examples.target_T,
        "position": examples.position_T,
        "weight": examples.weight_T,
        "shard": examples.shard_T,
        "row": examples.row_T,
        **({} if examples.level_T is None else {"level": examples.level_T}),
    }
    example: dict[str, NDArray[Any]] = {
        "as_of": contexts.as_of_Q,
        "session": contexts.session_Q,
        "cut": np.full(num, cut),
        "event_start": contexts.offset_R[:-1],
        "num_events": contexts.length_Q,
        "target_start": offsets(per_S)[:-1],
        "num_targets": per_S,
        "group": group_S,
        "order": np.zeros(num) if order_S is None else order_S,
        "told": contexts.told_Q,
    }
    record_of_event = next(record for record in _VARIED["event"] if record["kind"] == contexts.kind_T.dtype)
    arrays = {
        "example": _rows(_EXAMPLE, example),
        "event": _rows(record_of_event, event),
        "target": _rows(_VARIED["target"][examples.level_T is not None], target),
    }
    return Packed(arrays).take(np.argsort(group_S, kind="stable"))


def gather(parts: Sequence[Packed], rows: Sequence[NDArray[np.integer]]) -> Packed:
    """These rows of each part, one part after the other."""
    bound_G = offsets(np.array([len(index) for index in rows], dtype=np.int64))
    gathered = {"example": _take(parts, "example", np.concatenate([np.zeros(0, dtype=np.int64), *rows]), bound_G)}
    example_B = Packed(gathered).records("example")
    for name in ("event", "target"):
        length_B = example_B[f"num_{name}s"].astype(np.int64)
        start_B = example_B[f"{name}_start"].astype(np.int64)
        end_R = offsets(length_B)
        gathered[name] = _take(parts, name, ranges(start_B, length_B), end_R[bound_G])
        example_B[f"{name}_start"] = end_R[:-1]
    return Packed(gathered)


def concatenate(parts: Sequence[Packed]) -> Packed:
    """All examples of these; nothing where there are none."""
    return gather(parts, [np.arange(len(part)) for part in parts])


def groups_of(examples: Examples, rows: Rows) -> NDArray[np.uint8]:
    """The key group of each example: that of the row of its first target. ``rows`` are the cut's."""
    first_S = np.searchsorted(examples.sequence_T, np.arange(len(examples)))
    found_S = rows_of(examples, first_S, rows)
    return rows.group_N[found_S]


def rows_of(examples: Examples, index_B: NDArray[np.integer], rows: Rows) -> NDArray[np.int64]:
    """Which of the cut's ``rows`` each of these targets is."""
    reach = 1 + max(int(rows.row_N.max(initial=0)), int(examples.row_T.max(initial=0)))
    name_N = rows.shard_N * reach + rows.row_N
    order_N = np.argsort(name_N, kind="stable")
    name_B = examples.shard_T[index_B] * reach + examples.row_T[index_B]
    found_B: NDArray[np.int64] = order_N[np.minimum(np.searchsorted(name_N, name_B, sorter=order_N), len(rows) - 1)]
    assert np.array_equal(name_N[found_B], name_B), "these examples are not of these rows"
    return found_B


def join(first: Examples, second: Examples) -> Examples:
    """Both, one after the other: new examples and replayed ones in one pass."""
    names = ("position_T", "target_T", "weight_T", "ts_T", "shard_T", "row_T")
    both = Examples(
        inputs.concatenate([first.contexts, second.contexts]),
        np.concatenate([first.sequence_T, second.sequence_T + len(first)]),
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names),
    )
    if first.level_T is None and second.level_T is None:
        return both
    return replace(both, level_T=np.concatenate([_levels(first), _levels(second)]))


def _levels(examples: Examples) -> NDArray[np.int8]:
    """Where none are told, as of an empty batch, the lowest."""
    return np.zeros(len(examples.target_T), dtype=np.int8) if examples.level_T is None else examples.level_T


def _rows(record: np.dtype[Any], columns: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Records of these fields, as bytes."""
    record_N = np.empty(len(next(iter(columns.values()))), dtype=record)
    for field, column in columns.items():
        record_N[field] = column
        assert record[field].kind == "f" or np.array_equal(record_N[field], column), f"{field} is too large"
    return record_N.view(np.uint8).reshape(len(record_N), record.itemsize)


def _take(
    parts: Sequence[Packed], name: str, row_B: NDArray[np.int64], bound_G: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Rows of an array: those from ``bound_G[g]`` to ``bound_G[g + 1]`` are of part g."""
    sizes = {part.arrays[name].shape[1] for part in parts if len(part.arrays[name])} or {_SIZES[name]}
    assert len(sizes) == 1, "records of one buffer are alike: with features and levels, or without"
    (size,) = sizes
    taken = np.empty((len(row_B), size), dtype=np.uint8)
    for part, (start, stop) in zip(parts, pairwise(bound_G.tolist()), strict=True):
        if start < stop:  # "clip" writes into ``out`` without a copy between
            part.arrays[name].take(row_B[start:stop], axis=0, out=taken[start:stop], mode="clip")
    return taken
