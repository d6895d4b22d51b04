"""What each column of a log looks like: its type, its distinct values, and whether it can be a time or an id.

Also the way from a column as it came (integers of some unit, text, floats that are really integers) to what Headrace
reads: ids as int64 or text, times as milliseconds.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.errors import DataError

Unit = Literal["time", "text", "s", "ms", "us", "ns", "order"]
"""How a column tells time: a timestamp or date, text, or integers of a unit; "order": small integers, taken as s."""

_PER_MS = {"s": 1 / 1000, "order": 1 / 1000, "ms": 1, "us": 1000, "ns": 1_000_000}
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Column:
    """A column of the sample. Made by ``look``, read by the guesses."""

    name: str
    words: tuple[str, ...]
    """The name in lower case, split at underscores and humps."""
    type: str
    is_id: bool
    """Whether its values can name something: integers, text, floats without fractions."""
    unit: Unit | None
    """How it would tell time; None where it cannot."""
    null_share: float
    num_distinct: int
    num_rows: int
    rising: float
    """Share of neighbouring rows that do not fall; 0 for text."""
    values: Any
    """The sample, decoded, as an Arrow array."""

    @property
    def joined(self) -> str:
        """The name in lower case without separators."""
        return "".join(self.words)


def look(table: pa.Table) -> list[Column]:
    """Every column of a sample, in the file's order; nested ones are left out."""
    return [_look(name, plain(table[name])) for name in table.column_names if not pa.types.is_nested(table[name].type)]


def plain(column: Any) -> Any:  # noqa: ANN401 (pyarrow's classes are untyped here)
    """A column as one decoded array, large text as text."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # pyarrow keeps chunks that would not fit one array
        column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def is_text(kind: Any) -> bool:  # noqa: ANN401
    """Whether a decoded column holds text."""
    return bool(pa.types.is_string(kind))


def ids(column: Any, name: str) -> Any:  # noqa: ANN401
    """Ids as int64 or text, nulls kept; empty text counts as null."""
    column = plain(column)
    if is_text(column.type):
        return pc.if_else(pc.equal(column, pa.scalar("")), pa.scalar(None, pa.string()), column)
    try:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} has values that are no ids ({error}): write integers or text") from error


def to_ms(column: Any, unit: Unit, name: str) -> Any:  # noqa: ANN401
    """Times as int64 milliseconds since the epoch, nulls kept."""
    column = plain(column)
    try:
        if unit == "text":
            column = _parsed(column)
        if unit in ("time", "text"):
            kind = column.type
            zone = kind.tz if pa.types.is_timestamp(kind) else None
            return column.cast(pa.timestamp("ms", tz=zone), safe=False).cast(pa.int64())
        column = pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
        if pa.types.is_integer(column.type) and _PER_MS[unit] >= 1:
            return pc.divide(column.cast(pa.int64()), pa.scalar(int(_PER_MS[unit]), pa.int64()))
        if pa.types.is_integer(column.type):
            return pc.multiply_checked(column.cast(pa.int64()), pa.scalar(1000, pa.int64()))
        return pc.floor(pc.divide(column, pa.scalar(_PER_MS[unit], pa.float64()))).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} does not read as times throughout: {error}") from error


def _parsed(column: Any) -> Any:  # noqa: ANN401
    try:
        return column.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:  # with an offset from UTC
        return column.cast(pa.timestamp("us", tz="UTC"))


def _look(name: str, column: Any) -> Column:  # noqa: ANN401
    kind = column.type
    words = tuple(word for word in _WORD.split(_CAMEL.sub("_", name).lower()) if word)
    whole = _whole(column)
    distinct = 0 if pa.types.is_null(kind) else int(pc.count_distinct(column).as_py())
    return Column(
        name=name,
        words=words,
        type=str(kind),
        is_id=distinct > 0 and (whole is not None or is_text(kind)),
        unit=_unit(column, whole) if distinct else None,
        null_share=column.null_count / max(1, len(column)),
        num_distinct=distinct,
        num_rows=len(column),
        rising=_rising(column),
        values=column,
    )


def _whole(column: Any) -> NDArray[np.float64] | None:  # noqa: ANN401
    """The values that are there, of integers and of floats without fractions; None for other columns."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    value_N = np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
    value_N = value_N[np.isfinite(value_N)]
    return value_N if len(value_N) and (value_N == np.floor(value_N)).all() else None


def _unit(column: Any, whole: NDArray[np.float64] | None) -> Unit | None:  # noqa: ANN401
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    if is_text(kind):
        try:
            _parsed(column.drop_null().slice(0, 1000))
        except pa.ArrowInvalid:
            return None
        return "text"
    if whole is None and pa.types.is_floating(kind):  # seconds with a fraction
        whole = np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
        return "s" if len(whole) and 1e8 <= float(np.nanmedian(whole)) < 1e11 else None
    if whole is None or whole.min() < 0:
        return None
    middle = float(np.median(whole))
    limits: tuple[tuple[float, Unit], ...] = ((1e8, "order"), (1e11, "s"), (1e14, "ms"), (1e17, "us"))
    return next((unit for limit, unit in limits if middle < limit), "ns")


def _rising(column: Any) -> float:  # noqa: ANN401
    kind = column.type
    if len(column) < 2 or is_text(kind):
        return 0.0
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return 0.0
    value_N = np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
    return float((np.diff(value_N) >= 0).mean()) if len(value_N) > 1 else 0.0
