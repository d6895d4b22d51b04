"""A log that has landed once, whose shards are then taken in any order.

By a learner that follows it, by one that is trained on all of it, by one that looks back. Shards are landed, checked
and recorded as in production; what a cut takes is made from the ledger's records on demand.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.clock import monotonic_s
from headrace.config.feed import WindowConfig
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError, StoreBusyError
from headrace.feed.entries import Shard
from headrace.feed.items import ItemsFolder, ItemsLog, items_landing
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, number_of
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.replayer import Replayer
from headrace.feed.rows import cut_items, cut_rows
from headrace.feed.window import Reach
from headrace.records import KEY_GROUPS, Cut, CutRows, ItemsFile, RowRange, Window
from headrace.store.fence import StoreLock, take_epoch
from headrace.store.store import Store

_NO_CUT = -1
_WAIT_S = 0.2


@dataclass(frozen=True)
class _Shard:
    """A shard's rows, when they happened, and its place among those that landed."""

    rows: RowRange
    place: int
    first_ms: int
    last_ms: int


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
        landed = [entry for entry in self._reader.entries() if isinstance(entry, Shard) and entry.duplicate_of is None]
        shards = [
            _Shard(
                RowRange(one.number, 0, one.num_rows, len(one.dropped.rows)),
                number_of(one.uri),
                one.first_ts,
                one.last_ts,
            )
            for one in landed
        ]
        shards = [shard for shard in shards if shard.rows.num_rows]
        warmup = recipe.feed.warmup_shards
        self._periods = [shards[:warmup], *([shard] for shard in shards[warmup:])] if len(shards) >= warmup else []
        self._window: WindowConfig | None = None
        self._items = _items(recipe, folder)
        content = [*(one.sha256 for one in landed), *(file.sha256 for file in self._items)]
        self.digest = hashlib.sha256("".join(content).encode()).hexdigest()
        """Of the content of the log, as it was cut into shards, and of its side feed."""

    def __len__(self) -> int:
        """Periods."""
        return len(self._periods)

    def part(self, period: int) -> CutRows:
        """The rows of one period, as the cut of that number, and those of its window."""
        before = sum(shard.rows.num_rows for shards in self._periods[:period] for shard in shards)
        window = self._windows[period]
        told = self._told(self._periods[period], self._periods[period - 1] if period else ())
        cut = replace(self._cut(period, self._periods[period], before), window=window, items=told)
        earlier = range(period if window is None else window.first, period)
        taken = [self._cut(number, self._periods[number], 0) for number in earlier]
        return cut_rows(self._reader, cut, self._columns, range(KEY_GROUPS), taken)

    def first(self, num_periods: int, since: int = 0) -> CutRows:
        """The rows of the first periods (from ``since`` on) together, as a warm-up."""
        shards = [shard for shards in self._periods[since:num_periods] for shard in shards]
        cut = replace(self._cut(0, shards, 0), items=self._told(shards, ()))
        return cut_rows(self._reader, cut, self._columns, range(KEY_GROUPS))

    def period_of(self, shard_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The period that each row's shard belongs to."""
        shard_P = np.array([shard.rows.shard for shards in self._periods for shard in shards])
        period_P = np.array([period for period, shards in enumerate(self._periods) for _ in shards])
        return np.asarray(period_P[np.searchsorted(shard_P, shard_N)])

    @property
    def first_ms(self) -> NDArray[np.int64]:
        """When each period begins, event time."""
        return np.array([shards[0].first_ms for shards in self._periods], dtype=np.int64)

    def since(self, period: int, span_s: int | None) -> int:
        """The oldest period that reaches into the last ``span_s`` seconds before this one; None: period 0."""
        oldest_ms = -math.inf if span_s is None else self._periods[period][0].first_ms - span_s * 1000
        return next(at for at, shards in enumerate(self._periods) if shards[-1].last_ms >= oldest_ms)

    def stretches(self, span_s: int) -> NDArray[np.int64]:
        """Which stretch of event time each period lies in: 1 the warm-up, then 2, 3, .. for those that have events."""
        span = (self.first_ms[1:] - self.first_ms[1:2]) // (span_s * 1000)
        return np.concatenate([[1], 2 + np.unique(span, return_inverse=True)[1]]).astype(np.int64)

    def grouped(self, span_s: int) -> "Shelf":
        """The same log with a period for each stretch."""
        number_P = self.stretches(span_s)
        return self._with(
            [
                [shard for period in np.flatnonzero(number_P == number) for shard in self._periods[period]]
                for number in range(1, int(number_P[-1]) + 1)
            ]
        )

    def windowed(self, window: WindowConfig | None) -> "Shelf":
        """The same log, of which cuts have windows as a recipe says."""
        other = self._with(self._periods)
        other._window = window
        return other

    def upto(self, last: int) -> "Shelf":
        """The same log as if it ended after this period."""
        return self._with(self._periods[: last + 1])

    def _with(self, periods: list[list[_Shard]]) -> "Shelf":
        other = copy(self)
        other.__dict__.pop("_born", None)
        other.__dict__.pop("_windows", None)
        other._periods = periods
        return other

    def born(self, raw: Sequence[Any]) -> NDArray[np.int64]:
        """The period in which each item, by raw id, is first met; beyond the last for unknown ones."""
        return np.array([self._born.get(item, len(self)) for item in raw], dtype=np.int64)

    @cached_property
    def _windows(self) -> list[Window | None]:
        reach, windows = Reach(), []
        for period, shards in enumerate(self._periods):
            first_ms = max(shard.first_ms for shard in shards)
            windows.append(reach.window(self._window, period, first_ms))
            reach.add(replace(self._cut(period, shards, 0), window=windows[-1]), first_ms)
        return windows

    @cached_property
    def _born(self) -> dict[Any, int]:
        born: dict[Any, int] = {}
        for period, shards in enumerate(self._periods):
            for item in cut_items(self._reader, self._cut(period, shards, 0), self._columns).tolist():
                born.setdefault(item, period)
        return born

    def _told(self, shards: Sequence[_Shard], before: Sequence[_Shard]) -> tuple[ItemsFile, ...]:
        """What the side feed says from the shards before on, until these have landed."""
        first = max((shard.place for shard in before), default=-1)
        last = max(shard.place for shard in shards)
        return tuple(file for file in self._items if first < number_of(file.uri) <= last)

    @staticmethod
    def _cut(number: int, shards: Sequence[_Shard], before: int) -> Cut:
        num_rows = sum(shard.rows.num_rows for shard in shards)
        return Cut(
            number=number,
            ranges=tuple(shard.rows for shard in shards),
            num_rows=num_rows,
            events_in=before + num_rows,
            duplicate=0,
            quarantined=0,
            pending=0,
            record=number,
        )


def _land_once(recipe: Recipe, store: Store, folder: Path) -> None:
    """Land the log unless that was done here; another process that is at it is waited for.

    The ledger names its shards by where they lie, so a folder that was moved is landed again; and so is one without the
    side feed that is asked for.
    """
    done, place = folder / "landed", f"{folder.resolve()}\n{recipe.feed.items_path or ''}"
    while not (done.is_file() and done.read_text() == place):
        try:
            with StoreLock(Store(str(folder))):
                if done.is_file():
                    done.unlink()
                    for name in ("ledger", "shards", "items"):
                        shutil.rmtree(folder / name, ignore_errors=True)
                _land(recipe, store, Landing(str(folder / "shards")), folder)
                done.write_text(place)
        except StoreBusyError:
            time.sleep(_WAIT_S)


def _items(recipe: Recipe, folder: Path) -> tuple[ItemsFile, ...]:
    """The files of the side feed as they landed beside the log, in order. ConfigError where one cannot be used."""
    side = items_landing(recipe.feed, str(folder / "items"))
    if side is None:
        return ()
    items = ItemsFolder(side, recipe.catalogue.attributes)
    for now_s in range(2):  # a file is read once two looks agree
        items.poll(float(now_s))
    if wrong := items.unusable():
        raise ConfigError(f"{wrong[0].uri}: {wrong[0].reason}")
    return items.take(None)


def _land(recipe: Recipe, store: Store, landing: Landing, folder: Path) -> None:
    """Land and record the whole log; what a process that was stopped has landed stays."""
    feed = recipe.feed
    assert feed.replay is not None
    assert feed.path is not None
    side = items_landing(feed, str(folder / "items"))
    told = None if side is None or feed.items_path is None else ItemsLog(Landing(feed.items_path), side)
    source = Replayer(feed.replay, recipe.columns, Landing(feed.path), landing, items=told)
    writer = LedgerWriter.open(store, take_epoch(store))
    keeper = Keeper(feed, recipe.columns, landing, writer, last_cut=_NO_CUT)
    while True:
        landed = source.step(monotonic_s(), landing.num_landed())
        polled = keeper.poll(monotonic_s(), _NO_CUT)
        if source.exhausted and not (landed or polled.unsettled or polled.shards or polled.quarantined):
            return
