"""A log through production's own ledger, rows and increment in one process: for benchmarks and a first look.

No Ray, no wandb: the same code as a run's, with a group of one, in a temporary folder.
"""

import resource
import tempfile
from collections.abc import Callable, Iterator

import torch

from headrace.clock import monotonic_s
from headrace.commit.manifest import Manifest
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.evaluation.prequential import Queries
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.replayer import Replayer
from headrace.feed.rows import cut_rows
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
) -> Iterator[Manifest]:
    """Replay ``feed.path`` as ``feed.replay`` says, increment after increment, up to ``last_cut``.

    ``change`` sees each cut's rows before they are taken. ConfigError where there is nothing to replay.
    """
    if recipe.feed.replay is None or recipe.feed.path is None:
        raise ConfigError("this benchmark replays a log: the recipe needs [feed.replay], and feed.path its folder")
    repeatable()
    group = Solo()
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        store, landing = Store(f"{folder}/store"), Landing(f"{folder}/landing")
        epoch = take_epoch(store)
        replay = LocalReplay(ReplaySpec(recipe.replay, recipe.seed, 1, store.uri), 0) if recipe.replays else None
        state, committer = fresh(recipe, group, device, replay), Committer(store, epoch, group, keep=1)
        writer = LedgerWriter.open(store, epoch)
        reader = LedgerReader(store, epoch.number)
        source = Replayer(
            recipe.feed.replay, recipe.columns, Landing(recipe.feed.path), landing, recipe.feed.warmup_shards
        )
        keeper = Keeper(recipe.feed, recipe.columns, landing, writer, last_cut=last_cut)
        done = -1
        while last_cut is None or done < last_cut:
            landed = source.step(monotonic_s(), keeper.settled_files(done))
            polled = keeper.poll(monotonic_s(), done)
            if source.exhausted and not (landed or polled.unsettled or polled.shards or polled.cuts):
                return
            for cut in polled.cuts:
                part = cut_rows(reader, cut, recipe.columns, range(KEY_GROUPS))
                yield train_increment(change(part, state), state, group, committer)
                done = cut.number


def queries_of(part: CutRows, state: LearnerState) -> Queries:
    """What the next increment will ask before it trains on these rows; for what ``replay`` hands to ``change``."""
    state.catalogue.admit(part.item_I)
    times = believed_times(part, state.watermark_ms, state.recipe.feed, Solo())
    intake = take(part.rows, state.catalogue, state.history, state.seen, state.recipe, times)
    return questions.queries(intake, state.recipe.inputs)


def peak_mb() -> float:
    """The most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
