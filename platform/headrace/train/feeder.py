"""The driver's two threads that move the stream on.

One lands shards, where the run has a source of its own; the other keeps the ledger and watches commits appear. Their
logic is in feed/; what is here is waiting, and telling others.
"""

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from headrace.clock import monotonic_s
from headrace.commit.chain import Chain
from headrace.config.recipe import Recipe
from headrace.errors import DataError
from headrace.feed.entries import Entry, Shard
from headrace.feed.items import ItemsFolder, items_landing
from headrace.feed.keeper import Keeper
from headrace.feed.landing import Landing, ShardSource
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.records import Cut
from headrace.store.fence import Epoch
from headrace.store.store import Store
from headrace.tracking.report import Landing as LandingRecord
from headrace.train.rollback import serve_again
from headrace.train.sweeper import Sweeper

_SOURCE_POLL_S = 0.01
_TOLD_FILES = 5


class LandingLog:
    """When each shard landed, in memory and beside the run, so that freshness survives a restart of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._landed: dict[str, tuple[float, int]] = {}
        self._taken: dict[int, dict[str, int]] = {}
        """Rows by shard, by the cut that took them."""
        self._taken_names: set[str] = set()
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                name, landed_s, rows = json.loads(line)
            except ValueError:  # a last line that a full disk or a kill cut short
                continue
            self._landed[name] = (landed_s, rows)

    @property
    def landed_s(self) -> dict[str, float]:
        """When each shard landed, on the monotonic clock."""
        with self._lock:
            return {name: landed_s for name, (landed_s, _) in self._landed.items()}

    def landed(self, name: str, landed_s: float, rows: int) -> None:
        """A shard has landed; the first word on it counts."""
        with self._lock:
            if name not in self._landed:
                self._landed[name] = (landed_s, rows)
                with self._path.open("a") as file:
                    file.write(json.dumps([name, landed_s, rows]) + "\n")

    def cut(self, name: str, cut: int, rows: int) -> None:
        """A cut has taken rows of this shard; it may be told before the landing is."""
        with self._lock:
            self._taken.setdefault(cut, {})[name] = rows
            self._taken_names.add(name)

    def is_taken(self, name: str) -> bool:
        """Whether a cut has taken rows of this shard."""
        with self._lock:
            return name in self._taken_names

    @property
    def num_waiting(self) -> int:
        """Shards that have landed, and of which no cut has taken a row."""
        with self._lock:
            return max(0, len(self._landed) - len(self._taken_names))

    def of_cut(self, cut: int) -> list[LandingRecord]:
        """The shards of one cut."""
        with self._lock:
            return self._of_cut(cut)

    def records(self) -> list[LandingRecord]:
        """What landed and which cut took it; shards that wait have none."""
        with self._lock:
            waiting = [
                LandingRecord(name, None, rows, landed_s)
                for name, (landed_s, rows) in self._landed.items()
                if name not in self._taken_names
            ]
            return [record for cut in self._taken for record in self._of_cut(cut)] + waiting

    def _of_cut(self, cut: int) -> list[LandingRecord]:
        return [
            LandingRecord(name, cut, rows, self._landed[name][0])
            for name, rows in self._taken.get(cut, {}).items()
            if name in self._landed
        ]


class Feeder:
    """Feeds one epoch. ``start`` it, ask ``newest_commit``, and ``stop`` it; errors of its threads end in ``error``."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        epoch: Epoch,
        landing: Landing,
        source: ShardSource | None,
        log: LandingLog,
        notice: Callable[[str], None],
    ) -> None:
        self._recipe = recipe
        self._epoch = epoch.number
        self._chain = Chain(store)
        self._landing = landing
        self._source = source
        self._log = log
        self._notice = notice
        self._told = 0
        self._serve_again = partial(serve_again, store, epoch)
        writer = LedgerWriter.open(store, epoch)
        if writer.state.rollback is not None:  # recorded by a run that may have died before it was served
            self._serve_again(writer.state.rollback)
        side = items_landing(recipe.feed, f"{recipe.run.dir}/items")
        items = None if side is None else ItemsFolder(side, recipe.catalogue.attributes)
        self._keeper = Keeper(
            recipe.feed, recipe.columns, landing, writer, last_cut=recipe.run.max_increments, items=items
        )
        latest = self._chain.latest()
        self.newest_commit = latest.cut if latest else -1
        """Cut of the newest commit; -1 before the first."""
        self.newest_cut = self._keeper.newest_cut
        self.backlog_rows = 0
        """Rows that have landed and that no cut has taken yet."""
        self.error: Exception | None = None
        self.ended = False
        """Everything that was to be trained has been committed, and the stop record is written."""
        self._names: dict[int, str] = {}
        self._sweeper = Sweeper(store, landing if source is not None and not recipe.feed.keep_landed else None)
        for entry in LedgerReader(store, epoch.number).entries():
            self._note(entry)
        for commit in self._chain.summaries():
            self._sweeper.committed(commit.cut, commit.verdict == "reject")
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._keep, name="ledger", daemon=True)]
        if source is not None:
            self._threads.append(threading.Thread(target=self._land, name="source", daemon=True))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask for the end: every rank stops after the newest cut."""
        self._stop.set()

    def close(self) -> None:
        """End the threads, whatever the stream is doing."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _land(self) -> None:
        assert self._source is not None
        try:
            while not (self._stop.is_set() or self._closed.is_set() or self._source.exhausted):
                committed_files = self._keeper.settled_files(self.newest_commit)
                for landed in self._source.step(monotonic_s(), committed_files):
                    self._log.landed(landed.name, landed.landed_s, landed.num_rows)
                self._closed.wait(_SOURCE_POLL_S)
        except Exception as error:  # noqa: BLE001 (a thread's edge: the driver raises it)
            self.error = self.error or error

    def _keep(self) -> None:
        try:
            while not self._closed.is_set():
                while self._chain.has(self.newest_commit + 1, self._epoch):
                    self.newest_commit += 1
                    verdict = self._chain.read(self.newest_commit, self._epoch).verdict
                    self._sweeper.committed(self.newest_commit, verdict == "reject")
                if not self.ended:
                    self._poll()
                self._closed.wait(self._recipe.feed.poll_s)
        except Exception as error:  # noqa: BLE001 (a thread's edge: the driver raises it)
            self.error = self.error or error

    def _poll(self) -> None:
        polled = self._keeper.poll(monotonic_s(), self.newest_commit)
        for aside in polled.quarantined:
            self._tell(f"{aside.uri} is set aside: {aside.reason}")
        for shard in polled.shards:
            if shard.dropped.rows:
                reasons = "; ".join(reason for reason, _ in shard.dropped.reasons)
                self._tell(f"{len(shard.dropped.rows)} rows of {shard.uri} are dropped: {reasons}")
        for release in polled.released:
            what = f"{release.uri} is looked at again" if release.uri else f"{release.num_rows} rows wait again"
            self._notice(f"number {release.of} of the quarantine is released: {what}")
        if polled.rollback is not None:
            self._serve_again(polled.rollback)
            self._notice(
                f"version {polled.rollback.to} is served again, as version {polled.rollback.version}, since somebody "
                "asked for it; at its next increment the learner goes back to it"
            )
        recorded: list[Entry] = [*polled.shards, *polled.cuts]
        for entry in recorded:
            self._note(entry)
        self.newest_cut = self._keeper.newest_cut
        self.backlog_rows = self._keeper.backlog_rows
        if self._stop.is_set() or (self.newest_commit >= self.newest_cut and self._is_over()):
            self._keeper.stop()
            self.ended = True

    def _is_over(self) -> bool:
        """Whether, with every cut committed, nothing more is to come."""
        last = self._recipe.run.max_increments
        if last is not None and self.newest_cut >= last:
            return True
        if self._source is None or not self._source.exhausted:
            return False
        if self._keeper.num_known < self._landing.num_landed():
            return False
        if self._keeper.backlog_rows and self.newest_cut < 0:
            raise DataError(
                f"the log has ended after {self._keeper.num_known} shards, and the warm-up wants feed.warmup_shards="
                f"{self._recipe.feed.warmup_shards} with rows: ask for fewer"
            )
        return self._keeper.backlog_rows == 0

    def _tell(self, aside: str) -> None:
        """The first few files with rows that cannot be used are named on the terminal, all of them in the log."""
        self._told += 1
        if self._told <= _TOLD_FILES:
            self._notice(aside)
        elif self._told == _TOLD_FILES + 1:
            self._notice("further files that cannot be used are named in run.log, and by headrace quarantine list")

    def _note(self, entry: Entry) -> None:
        """Tell the log which cut takes which shard, and when a shard of somebody else's landed."""
        self._sweeper.note(entry)
        if isinstance(entry, Shard):
            name = entry.uri.rsplit("/", 1)[-1]
            self._names[entry.number] = name
            seen_s = self._keeper.first_seen_s(entry.number)
            if self._source is None and seen_s is not None:
                self._log.landed(name, seen_s, entry.num_rows)
        elif isinstance(entry, Cut):
            for part in entry.ranges:
                name = self._names[part.shard]
                if not (part.released and self._log.is_taken(name)):  # rows put back had their freshness before
                    self._log.cut(name, entry.number, part.num_rows)
