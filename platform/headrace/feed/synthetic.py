"""A small drifting shop for trying things out: moving popularity, sessions that a sequence model learns, new items.

Time is counted in *blocks* of ``events_per_shard`` events; the first shard holds the blocks of the warm-up, up to and
with block 0, and shard i > 0 is block i. A block is a pure function of (seed, block), so the stream goes on after any
stop. Items live in a window that slides over their ids: ``births_per_shard`` are born in a block, and as many of the
oldest leave. An item belongs to a cluster, whose items stand in a ring; in a session the next item is often one of the
next few in the ring, else one of its cluster, else any, by a popularity that waxes and wanes and is higher in an item's
youth. The side feed says where an item stands: its *category* is the cluster, its *aisle* a stretch of that ring, and
its *colour* means nothing.
Shape legend: S sessions of a block, L places of a session, I items alive, N events.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.config.feed import SyntheticConfig
from headrace.feed.landing import SUFFIX, Landed, Landing, shard_name
from headrace.records import generator, hash64_array

_EPOCH_MS = 1_767_225_600_000  # 2026-01-01: event time of the end of the warm-up
_SESSION_EVENTS = (3, 8)
_ITEMS_PER_CLUSTER = 40
_SUCCESSORS = 3
_AISLES = 8
_COLOURS = ("black", "blue", "green", "red", "white")
_P_SUCCESSOR, _P_CLUSTER = 0.5, 0.3
_P_FAVOURITE = 0.6
_P_PURCHASE = 0.1
_SPILL_SHARE = 20
"""One event in this many belongs to a session that began in the block before."""
_SESSIONS_LIMIT = 1_000_000


class SyntheticStream:
    """Lands the stream: the warm-up at once, then a shard every ``shard_interval_s`` once the warm-up is committed.

    The wall clock starts with the warm-up's commit, so that a slow first training is not a backlog of the stream's own
    making; a caller that is late lands everything that is due. ``items`` is where the side feed lands, if it does.
    """

    def __init__(self, config: SyntheticConfig, seed: int, landing: Landing, items: Landing | None = None) -> None:
        self._config = config
        self._seed = seed
        self._landing = landing
        self._items = items
        self._num_landed: int | None = None
        self._anchor: tuple[float, int] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether ``num_shards`` have landed."""
        return self._num_landed is not None and self._num_landed == self._config.num_shards

    def step(self, now_s: float, committed_files: int) -> tuple[Landed, ...]:
        """Land what is due at ``now_s`` (monotonic); ``committed_files`` of the landed ones are settled."""
        if self._num_landed is None:
            self._num_landed = self._landing.num_landed()
        landed = []
        while not self.exhausted and self._due(now_s, committed_files):
            self._land_items(self._num_landed)
            rows = shard_events(self._config, self._seed, self._num_landed)
            landed.append(self._landing.land(shard_name(self._num_landed), rows))
            self._num_landed += 1
        return tuple(landed)

    def _land_items(self, index: int) -> None:
        """What there is to say of items before the shard of this number lands."""
        if self._items is not None and (rows := shard_items(self._config, self._seed, index)).num_rows:
            self._items.land(f"items-{index:06d}{SUFFIX}", rows)

    def _due(self, now_s: float, committed_files: int) -> bool:
        assert self._num_landed is not None
        if self._num_landed == 0:
            return True
        if committed_files < 1:
            return False
        if self._anchor is None:
            self._anchor = now_s, self._num_landed
        anchor_s, anchor_shard = self._anchor
        return now_s >= anchor_s + (self._num_landed - anchor_shard) * self._config.shard_interval_s


def shard_events(config: SyntheticConfig, seed: int, index: int) -> pa.Table:
    """Shard ``index`` in order of time: item_id, ts, session_id, user_id, event; pure in its arguments."""
    if index > 0:
        return _block_events(config, seed, index)
    num_blocks = _warmup_blocks(config)
    blocks = pa.concat_tables([_block_events(config, seed, block) for block in range(1 - num_blocks, 1)])
    return blocks.slice(max(0, blocks.num_rows - config.warmup_events)).combine_chunks()


