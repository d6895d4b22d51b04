"""Starts a run, keeps it going, and ends it cleanly: the process behind ``headrace run``.

One worker group lives on and increments flow through it. When it or its controller dies, training begins again from the
newest commit under a new epoch; nothing ever restarts into the middle of state, so Ray's own retries are off. Stopping
is a record in the ledger, after which every rank's dataset ends: SIGTERM and Ctrl-C write it, and so does the end of a
replayed log.
"""

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from headrace.clock import monotonic_s
from headrace.config.load import dump_recipe
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError, HeadraceError, TrainingError
from headrace.feed.items import ItemsLog, items_landing
from headrace.feed.landing import Landing, ShardSource
from headrace.feed.oracle import Oracle
from headrace.feed.replayer import Replayer
from headrace.feed.synthetic import SyntheticStream
from headrace.host import check_labels, signals, start_ray, stop_ray, unplaced
from headrace.store.fence import Epoch, StoreLock, take_epoch
from headrace.store.store import Store
from headrace.tracking.console import Observer
from headrace.tracking.report import Requests
from headrace.tracking.samples import Sample
from headrace.train.example import curl
from headrace.train.feeder import Feeder, LandingLog
from headrace.train.follower import Follower, Tracker

_log = logging.getLogger(__name__)
_WAIT_S = 0.1
_FIXED_SECTIONS = ("seed", "columns", "inputs", "model", "experts", "methods", "objective", "replay")
_FIXED_FEED = ("path", "cut", "replay", "synthetic", "warmup_shards")
_LAST_ANSWER_S = 5.0
"""How long the end of a run waits for the client to meet the last version."""


class Serving(Protocol):
    """Replicas that answer from the store, and a client that asks them. Handed in by the command line."""

    def check(self, recipe: Recipe) -> None:
        """Before anything is started: ConfigError where it could not be, such as for a port that is taken."""
        ...

    def start(self, recipe: Recipe, run_dir: Path) -> str:
        """Start replicas and client; returns the address. Ray is running; there may be no version yet."""
        ...

    def requests(self, newest_versions: int | None = None) -> Requests:
        """What the client has met so far, earlier starts of this run included; see ``Requests.copy``."""
        ...

    def samples(self, recipe: Recipe) -> Sequence[Sample]:
        """What the newest version answers to those who came last; StoreError where it cannot be read."""
        ...

    def stop(self) -> None:
        """Let requests end, then stop both."""
        ...


def run(
    recipe: Recipe,
    observer: Observer,
    serving: Serving | None,
    source: ShardSource | None = None,
    tracker: Tracker | None = None,
) -> int:
    """Train until the stream ends or a signal comes; the exit code. HeadraceError when the run cannot go on.

    ``source`` lands shards in the run's own folder, in place of what the recipe names.
    """
    run_dir = Path(recipe.run.dir).expanduser().absolute()
    recipe = _absolute(recipe, run_dir)
    landing = _landing(recipe, run_dir)
    source = source or _source(recipe, landing)
    _check_cpus(recipe)
    check_labels(recipe.run.ray_address, _labels(recipe))
    if serving is not None:
        serving.check(recipe)
    run_dir.mkdir(parents=True, exist_ok=True)
    store = Store(recipe.store_uri)
    with StoreLock(store), ExitStack() as stack:
        _keep_recipe(run_dir / "recipe.json", recipe)
        _log_to_file(run_dir / "run.log", stack)
        _Run(recipe, run_dir, store, observer, serving, landing, source, tracker).go(stack)
    return 0


