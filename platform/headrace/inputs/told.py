"""What a model is told of an event beside its item and its time, in one integer: its kind, and up to three features.

A feature is a column that the log carries (``columns.context``): how a page was reached, on which device, from which
region. Or it is an attribute of the item, as the side feed has told it. Values are told apart by name, as kinds are:
words, truth values and whole numbers have the same name in a log and in a request, whatever type their column has.
Fractions have that of a double. Nothing, NaN and "" are not told. A request has features, too, and no kind.
Shape legend: N events.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.records import hash64

_BITS = 15  # of each code; the kind's come lowest
_MASK = (1 << _BITS) - 1

Codes: TypeAlias = NDArray[np.signedinteger[Any]]
"""Kinds alone (int16), or with features (int64); wherever such an array is called ``kind``, it may hold either."""


def feature_code(column: str, value: object) -> int:
    """A stable small integer for a value of a feature; 0 where nothing is told (None, NaN, "")."""
    name = _name(value)
    return 0 if name is None else 1 + hash64("feature", column, name) % _MASK


def feature_codes(column: str, value_N: NDArray[Any]) -> NDArray[np.int64]:
    """``feature_code`` of each value."""
    names = [_name(value) for value in value_N.tolist()]
    code_of = {name: feature_code(column, name) for name in dict.fromkeys(names)}
    return np.fromiter((code_of[name] for name in names), dtype=np.int64, count=len(names))


def tell(kind_N: Codes, context: Mapping[str, NDArray[Any]], features: Sequence[str], first: int = 1) -> Codes:
    """Kinds as they are where there are no features; else each with the codes of its features, as 64 bits.

    ``context`` holds the carried columns; one that a shard does not have tells nothing. ``first``: the place of the
    first of them, where others have been told before.
    """
    if not features:
        return kind_N
    told_N = kind_N.astype(np.int64)
    for place, column in enumerate(features, start=first):
        if column in context:
            told_N |= feature_codes(column, context[column]) << (_BITS * place)
    return told_N


def tell_one(features: Sequence[str], said: Mapping[str, object]) -> int:
    """What ``tell`` makes of one event whose kind is not known."""
    return sum(
        feature_code(column, said.get(column)) << (_BITS * place) for place, column in enumerate(features, start=1)
    )


def request_of(told: Codes) -> NDArray[np.int64]:
    """What the request that led to these events says: all but their kind.

    Attributes of the event's item, which come after the features, are left in: a request is read up to the features.
    """
    return (told & ~_MASK).astype(np.int64)


def kind_of(told: Codes) -> Codes:
    """The codes of the kinds alone."""
    return told & _MASK


def features_of(told: Codes, num_features: int) -> list[NDArray[np.int64]]:
    """The codes of each feature, of any shape."""
    wide = told.astype(np.int64)
    return [(wide >> (_BITS * place)) & _MASK for place in range(1, num_features + 1)]


def _name(value: object) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
