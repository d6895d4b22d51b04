"""Runs the production increment in one process, on one rank or two, over a ledger in tmp."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from headrace.commit.manifest import Manifest
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.feed.items import ItemsFolder
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, shard_name
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows, key_groups
from headrace.records import Cut
from headrace.replay.client import LocalReplay, ReplaySpec
from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.train.committer import Committer
from headrace.train.group import Group, Solo
from headrace.train.increment import train_increment
from headrace.train.state import LearnerState, resume

SMALL = (
    "model.width=16",
    "model.blocks=1",
    "inputs.max_events=10",
    "catalogue.initial_capacity=64",
    "train.batch=32",
    "train.warmup_epochs=1",
    "columns.user_id=user_id",
    "columns.event=event",
    "feed.cut=shard",
)
"""A recipe that trains an increment in milliseconds."""


def recipe(*overrides: str) -> Recipe:
    """The small recipe, with these on top."""
    return load_recipe([], [*SMALL, *overrides])


class Pair:
    """Two ranks as threads of one process. Dropout must be 0: threads share torch's generator."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=60)
        self._slots: list[Any] = [None, None]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Both ranks' values, in rank order."""
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def run(self, body: Callable[[Group], Any]) -> list[Any]:
        """``body`` on both ranks; their results, or the first error."""
        results: list[Any] = [None, None]
        errors: list[BaseException] = []

        def target(rank: int) -> None:
            try:
                results[rank] = body(PairRank(self, rank))
            except BaseException as error:  # noqa: BLE001 (raised again where the test can see it)
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results