def shard_items(config: SyntheticConfig, seed: int, index: int) -> pa.Table:
    """The side feed's rows before shard ``index``: items of the next block that are new, and those that have left.

    item_id, ts, status, name, category, aisle, colour; pure in its arguments.
    """
    first = _window(config, 1 - _warmup_blocks(config))
    before = first if index == 0 else _window(config, index - 1)
    now, ahead = _window(config, index), _window(config, index + 1)
    born_I = np.arange(before.oldest if index == 0 else now.stop, ahead.stop)
    left_I = np.arange(before.oldest, min(now.oldest, before.stop))
    item_I = np.concatenate([born_I[~np.isin(born_I, left_I)], left_I])
    cluster_I, order_I = _places(config, seed, item_I)
    aisle_I = [f"{cluster}-{int(order * _AISLES)}" for cluster, order in zip(cluster_I, order_I, strict=True)]
    retired_I = np.isin(item_I, left_I)
    ts_ms = _EPOCH_MS + (index - 1) * max(16, round(config.shard_interval_s * 1000))
    return pa.table(
        {
            "item_id": item_I,
            "ts": pa.array(np.full(len(item_I), ts_ms), pa.timestamp("ms", tz="UTC")),
            "status": pa.array(np.where(retired_I, "retired", "active"), pa.string()),
            "name": pa.array([f"{aisle} no. {item}" for item, aisle in zip(item_I, aisle_I, strict=True)], pa.string()),
            "category": pa.array([str(cluster) for cluster in cluster_I], pa.string()),
            "aisle": pa.array(aisle_I, pa.string()),
            "colour": pa.array(
                [_COLOURS[int(u * len(_COLOURS))] for u in _uniform(item_I, seed, "colour")], pa.string()
            ),
        }
    )


@dataclass(frozen=True)
class _Window:
    """The ids of the items alive in a block."""

    oldest: int
    stop: int


def _window(config: SyntheticConfig, block: int) -> _Window:
    elapsed = block + _warmup_blocks(config)
    oldest = int(elapsed * _births(config)) // config.launch_items * config.launch_items
    return _Window(oldest, oldest + config.num_items)


def _births(config: SyntheticConfig) -> float:
    return config.num_items / 2000 if config.births_per_shard is None else config.births_per_shard


