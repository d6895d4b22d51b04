"""Which rows an increment trains where ``feed.window`` is set: of its own cut, and of a window of event time before it.

The ledger's writer decides, and the cut's record says; who reads rows and who trains them ask the same record, so that
all ranks, and a run that starts again, pick the same ones. "pit" is partial incremental training (TBGRecall, arXiv
2508.11977): users take turns in buckets. "all" and "sample" are what it is held against. The warm-up trains all of its
rows. Times are those at which shards begin, since one row with a wrong clock may be the last of its shard.
Shape legend: N rows.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.config.feed import EveryoneConfig, PitConfig, SampleConfig, WindowConfig
from headrace.records import Cut, Window, hash64_array


class Reach:
    """The cuts that a next window may reach: a fold over cuts, as long as they are read under one policy."""

    def __init__(self) -> None:
        self._begin_ms: deque[tuple[int, int]] = deque()
        """(cut, event time at which its newest shard begins), which never falls."""
        self._newest_ms = 0
        self._policy: Window | None = None

    def window(self, config: WindowConfig | None, cut: int, first_ms: int) -> Window | None:
        """That of the next cut, whose newest shard begins at ``first_ms``; None where the recipe has none.

        It reaches as far as its span, and no less far than rows may have waited for their turn.
        """
        if config is None:
            return None
        since_ms = max(self._newest_ms, first_ms) - config.window_s * 1000
        window = _window(config, cut, since_ms)
        if self._policy is None or _policy(window) != self._policy:
            return window
        first, first_begins_ms = self._begin_ms[0]
        for number, begin_ms in self._begin_ms:
            if begin_ms > since_ms or number > cut - window.buckets + 1:
                break
            if begin_ms > first_begins_ms:  # what was taken before it ended before the window
                first, first_begins_ms = number, begin_ms
        return replace(window, first=first)

    def add(self, cut: Cut, first_ms: int) -> None:
        """One more cut; what no later window can reach is forgotten."""
        self._newest_ms = max(self._newest_ms, first_ms)
        if cut.window is None:
            self._begin_ms.clear()
            self._policy = None
            return
        while self._begin_ms and self._begin_ms[0][0] < cut.window.first:
            self._begin_ms.popleft()
        self._begin_ms.append((cut.number, self._newest_ms))
        self._policy = _policy(cut.window)


def picked_N(window: Window, user_N: NDArray[np.uint64], session_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whose rows the increment trains; ``user_N`` and ``session_N`` are hashes, 0 where there is none."""
    if window.turn == 0 or window.kind == "all":
        return np.ones(len(user_N), dtype=bool)
    if window.kind == "pit":  # hashed again: a bucket is not to be the key groups of one rank
        bucket_N = hash64_array(np.where(user_N != 0, user_N, session_N), "bucket") % np.uint64(window.buckets)
        return np.asarray(bucket_N == window.turn % window.buckets)
    first_N, second_N = (user_N, session_N) if window.of == "user" else (session_N, user_N)
    draw_N = hash64_array(np.where(first_N != 0, first_N, second_N), "window", window.turn)
    return np.asarray(draw_N.astype(np.float64) / 2.0**64 < window.share)


def picked_before_N(
    window: Window,
    user_N: NDArray[np.uint64],
    session_N: NDArray[np.uint64],
    cut_N: NDArray[np.int64],
    rejected: Sequence[int],
) -> NDArray[np.bool_]:
    """Which of the rows that this window picks, taken by the cuts ``cut_N``, an earlier increment has trained.

    Those that were rejected did not.
    """
    before_N = np.zeros(len(cut_N), dtype=bool)
    for turn in range(window.first, window.turn):
        is_other = window.kind == "pit" and turn and (window.turn - turn) % window.buckets  # another bucket's
        if not is_other and turn not in rejected:
            before_N |= (cut_N <= turn) & picked_N(replace(window, turn=turn), user_N, session_N)
    return before_N


def _window(config: WindowConfig, cut: int, since_ms: int) -> Window:
    """The window of a cut that reaches no other one."""
    match config:
        case PitConfig():
            return Window("pit", cut, cut, since_ms, config.window_s, buckets=config.buckets)
        case EveryoneConfig():
            return Window("all", cut, cut, since_ms, config.window_s)
        case SampleConfig():
            return Window("sample", cut, cut, since_ms, config.window_s, share=config.share, of=config.of)
    assert_never(config)


def _policy(window: Window) -> Window:
    """What two cuts of one policy have in common."""
    return replace(window, turn=0, first=0, since_ms=0)
