"""Late rows and rows from the future: which event times an increment believes, alike on every rank.

Both rules are held against what is known before the cut: the watermark of the commit before. Where most rows of a cut
lie ahead of it, the stream has paused, and time has moved on: their median then counts as the present. The warm-up has
no watermark before it, and is taken as it comes. Shape legend: N rows of this rank.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.config.feed import FeedConfig
from headrace.records import CutRows, RowRange, Rows
from headrace.train.group import Group

_EVER = np.iinfo(np.int64)


@dataclass(frozen=True)
class Times:
    """Which times are believed. Made by ``believed_times``, read by train/intake.py."""

    oldest_ms: int = int(_EVER.min)
    """Rows before it are late."""
    newest_ms: int = int(_EVER.max)
    """Rows after it lie ahead."""
    present_ms: int = 0
    """What the time of a row that lies ahead is set to, where the recipe clamps."""
    released: tuple[RowRange, ...] = ()
    """Rows that a person has put back: they are old, and no reason to call them late."""

    def late_N(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows came too late."""
        late_N = rows.ts_N < self.oldest_ms
        for part in self.released:
            late_N &= (rows.shard_N != part.shard) | (rows.row_N < part.start) | (rows.row_N >= part.stop)
        return late_N

    def ahead_N(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows lie too far ahead."""
        return rows.ts_N > self.newest_ms


ANY_TIME = Times()
"""Every time is believed."""


def believed_times(part: CutRows, watermark_ms: int, feed: FeedConfig, group: Group) -> Times:
    """The recipe's policy, for this cut; ``watermark_ms`` is the commit's before, 0 in the warm-up."""
    if not watermark_ms:
        return ANY_TIME
    oldest_ms, newest_ms, present_ms = ANY_TIME.oldest_ms, ANY_TIME.newest_ms, watermark_ms
    if feed.allowed_lateness_s is not None:
        oldest_ms = watermark_ms - feed.allowed_lateness_s * 1000
    if feed.max_ahead_s is not None:
        gathered = group.gather({"ts": part.rows.ts_N})
        ts_N = np.concatenate([rank["ts"] for rank in gathered])
        present_ms = max(watermark_ms, int(np.median(ts_N))) if len(ts_N) else watermark_ms
        newest_ms = present_ms + feed.max_ahead_s * 1000
    return Times(oldest_ms, newest_ms, present_ms, tuple(part for part in part.cut.ranges if part.released))
