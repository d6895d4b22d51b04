"""A log through production's own ledger, rows and increment in one process: for benchmarks and a first look.

No Ray, no wandb: the same code as a run's, with a group of one, in a temporary folder.
"""

import resource
import tempfile
from collections.abc import Callable, Iterator

import torch

from headrace.clock import monotonic_s
from headrace.commit.manifest import Manifest
from headrace.config.recipe import Recipe, StoreConfig, SyntheticConfig
from headrace.errors import ConfigError
from headrace.evaluation.prequential import Queries
from headrace.feed.items import ItemsFolder, ItemsLog, items_landing
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, ShardSource
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.replayer import Replayer
from headrace.feed.rows import cut_rows
from headrace.feed.synthetic import SyntheticStream
from headrace.records import KEY_GROUPS, CutRows
from headrace.replay.client import LocalReplay, ReplaySpec
from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.train import questions
from headrace.train.committer import Committer
from headrace.train.group import Solo
from headrace.train.increment import train_increment
from headrace.train.intake import take
from headrace.train.state import LearnerState, fresh
from headrace.train.step import repeatable
from headrace.train.times import believed_times


def replay(
    recipe: Recipe,
    device: torch.device,
    last_cut: int | None = None,
    change: Callable[[CutRows, LearnerState], CutRows] = lambda part, state: part,
    store: Store | None = None,
) -> Iterator[Manifest]:
    """Replay ``feed.path`` as ``feed.replay`` says, increment after increment, up to ``last_cut``.

    With ``feed.synthetic`` it is that stream, a shard after every increment. ``change`` sees each cut's rows before
    they are taken. Commits go to ``store``, by default a temporary one. ConfigError where there is nothing to replay.
    """
    repeatable()
    group = Solo()
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        store, landing = store or Store(f"{folder}/store"), Landing(f"{folder}/landing")
        epoch = take_epoch(store)
        replay = LocalReplay(ReplaySpec(recipe.replay, recipe.seed, 1, store.uri), 0) if recipe.replays else None
        state = fresh(recipe, group, device, replay)
        committer = Committer(store, epoch, group, StoreConfig(keep=2, keep_s=0.0))
        writer = LedgerWriter.open(store, epoch)
        reader = LedgerReader(store, epoch.number)
        side = items_landing(recipe.feed, f"{folder}/items")
        items = None if side is None else ItemsFolder(side, recipe.catalogue.attributes)
        source = _source(recipe, landing, side)
        keeper = Keeper(recipe.feed, recipe.columns, landing, writer, last_cut=last_cut, items=items)
        done = -1
        while last_cut is None or done < last_cut:
            now_s = monotonic_s() if recipe.feed.synthetic is None else _due_s(recipe.feed.synthetic, done + 1)
            landed = source.step(now_s, keeper.settled_files(done))
            polled = keeper.poll(monotonic_s(), done)
            if source.exhausted and not (landed or polled.unsettled or polled.shards or polled.cuts):
                return
            for cut in polled.cuts:
                part = cut_rows(reader, cut, recipe.columns, range(KEY_GROUPS))
                yield train_increment(change(part, state), state, group, committer)
                done = cut.number


def _source(recipe: Recipe, landing: Landing, items: Landing | None) -> ShardSource:
    feed = recipe.feed
    if feed.synthetic is not None:
        return SyntheticStream(feed.synthetic, recipe.seed, landing, items)
    if feed.replay is None or feed.path is None:
        raise ConfigError("this benchmark replays a log: the recipe needs [feed.replay], and feed.path its folder")
    told = None if items is None or feed.items_path is None else ItemsLog(Landing(feed.items_path), items)
    return Replayer(feed.replay, recipe.columns, Landing(feed.path), landing, feed.warmup_shards, told)


def _due_s(config: SyntheticConfig, shard: int) -> float:
    """A clock on which this shard of the synthetic stream is just due."""
    return shard * config.shard_interval_s * (1.0 + 1e-9)


def queries_of(part: CutRows, state: LearnerState) -> Queries:
    """What the next increment will ask before it trains on these rows; for what ``replay`` hands to ``change``."""
    state.catalogue.admit(part.item_I)
    times = believed_times(part, state.watermark_ms, state.recipe.feed, Solo())
    intake = take(part.rows, state.catalogue, state.history, state.seen, state.recipe, times)
    return questions.queries(intake, state.recipe.inputs)


def peak_mb() -> float:
    """The most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
