"""A log that has landed once, whose shards are then taken in any order.

By a learner that follows it, by one that is trained on all of it, by one that looks back. Shards are landed, checked
and recorded as in production; what a cut takes is made from the ledger's records on demand.
"""

import hashlib
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.clock import monotonic_s
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError, StoreBusyError
from headrace.feed.entries import Shard
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.replayer import Replayer
from headrace.feed.rows import cut_items, cut_rows
from headrace.records import KEY_GROUPS, Cut, CutRows, RowRange
from headrace.store.fence import StoreLock, take_epoch
from headrace.store.store import Store

_NO_CUT = -1
_WAIT_S = 0.2


class Shelf:
    """The periods of a log: period 0 is what the warm-up takes (``feed.warmup_shards``), then one shard each.

    ``folder`` keeps what has landed, so that another process finds it there. ConfigError where there is no log.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        if recipe.feed.replay is None or recipe.feed.path is None:
            raise ConfigError("this benchmark replays a log: the recipe needs [feed.replay], and feed.path its folder")
        self._columns = recipe.columns
        store = Store(str(folder / "ledger"))
        _land_once(recipe, store, folder)
        self._reader = LedgerReader(store)
        shards = [entry for entry in self._reader.entries() if isinstance(entry, Shard) and entry.duplicate_of is None]
        rows = [RowRange(shard.number, 0, shard.num_rows, len(shard.dropped.rows)) for shard in shards]
        rows = [part for part in rows if part.num_rows]
        warmup = recipe.feed.warmup_shards
        self._ranges = [rows[:warmup], *([part] for part in rows[warmup:])] if len(rows) >= warmup else []
        self.digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
        """Of the log's content, as it was cut into shards."""

    def __len__(self) -> int:
        """Periods."""
        return len(self._ranges)

    def part(self, period: int) -> CutRows:
        """The rows of one period, as the cut of that number."""
        before = sum(part.num_rows for ranges in self._ranges[:period] for part in ranges)
        return self._rows(period, self._ranges[period], before)

    def first(self, num_periods: int, since: int = 0) -> CutRows:
        """The rows of the first periods (from ``since`` on) together, as a warm-up."""
        return self._rows(0, [part for ranges in self._ranges[since:num_periods] for part in ranges], 0)

    def period_of(self, shard_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The period that each row's shard belongs to."""
        shard_P = np.array([part.shard for ranges in self._ranges for part in ranges])
        period_P = np.array([period for period, ranges in enumerate(self._ranges) for _ in ranges])
        return np.asarray(period_P[np.searchsorted(shard_P, shard_N)])

    def born(self, raw: Sequence[Any]) -> NDArray[np.int64]:
        """The period in which each item, by raw id, is first met; beyond the last for unknown ones."""
        return np.array([self._born.get(item, len(self)) for item in raw], dtype=np.int64)

    @cached_property
    def _born(self) -> dict[Any, int]:
        born: dict[Any, int] = {}
        for period, ranges in enumerate(self._ranges):
            for item in cut_items(self._reader, self._cut(period, ranges, 0), self._columns).tolist():
                born.setdefault(item, period)
        return born

    def _rows(self, number: int, ranges: Sequence[RowRange], before: int) -> CutRows:
        return cut_rows(self._reader, self._cut(number, ranges, before), self._columns, range(KEY_GROUPS))

    @staticmethod
    def _cut(number: int, ranges: Sequence[RowRange], before: int) -> Cut:
        num_rows = sum(part.num_rows for part in ranges)
        return Cut(
            number=number,
            ranges=tuple(ranges),
            num_rows=num_rows,
            events_in=before + num_rows,
            duplicate=0,
            quarantined=0,
            pending=0,
            record=number,
        )


def _land_once(recipe: Recipe, store: Store, folder: Path) -> None:
    """Land the log unless that was done here; another process that is at it is waited for.

    The ledger names its shards by where they lie, so a folder that was moved is landed again.
    """
    done, place = folder / "landed", str(folder.resolve())
    while not (done.is_file() and done.read_text() == place):
        try:
            with StoreLock(Store(str(folder))):
                if done.is_file():
                    done.unlink()
                    for name in ("ledger", "shards"):
                        shutil.rmtree(folder / name, ignore_errors=True)
                _land(recipe, store, Landing(str(folder / "shards")))
                done.write_text(place)
        except StoreBusyError:
            time.sleep(_WAIT_S)


def _land(recipe: Recipe, store: Store, landing: Landing) -> None:
    """Land and record the whole log; what a process that was stopped has landed stays."""
    feed = recipe.feed
    assert feed.replay is not None
    assert feed.path is not None
    source = Replayer(feed.replay, recipe.columns, Landing(feed.path), landing)
    writer = LedgerWriter.open(store, take_epoch(store))
    keeper = Keeper(feed, recipe.columns, landing, writer, last_cut=_NO_CUT)
    while True:
        landed = source.step(monotonic_s(), landing.num_landed())
        polled = keeper.poll(monotonic_s(), _NO_CUT)
        if source.exhausted and not (landed or polled.unsettled or polled.shards or polled.quarantined):
            return
