"""Increments gone wrong, as shards that hold them: what a broken join, a flood or a bot leaves in a log.

Rows that are added are copies of others of the shard, with the item, the session and the user that the poison wants, so
that every other column stays as it is; what a platform does with them begins at the landing folder.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.config.feed import ColumnsConfig
from headrace.feed.schema import Column, Values
from headrace.methods.base import Method

Poison = Literal["shuffled", "one_item", "one_item_spread", "bot", "learning_rate"]
POISONS: tuple[Poison, ...] = get_args(Poison)
FLOOD_EVENTS = 100_000
"""Of one item: in one session, or spread over made-up ones."""
BOT_EVENTS = 10_000
"""Of random items, in one session."""
_SESSION_EVENTS = 10


class TooFast(Method):
    """Beside an increment's own methods: a learning rate ten times too high. The rows are as they were."""

    def learning_rate_scale(self, steps_since_fresh: int) -> float:
        """Ten; see ``Method``."""
        return 10.0


@dataclass(frozen=True)
class Poisoned:
    """A shard with its poison."""

    table: pa.Table
    added: int
    """Rows that are not the shard's own."""


def poison(table: pa.Table, kind: Poison, columns: ColumnsConfig, draw: np.random.Generator) -> Poisoned:
    """The shard with this poison in it; it has rows. Pure in its arguments."""
    item_N = table[columns.item_id]
    match kind:
        case "shuffled":
            place = table.column_names.index(columns.item_id)
            dealt_N = item_N.take(draw.permutation(len(item_N)))
            return Poisoned(table.set_column(place, table.field(place), dealt_N), 0)
        case "one_item":
            item_A = np.full(FLOOD_EVENTS, draw.integers(len(item_N)))
            return _with(table, columns, item_A, np.zeros(FLOOD_EVENTS, dtype=np.int64), draw)
        case "one_item_spread":
            item_A = np.full(FLOOD_EVENTS, draw.integers(len(item_N)))
            return _with(table, columns, item_A, np.arange(FLOOD_EVENTS) // _SESSION_EVENTS, draw)
        case "bot":
            item_A = draw.choice(_first_rows(item_N), BOT_EVENTS)
            return _with(table, columns, item_A, np.zeros(BOT_EVENTS, dtype=np.int64), draw)
        case "learning_rate":
            return Poisoned(table, 0)


def _with(
    table: pa.Table,
    columns: ColumnsConfig,
    item_A: NDArray[np.int64],
    who_A: NDArray[np.int64],
    draw: np.random.Generator,
) -> Poisoned:
    """With one more row for each of ``item_A``, rows whose items they have; ``who_A`` numbers who is made up."""
    added = table.take(np.sort(draw.integers(table.num_rows, size=len(item_A))))
    place = table.column_names.index(columns.item_id)
    added = added.set_column(place, table.field(place), table[columns.item_id].take(item_A))
    marks = {columns.session_id: who_A, columns.user_id: who_A, columns.event_id: np.arange(len(item_A))}
    salt = int(draw.integers(2**30))
    for name, mark_A in marks.items():
        if name is not None:
            place = table.column_names.index(name)
            added = added.set_column(place, table.field(place), _made_up(table.schema.field(name).type, mark_A, salt))
    return Poisoned(pa.concat_tables([table, added]), len(item_A))


def _made_up(kind: pa.DataType, mark_A: NDArray[np.int64], salt: int) -> Values:
    """Names that nobody else has, of the column's own type: the same for the same mark."""
    if pa.types.is_integer(kind):
        width = min(kind.bit_width - pa.types.is_signed_integer(kind), 62)
        return pa.array(2**width - 1 - (salt * 2**20 + mark_A) % 2 ** (width - 1), kind)
    return pa.array([f"made-up-{salt}-{mark}" for mark in mark_A.tolist()]).cast(kind)


def _first_rows(item_N: Column) -> NDArray[np.int64]:
    """A row of each distinct item."""
    _, first_I = np.unique(item_N.to_numpy(), return_index=True)
    return np.asarray(first_I, dtype=np.int64)
