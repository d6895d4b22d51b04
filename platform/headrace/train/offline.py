"""A log through production's own ledger, rows and increment in one process: for benchmarks and a first look.

No Ray, no wandb: the same code as a run's, with a group of one, in a temporary folder or in one that stays.
"""

import resource
import tempfile
from collections.abc import Callable, Iterator

import torch

from headrace.clock import Stopwatch, monotonic_s
from headrace.commit.manifest import Manifest
from headrace.config.feed import SyntheticConfig
from headrace.config.recipe import Recipe
from headrace.config.run import StoreConfig
from headrace.errors import ConfigError
from headrace.evaluation.prequential import Queries, Scored
from headrace.feed.items import ItemsFolder, ItemsLog, items_landing
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, ShardSource
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.replayer import Replayer
from headrace.feed.rows import cut_rows
from headrace.feed.synthetic import SyntheticStream
from headrace.records import KEY_GROUPS, CutRows
from headrace.replay.client import LocalReplay, Replay, ReplaySpec
from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.train import questions
from headrace.train.checkpoint import Checkpoint
from headrace.train.committer import Committer
from headrace.train.group import Solo
from headrace.train.increment import train_increment
from headrace.train.intake import Fate, take
from headrace.train.state import LearnerState, resume
from headrace.train.step import repeatable
from headrace.train.times import believed_times


class Learner:
    """One learner in this process, from the newest commit of its store on; it keeps few commits.

    ``replay`` takes the place of the recipe's own.
    """

    def __init__(self, recipe: Recipe, device: torch.device, store: Store, replay: Replay | None = None) -> None:
        repeatable()
        self.epoch = take_epoch(store)
        self._group = Solo()
        if replay is None and recipe.replays:
            replay = LocalReplay(ReplaySpec(recipe.replay, recipe.seed, 1, store.uri), 0)
        self.state = resume(store, recipe, self._group, device, replay)
        self._committer = Committer(store, self.epoch, self._group, StoreConfig(keep=2, keep_s=0.0))
        self._committer.start(self.state)

    @property
    def newest_cut(self) -> int:
        """The cut of the newest commit; -1 before the warm-up."""
        return -1 if self.state.commit is None else self.state.commit.cut

    def train(
        self,
        part: CutRows,
        on_scored: Callable[[Scored], None] | None = None,
        watch: Stopwatch | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Manifest:
        """One increment; see ``train_increment``."""
        return train_increment(part, self.state, self._group, self._committer, watch, on_scored, checkpoint)


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
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        store, landing = store or Store(f"{folder}/store"), Landing(f"{folder}/landing")
        learner = Learner(recipe, device, store)
        writer = LedgerWriter.open(store, learner.epoch)
        reader = LedgerReader(store, learner.epoch.number)
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
                yield learner.train(change(part, learner.state))
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


def queries_of(part: CutRows, state: LearnerState, fate: Fate = Fate.TRAINED) -> Queries:
    """What the next increment will ask before it trains on these rows, or what those of another fate would ask."""
    state.catalogue.admit(part.item_I)
    times = believed_times(part, state.watermark_ms, state.recipe.feed, Solo())
    intake = take(part.rows, state.catalogue, state.history, state.seen, state.recipe, times, part.cut.window)
    return questions.queries(intake, state.recipe.inputs, fate)


def peak_mb() -> float:
    """The most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