def _places(
    config: SyntheticConfig, seed: int, item_I: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each item's cluster, and its place in the cluster's ring, in [0, 1)."""
    cluster_I = (hash64_array(item_I, seed, "cluster") % np.uint64(_num_clusters(config))).astype(np.int64)
    return cluster_I, _uniform(item_I, seed, "order")


def _num_clusters(config: SyntheticConfig) -> int:
    return max(1, config.num_items // _ITEMS_PER_CLUSTER)


def _warmup_blocks(config: SyntheticConfig) -> int:
    return -(-config.warmup_events // config.events_per_shard)


def _block_events(config: SyntheticConfig, seed: int, block: int) -> pa.Table:
    """The events of the sessions that begin in this block, and the last ones of those that began in the one before."""
    own, spilt = _sessions(config, seed, block), _sessions(config, seed, block - 1)
    picked = [(own, ~own.spills_N), (spilt, spilt.spills_N)]
    item_N, ts_N, session_N, user_N, bought_N = (
        np.concatenate([getattr(part, name)[chosen_N] for part, chosen_N in picked])
        for name in ("item_N", "ts_N", "session_N", "user_N", "bought_N")
    )
    order_N = np.lexsort((session_N, ts_N))
    event_N = np.where(bought_N, "purchase", "view")
    return pa.table(
        {
            "item_id": item_N[order_N],
            "ts": pa.array(ts_N[order_N], pa.timestamp("ms", tz="UTC")),
            "session_id": session_N[order_N],
            "user_id": user_N[order_N],
            "event": pa.array(event_N[order_N], pa.string()),
        }
    )


class _Sessions:
    """The events of the sessions that begin in one block, session by session."""

    def __init__(
        self,
        item_N: NDArray[np.int64],
        ts_N: NDArray[np.int64],
        session_N: NDArray[np.int64],
        user_N: NDArray[np.int64],
        bought_N: NDArray[np.bool_],
        spills_N: NDArray[np.bool_],
    ) -> None:
        self.item_N, self.ts_N, self.session_N = item_N, ts_N, session_N
        self.user_N, self.bought_N, self.spills_N = user_N, bought_N, spills_N


@dataclass(frozen=True)
class Steps:
    """The steps from item to item that a block's sessions take. Made by ``steps_of``, read by the oracle."""

    shop: "_Shop"
    from_Q: NDArray[np.int64]
    """Positions among the items alive."""
    to_Q: NDArray[np.int64]
    spills_Q: NDArray[np.bool_]
    """Whether the step lands with the next block."""

    def probabilities(self, from_Q: NDArray[np.int64]) -> NDArray[np.float64]:
        """The chance of each step, ``(Q, I)``, from these positions; see ``_walks``."""
        shop, row_Q = self.shop, np.arange(len(from_Q))
        p_QI = np.tile((1.0 - _P_SUCCESSOR - _P_CLUSTER) * shop.shares(), (len(from_Q), 1))
        same_QI = shop.cluster_I[None, :] == shop.cluster_I[from_Q][:, None]
        within_QI = np.where(same_QI, shop.shares()[None, :], 0.0)
        p_QI += _P_CLUSTER * within_QI / within_QI.sum(axis=1, keepdims=True)
        for step in range(1, _SUCCESSORS + 1):
            p_QI[row_Q, shop.successor(from_Q, np.full(len(from_Q), step))] += _P_SUCCESSOR / _SUCCESSORS
        stays_Q = p_QI[row_Q, from_Q].copy()
        p_QI[row_Q, from_Q] = 0.0  # who would stay goes one further
        p_QI[row_Q, shop.successor(from_Q, np.ones(len(from_Q), dtype=np.int64))] += stays_Q
        return np.asarray(p_QI)


def steps_of(config: SyntheticConfig, seed: int, block: int) -> Steps:
    """Every step within the sessions that begin in this block, in the order of ``_sessions``."""
    sessions, shop = _sessions(config, seed, block), _Shop(config, seed, block)
    order_I = np.argsort(shop.item_I)
    at_N = order_I[np.searchsorted(shop.item_I[order_I], sessions.item_N)]
    follows_N = np.flatnonzero(sessions.session_N[1:] == sessions.session_N[:-1]) + 1
    return Steps(shop, at_N[follows_N - 1], at_N[follows_N], sessions.spills_N[follows_N])


def _sessions(config: SyntheticConfig, seed: int, block: int) -> _Sessions:
    draw = generator(seed, "synthetic", block)
    length_S = _lengths(draw, config.events_per_shard)
    num_sessions, longest = len(length_S), int(length_S.max())
    user_S = draw.integers(0, 5 * config.num_items, num_sessions)
    item_SL = _walks(config, seed, block, draw, user_S, longest)
    kept_SL = np.arange(longest) < length_S[:, None]
    num_spilt = min(num_sessions, config.events_per_shard // _SPILL_SHARE)
    spills_SL = np.zeros_like(kept_SL)
    spills_SL[np.arange(num_spilt), length_S[:num_spilt] - 1] = True
    interval_ms = max(16, round(config.shard_interval_s * 1000))
    offset_SL = np.sort(draw.integers(0, interval_ms - longest, kept_SL.shape), axis=1) + np.arange(longest)
    ts_SL = _EPOCH_MS + (block - 1) * interval_ms + offset_SL + np.where(spills_SL, interval_ms, 0)
    number_S = (block + _warmup_blocks(config)) * _SESSIONS_LIMIT + np.arange(num_sessions)
    return _Sessions(
        item_SL[kept_SL],
        ts_SL[kept_SL],
        np.repeat(number_S, length_S),
        np.repeat(user_S, length_S),
        draw.random(kept_SL.shape)[kept_SL] < _P_PURCHASE,
        spills_SL[kept_SL],
    )


def _lengths(draw: np.random.Generator, num_events: int) -> NDArray[np.int64]:
    """Lengths that sum to ``num_events``, longest first; a rest too short for a session lengthens the shortest ones."""
    low, high = _SESSION_EVENTS
    length_S = draw.integers(low, high + 1, num_events // low + 1)
    whole = int(np.searchsorted(np.cumsum(length_S), num_events, side="right"))
    rest = num_events - int(length_S[:whole].sum())
    length_S = np.append(length_S[:whole], rest) if rest >= low or whole == 0 else length_S[:whole]
    length_S = np.sort(length_S)[::-1].astype(np.int64)
    for place in range(num_events - int(length_S.sum())):
        length_S[-1 - place % len(length_S)] += 1
    return length_S


def _walks(
    config: SyntheticConfig, seed: int, block: int, draw: np.random.Generator, user_S: NDArray[np.int64], longest: int
) -> NDArray[np.int64]:
    """Item ids of each session's walk."""
    shop = _Shop(config, seed, block)
    num_sessions = len(user_S)
    favourite_S = (hash64_array(user_S, seed, "favourite") % np.uint64(shop.num_clusters)).astype(np.int64)
    at_S = np.where(
        draw.random(num_sessions) < _P_FAVOURITE,
        shop.in_cluster(favourite_S, draw.random(num_sessions)),
        shop.anywhere(draw.random(num_sessions)),
    )
    item_SL = np.empty((num_sessions, longest), dtype=np.int64)
    for place in range(longest):
        item_SL[:, place] = shop.item_I[at_S]
        choice_S = draw.random(num_sessions)
        near_S = shop.successor(at_S, draw.integers(1, _SUCCESSORS + 1, num_sessions))
        alike_S = shop.in_cluster(shop.cluster_I[at_S], draw.random(num_sessions))
        any_S = shop.anywhere(draw.random(num_sessions))
        next_S = np.where(
            choice_S < _P_SUCCESSOR, near_S, np.where(choice_S < _P_SUCCESSOR + _P_CLUSTER, alike_S, any_S)
        )
        at_S = np.where(next_S == at_S, shop.successor(at_S, np.ones(num_sessions, dtype=np.int64)), next_S)
    return item_SL


class _Shop:
    """The items alive in a block, sorted by cluster, with their popularity. Positions index ``item_I``."""

    def __init__(self, config: SyntheticConfig, seed: int, block: int) -> None:
        elapsed = block + _warmup_blocks(config)
        window = _window(config, block)
        item_I = np.arange(window.oldest, window.stop, dtype=np.int64)
        self.num_clusters = _num_clusters(config)
        cluster_I, place_I = _places(config, seed, item_I)
        order_I = np.lexsort((place_I, cluster_I))
        self.item_I, self.cluster_I = item_I[order_I], cluster_I[order_I]
        self._start_C = np.searchsorted(self.cluster_I, np.arange(self.num_clusters + 1))
        base_I, period_I, phase_I = (_uniform(self.item_I, seed, name) for name in ("base", "period", "phase"))
        wave_I = np.sin(2 * np.pi * (elapsed / (40 + 160 * period_I) + phase_I))
        launch_I = (self.item_I - config.num_items) // config.launch_items * config.launch_items
        age_I = elapsed - launch_I / _births(config)
        heat_I = -0.8 * np.log1p(-base_I) + 1.5 * wave_I + 1.5 * np.exp(-np.maximum(age_I, 0.0) / 30)
        self._cumulative_I = np.concatenate([[0.0], np.cumsum(np.exp(heat_I))])

    def shares(self) -> NDArray[np.float64]:
        """Each item's popularity among all items."""
        return np.asarray(np.diff(self._cumulative_I) / self._cumulative_I[-1], dtype=np.float64)

    def anywhere(self, uniform_S: NDArray[np.float64]) -> NDArray[np.int64]:
        """A position by popularity among all items."""
        return self._pick(uniform_S * self._cumulative_I[-1], np.zeros(len(uniform_S), np.int64), len(self.item_I))

    def in_cluster(self, cluster_S: NDArray[np.int64], uniform_S: NDArray[np.float64]) -> NDArray[np.int64]:
        """A position by popularity within a cluster; anywhere if the cluster has no item alive."""
        start_S, stop_S = self._start_C[cluster_S], self._start_C[cluster_S + 1]
        low_S, high_S = self._cumulative_I[start_S], self._cumulative_I[stop_S]
        inside_S = self._pick(low_S + uniform_S * (high_S - low_S), start_S, np.maximum(stop_S, start_S + 1))
        return np.where(stop_S > start_S, inside_S, self.anywhere(uniform_S))

    def successor(self, at_S: NDArray[np.int64], steps_S: NDArray[np.int64]) -> NDArray[np.int64]:
        """The item ``steps_S`` places further in the cluster's ring."""
        start_S, stop_S = self._start_C[self.cluster_I[at_S]], self._start_C[self.cluster_I[at_S] + 1]
        return np.asarray(start_S + (at_S - start_S + steps_S) % (stop_S - start_S), dtype=np.int64)

    def _pick(
        self, mass_S: NDArray[np.float64], low_S: NDArray[np.int64], high_S: NDArray[np.int64] | int
    ) -> NDArray[np.int64]:
        at_S = np.searchsorted(self._cumulative_I, mass_S, side="right") - 1
        return np.asarray(np.clip(at_S, low_S, np.asarray(high_S) - 1), dtype=np.int64)


def _uniform(item_I: NDArray[np.int64], seed: int, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) of each item's own."""
    return np.asarray((hash64_array(item_I, seed, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53)