class PairRank:
    """One of the two."""

    world = 2

    def __init__(self, pair: Pair, rank: int) -> None:
        self._pair, self.rank = pair, rank

    def sum_(self, tensor: torch.Tensor) -> None:
        first, second = self._pair.exchange(self.rank, tensor.clone())
        tensor.copy_(first + second)

    def gather(self, arrays: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return self._pair.exchange(self.rank, arrays)


class Stream:
    """Shards in a folder, a ledger over them, and a store; commits are made by ``advance``."""

    def __init__(self, folder: Path, made: Recipe) -> None:
        self.recipe = made
        self.landing = Landing(str(folder / "landing"))
        self.store = Store(str(folder / "store"))
        self.items = Landing(str(folder / "items"))
        self._num_landed = 0

    def land(self, table: pa.Table) -> None:
        """One more shard."""
        self.landing.land(shard_name(self._num_landed), table)
        self._num_landed += 1

    def cuts(self, writer: LedgerWriter) -> list[Cut]:
        """Every cut of what has landed."""
        items = ItemsFolder(self.items, self.recipe.catalogue.attributes)
        keeper = Keeper(
            self.recipe.feed, self.recipe.columns, self.landing, writer, cuts_ahead=10**6, patience_s=0.0, items=items
        )
        for now_s in range(4):
            keeper.poll(float(now_s), 10**6)
        reader = LedgerReader(self.store)
        return [reader.cut(number) for number in range(reader.last_cut + 1)]

    def advance(
        self, group: Group | None = None, until: int | None = None, change: Callable[[LearnerState], None] | None = None
    ) -> list[Manifest]:
        """Resume from the store, as a new process would, and train the waiting cuts (up to number ``until``)."""
        epoch = take_epoch(self.store)
        cuts = self.cuts(LedgerWriter.open(self.store, epoch))
        run = partial_run(self, epoch, cuts, until, change)
        return run(Solo()) if group is None else run(group)

    def advance_pair(self, until: int | None = None) -> list[Manifest]:
        """The same on two ranks."""
        epoch = take_epoch(self.store)
        cuts = self.cuts(LedgerWriter.open(self.store, epoch))
        both = Pair().run(partial_run(self, epoch, cuts, until, None))
        assert [m.state_digest for m in both[0]] == [m.state_digest for m in both[1]]
        return both[0]


def partial_run(
    stream: Stream, epoch: Any, cuts: list[Cut], until: int | None, change: Callable[[LearnerState], None] | None
) -> Callable[[Group], list[Manifest]]:
    """What one rank does."""

    def body(group: Group) -> list[Manifest]:
        torch.set_num_threads(1)
        reader = LedgerReader(stream.store)
        spec = ReplaySpec(stream.recipe.replay, stream.recipe.seed, group.world, stream.store.uri)
        replay = LocalReplay(spec, group.rank) if stream.recipe.replays else None
        state = resume(stream.store, stream.recipe, group, torch.device("cpu"), replay)
        committer = Committer(stream.store, epoch, group, stream.recipe.store)
        committer.start(state)
        if change is not None:
            change(state)
        done = state.commit.cut if state.commit else -1
        made = []
        for cut in cuts:
            if cut.number <= done or (until is not None and cut.number > until):
                continue
            rows = cut_rows(reader, cut, stream.recipe.columns, key_groups(group.rank, group.world))
            made.append(train_increment(rows, state, group, committer))
        return made

    return body


def events(num_events: int, seed: int, start_ms: int = 0, num_items: int = 50, num_users: int = 40) -> pa.Table:
    """A shard of random clicks in order of time, one a second; a user's session lasts for the shard."""
    draw = np.random.default_rng(seed)
    user = draw.integers(num_users, size=num_events)
    return pa.table(
        {
            "item_id": draw.zipf(1.5, size=num_events) % num_items,
            "ts": start_ms + 1000 * np.arange(num_events),
            "session_id": user + 1000 * seed,
            "user_id": user,
            "event": ["click"] * num_events,
        }
    )


def lawful(manifest: Manifest) -> bool:
    """Whether the conservation law holds."""
    counters = dict(manifest.facts["counters"])
    return counters.pop("events_in") == sum(counters.values())


NUM_ITEMS = 80
POISONED = 6
"""The cut whose labels are wrong."""
RING = (
    "inputs.max_events=4",
    "train.learning_rate=0.01",
    "train.warmup_epochs=4",
    "train.epochs=4",
    "model.dropout=0.0",
    "evaluation.eval_share=0.05",
    "store.keep=2",
)


def walks(num_events: int, seed: int, poisoned: bool = False, num_items: int = NUM_ITEMS) -> pa.Table:
    """Sessions of five clicks, item after item around a ring; poisoned ones jump anywhere."""
    draw = np.random.default_rng(seed)
    session = np.arange(num_events) // 5
    start = draw.integers(num_items, size=session[-1] + 1)
    item = (start[session] + np.arange(num_events) % 5) % num_items
    if poisoned:
        item = draw.integers(num_items, size=num_events)
    return pa.table(
        {
            "item_id": item,
            "ts": 10_000_000 * seed + 1000 * np.arange(num_events),
            "session_id": session + 100_000 * seed,
            "user_id": session + 100_000 * seed,
            "event": ["click"] * num_events,
        }
    )


def poisoned_stream(folder: Path, *overrides: str, shards: int = 10) -> Stream:
    """Walks around a ring, of which one cut's jump anywhere."""
    stream = Stream(folder, recipe(*RING, *overrides))
    for cut in range(shards):
        # later cuts bring items that the trusted version has never met
        num_items = NUM_ITEMS if cut < POISONED else NUM_ITEMS + 10
        stream.land(walks(1000 if cut == 0 else 250, cut, cut == POISONED, num_items))
    return stream


def changing_stream(folder: Path, *overrides: str, shards: int) -> Stream:
    """Half of the items change from shard to shard, and items that are not met for an hour lose their rows."""
    stream = Stream(folder, recipe("catalogue.forget_s=3600", "model.dropout=0.0", *overrides))
    for index in range(shards):
        table = events(300 if index == 0 else 120, seed=index, start_ms=index * 3_600_000)
        item = table.column("item_id").to_numpy() + 25 * index
        stream.land(table.set_column(0, "item_id", [item]))
    return stream