class _Run:
    """What one call of ``run`` holds."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        store: Store,
        observer: Observer,
        serving: Serving | None,
        landing: Landing,
        source: ShardSource | None,
        tracker: Tracker | None,
    ) -> None:
        self._recipe = recipe
        self._run_dir = run_dir
        self._store = store
        self._observer = observer
        self._serving = serving
        self._landing = landing
        self._source = source
        self._tracker = tracker
        self._landings = LandingLog(run_dir / "landings.jsonl")
        self._feeder: Feeder | None = None
        self._stopping = threading.Event()
        self._untried: str | None = None
        """Where replicas answer, until a question to ask them was shown."""

    def go(self, stack: ExitStack) -> None:
        """Everything, in order of start; the stack undoes it backwards."""
        if self._tracker is not None:  # it opens while Ray starts
            self._tracker.start(self._recipe, self._run_dir)
        began_s = monotonic_s()
        start_ray(self._recipe.run.ray_address, self._recipe.run.num_cpus)
        stack.callback(stop_ray)
        stack.enter_context(signals(self._ask_to_stop))
        self._observer.phase("Ray started", monotonic_s() - began_s)
        for labels in unplaced(_labels(self._recipe)):
            self._observer.notice(f"no node has the labels {labels} yet: what asks for them waits for one")
        follower = Follower(
            self._store,
            self._run_dir / "report.json",
            self._observer,
            self._landings,
            self._serving.requests if self._serving else None,
            self._backlog,
            self._tracker,
            None if self._recipe.feed.synthetic is None else Oracle(self._recipe.feed.synthetic, self._recipe.seed),
            None if self._serving is None else partial(self._serving.samples, self._recipe),
        )
        follower.start()
        with ExitStack() as served:  # whatever happens, replicas end first and the last report is written
            served.push(self._end_tracking)
            served.callback(follower.close)
            if self._serving is not None:
                served.callback(self._serving.stop)
                began_s = monotonic_s()
                self._untried = self._serving.start(self._recipe, self._run_dir)
                self._observer.phase(f"replicas started at {self._untried}", monotonic_s() - began_s)
            if self._source is None and not self._landing.list_new(()):
                self._observer.notice(f"waiting for the first shard in {self._landing.uri}")
            self._supervise(follower)
            follower.settle(_LAST_ANSWER_S)
        for line in follower.told_samples():
            self._observer.notice(line)
        self._observer.finished(self._summary(follower))

    def _supervise(self, follower: Follower) -> None:
        """Start training, and start it again when it dies, until it ends of itself."""
        failures, newest = 0, -1
        while not self._stopping.is_set():
            began_s = monotonic_s()
            epoch = take_epoch(self._store)
            feeder = Feeder(
                self._recipe,
                self._store,
                epoch,
                self._landing,
                self._source,
                self._landings,
                self._observer.notice,
            )
            self._feeder = feeder
            follower.follow_epoch(epoch.number)
            feeder.start()
            error = self._train(epoch, feeder, follower, began_s)
            feeder.close()
            if (
                own := feeder.error or follower.error
            ) is not None:  # ours, not a worker's: starting again mends nothing
                raise own
            if error is None or self._stopping.is_set():
                return
            _log.error("training stopped after cut %d", feeder.newest_commit, exc_info=error)
            if isinstance(error, HeadraceError):
                raise error
            failures = 1 if feeder.newest_commit > newest else failures + 1
            newest = feeder.newest_commit
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            if failures > self._recipe.run.max_restarts:
                raise TrainingError(
                    f"training failed {failures} times after cut {newest} without a commit in between; the last time: "
                    f"{reason}. The whole story is in {self._run_dir / 'run.log'}; the store is as that commit left it"
                )
            self._observer.notice(f"training stopped after cut {newest} ({reason}); it begins again from there")

    def _train(self, epoch: Epoch, feeder: Feeder, follower: Follower, began_s: float) -> Exception | None:
        """One worker group for the whole stream, or one for each increment; None where the stream has ended."""
        if self._recipe.feed.mode == "unbounded":
            return self._watch(
                _Fit(self._recipe, self._run_dir, epoch, feeder.newest_commit), feeder, follower, began_s
            )
        while True:
            after_cut = feeder.newest_commit
            while feeder.newest_cut <= after_cut:
                if feeder.ended or (error := feeder.error or follower.error) is not None:
                    return error if not feeder.ended else None
                if self._stopping.wait(_WAIT_S):
                    feeder.stop()
            fit = _Fit(self._recipe, self._run_dir, epoch, after_cut, after_cut + 1)
            if (error := self._watch(fit, feeder, follower, began_s)) is not None:
                return error
            while feeder.newest_commit <= after_cut and feeder.error is None:
                self._stopping.wait(_WAIT_S)

    def _watch(self, fit: "_Fit", feeder: Feeder, follower: Follower, began_s: float) -> Exception | None:
        """Wait for the end of one ``fit``, whoever ends it; None where that was the end of the stream."""
        told = False
        fit.start()
        while fit.is_alive():
            fit.join(_WAIT_S)
            if self._stopping.is_set():
                feeder.stop()
            if not told and feeder.newest_commit > fit.after_cut:
                self._observer.phase("workers up, first increment committed", monotonic_s() - began_s)
                told = True
            if told and self._untried is not None and (command := curl(self._store, self._untried)) is not None:
                self._observer.notice(f"ask it: {command}")
                self._untried = None
            if (error := feeder.error or follower.error) is not None:
                return error
        return _cause(fit.error)

    def _end_tracking(self, error: object, *_: object) -> None:
        if self._tracker is not None:
            self._tracker.close(self._run_dir / "report.json", failed=error is not None)

    def _ask_to_stop(self) -> None:
        if self._stopping.is_set():
            self._observer.notice("stopping at once; the newest commit stands")
            os._exit(130)
        self._observer.notice("stopping: the increment under way is finished first (once more: at once)")
        self._stopping.set()

    def _backlog(self) -> int:
        return 0 if self._feeder is None else self._landings.num_waiting

    def _summary(self, follower: Follower) -> str:
        increments, newest = follower.increments, follower.increments.newest
        if newest is None:
            return "ended before the first commit"
        version, counters = max(increments.cut_of, default=None), newest.counters
        num_aside = counters["quarantined"] + counters["late_set_aside"]
        page = self._run_dir / "report.html"
        aside = f"\n{num_aside} rows are set aside: headrace quarantine list --store {self._store.uri}"
        return (
            f"{len(increments)} increments, {counters['events_in']} events in, {counters['trained_once']} trained once"
            f", version {version}, state {newest.state_digest[:12]}\nreport: {page}, figures in report.json"
            f"{aside if num_aside else ''}"
        )


class _Fit(threading.Thread):
    """One life of the worker group. A thread, so that signals and other threads' errors are noticed meanwhile."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, epoch: Epoch, after_cut: int, last_cut: int | None = None
    ) -> None:
        super().__init__(name="fit", daemon=True)
        self.after_cut = after_cut
        self.last_cut = last_cut
        self.error: Exception | None = None
        self._recipe = recipe
        self._run_dir = run_dir
        self._epoch = epoch
        self._actor: Any = None

    def run(self) -> None:
        """Runs in the thread: blocks until the stream ends or a worker dies."""
        try:
            self._trainer().fit()
        except Exception as error:  # noqa: BLE001 (a thread's edge: the supervisor decides)
            self.error = error

    def _trainer(self) -> Any:  # noqa: ANN401 (ray's TorchTrainer, which is not typed)
        from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from headrace.feed.stream import StreamSpec, make_dataset
        from headrace.train.worker import WorkerSpec, work

        run, feed = self._recipe.run, self._recipe.feed
        stream = StreamSpec(
            self._recipe.store_uri,
            self._epoch.number,
            self.after_cut,
            self._recipe.columns,
            feed.block_bytes,
            last_cut=self.last_cut,
            labels=run.read_labels,
        )
        name = f"{run.name}-{self._epoch.number}" + (f"-{self.last_cut}" if self.last_cut is not None else "")
        return TorchTrainer(
            partial(work, WorkerSpec(dump_recipe(self._recipe), self._epoch, stream, self._replay())),
            scaling_config=ScalingConfig(
                num_workers=run.num_workers, use_gpu=run.use_gpu, label_selector=run.train_labels or None
            ),
            run_config=RunConfig(
                name=name,  # one that Train has met before would be resumed
                storage_path=str(self._run_dir / "train"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
            datasets={
                f"feed-{rank}": partial(make_dataset, rank, run.num_workers, stream) for rank in range(run.num_workers)
            },
            dataset_config=DataConfig(datasets_to_split=[]),
        )

    def _replay(self) -> tuple[Any, Any] | None:
        """Spec and actor of this life's replay, so that no worker of an earlier one can touch it."""
        from headrace.replay.actor import start_actor
        from headrace.replay.client import ReplaySpec

        if not self._recipe.replays:
            return None
        spec = ReplaySpec(self._recipe.replay, self._recipe.seed, self._recipe.run.num_workers, self._recipe.store_uri)
        self._actor = start_actor(spec, labels=self._recipe.run.replay_labels)  # it lives as long as this handle
        return spec, self._actor


def _cause(error: Exception | None) -> Exception | None:
    """Our own error inside those that Ray wraps around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HeadraceError):
            return seen
        for inner in getattr(seen, "worker_failures", {}).values():
            if isinstance(found := _cause(inner), HeadraceError):
                return found
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def _absolute(recipe: Recipe, run_dir: Path) -> Recipe:
    """Workers run in folders of their own, so every local path is made absolute once."""

    def absolute(uri: str | None) -> str | None:
        return uri if uri is None or "://" in uri else str(Path(uri).expanduser().absolute())

    return recipe.model_copy(
        update={
            "run": recipe.run.model_copy(update={"dir": str(run_dir)}),
            "feed": recipe.feed.model_copy(
                update={"path": absolute(recipe.feed.path), "items_path": absolute(recipe.feed.items_path)}
            ),
            "store": recipe.store.model_copy(update={"uri": absolute(recipe.store.uri)}),
        }
    )


def _keep_recipe(path: Path, recipe: Recipe) -> None:
    """Save the resolved recipe beside the run; ConfigError where the run's state was made with another one."""
    if path.exists():
        before, now = (_fixed(json.loads(text)) for text in (path.read_text(), dump_recipe(recipe)))
        if changed := [key for key in now if before.get(key) != now[key]]:
            raise ConfigError(
                f"{path.parent} holds a run with other settings ({', '.join(changed)}): its state cannot go on with "
                "these. Give this run a folder of its own with run.dir=..., or use the settings in recipe.json"
            )
    path.write_text(dump_recipe(recipe))


def _fixed(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a run's state was made with, by key; the rest may change between two starts."""
    fixed = {f"feed.{key}": recipe["feed"].get(key) for key in _FIXED_FEED}
    for section in _FIXED_SECTIONS:
        value = recipe[section]
        fixed |= (
            {f"{section}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {section: value}
        )
    return fixed


def _check_cpus(recipe: Recipe) -> None:
    run = recipe.run
    replicas = recipe.serve.most_replicas if recipe.serve.enabled else 0
    wanted = math.ceil(run.num_workers * 1.25) + replicas + 1
    if run.ray_address == "local" and wanted > run.num_cpus:
        raise ConfigError(
            f"run.num_cpus={run.num_cpus} is too few for {run.num_workers} workers, their readers and {replicas} "
            f"replicas: set run.num_cpus to {wanted} or more; they are logical, so more than the machine has is fine"
        )


def _labels(recipe: Recipe) -> list[Mapping[str, str]]:
    run, serve = recipe.run, recipe.serve
    return [run.train_labels, run.replay_labels, run.read_labels, *([serve.labels] if serve.enabled else [])]


def _landing(recipe: Recipe, run_dir: Path) -> Landing:
    feed = recipe.feed
    if feed.replay is not None or feed.synthetic is not None:
        return Landing(str(run_dir / "landing"))
    if feed.path is None:
        raise ConfigError("feed.path is not set: name the folder in which shards land, as in feed.path=/data/shards")
    return Landing(feed.path)


def _source(recipe: Recipe, landing: Landing) -> ShardSource | None:
    feed = recipe.feed
    if feed.synthetic is not None:
        return SyntheticStream(feed.synthetic, recipe.seed, landing, items_landing(feed, f"{recipe.run.dir}/items"))
    if feed.replay is None:
        return None
    if feed.path is None:
        raise ConfigError("feed.path is not set: name the folder of the log to replay, as in feed.path=/data/globo")
    if "://" not in feed.path and not Path(feed.path).is_dir():
        raise ConfigError(f"feed.path={feed.path} is not a folder: name the folder of the log to replay")
    own = items_landing(feed, f"{recipe.run.dir}/items")
    items = None if own is None or feed.items_path is None else ItemsLog(Landing(feed.items_path), own)
    return Replayer(feed.replay, recipe.columns, Landing(feed.path), landing, feed.warmup_shards, items)


def _log_to_file(path: Path, stack: ExitStack) -> None:
    """Log lines go to a file, not between the rows; so does what Ray itself prints, on either stream.

    The observer holds the terminal's own stream since before.
    """
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    stack.callback(root.removeHandler, handler)
    assert handler.stream is not None
    stack.enter_context(redirect_stdout(handler.stream))
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(handler.stream.fileno(), 2)
    stack.callback(os.close, terminal)
    stack.callback(os.dup2, terminal, 2)
