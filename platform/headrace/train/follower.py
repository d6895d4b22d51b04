"""The driver's third thread: follows the commits, prints a row for each, and keeps the report and its page up to date.

A row waits for its freshness, which is known once a client has met an answer from every replica; it does not wait for
longer than the commit after the next.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headrace.clock import monotonic_s, train_s, wall_ms
from headrace.commit.chain import Chain
from headrace.commit.summary import Summary, summary_of
from headrace.config.recipe import Recipe
from headrace.errors import StoreError
from headrace.feed.oracle import Oracle
from headrace.memory import trim
from headrace.store.store import Store
from headrace.tracking.console import IncrementRow, Observer
from headrace.tracking.increments import Increments
from headrace.tracking.page import build_page, write_page
from headrace.tracking.report import (
    Requests,
    build_report,
    freshness_of,
    weighted_quantile,
    write_report,
)
from headrace.tracking.samples import Sample, told
from headrace.train.feeder import LandingLog

_log = logging.getLogger(__name__)
_POLL_S = 0.05
_REPORT_SHARE = 0.02  # of the driver's time that may go into writing the report while the run goes on
_MOST_WAITING = 2  # rows
_RECENT = 64  # versions of each replica that are looked at for a row's freshness
_GAP_S = 5.0  # without a commit, until it is looked whether some have come and gone


class Tracker(Protocol):
    """Mirrors a run somewhere else. Handed in by the command line; never raises and never makes anybody wait."""

    @property
    def folder(self) -> Path | None:
        """Where it keeps this start's mirror on this machine; None where there is none, or none yet."""
        ...

    def start(self, recipe: Recipe, run_dir: Path) -> None:
        """The run begins; ``recipe`` is the resolved one."""
        ...

    def increment(self, commit: Summary, freshness_s: float | None) -> None:
        """An increment of this start has been committed."""
        ...

    def close(self, report: Path, failed: bool) -> None:
        """The run has ended and its report is written; this alone may wait."""
        ...


class Follower:
    """Follows one store for the whole run, across restarts of training."""

    def __init__(
        self,
        store: Store,
        report: Path,
        observer: Observer,
        landings: LandingLog,
        requests: Callable[[int | None], Requests] | None,
        backlog: Callable[[], int],
        tracker: Tracker | None = None,
        oracle: Oracle | None = None,
        samples: Callable[[], Sequence[Sample]] | None = None,
    ) -> None:
        self._chain = Chain(store)
        self._report = report
        self._observer = observer
        self._landings = landings
        self._is_asked = requests is not None
        self._requests: Callable[[int | None], Requests] = requests or (lambda _: Requests())
        self._backlog = backlog
        self._tracker = tracker
        self._oracle = oracle
        self._oracle_of: dict[int, float] = {}
        """By cut: the recall that the stream's own law would have had."""
        self._sample = samples
        self._samples: list[dict[str, Any]] = []
        """What the newest version answers to some; known at the end."""
        self.increments = Increments(self._chain.summaries())
        self._waiting: deque[Summary] = deque()
        self._epoch = 0
        self._found_s = monotonic_s()
        self._lock = threading.RLock()
        self._next_report_s = 0.0
        self._report_due = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def settle(self, patience_s: float) -> None:
        """Wait until every row is printed, its freshness known, for at most ``patience_s``."""
        end_s = monotonic_s() + patience_s
        while self._waiting and monotonic_s() < end_s and self._thread.is_alive():
            self._closed.wait(_POLL_S)

    def close(self) -> None:
        """Print what waits, ask for samples, write the last report, end."""
        self._closed.set()
        self._thread.join()
        self._read_new()
        self._print(everything=True)
        self._ask_samples()
        self._report_now(now_s=None)

    def told_samples(self) -> list[str]:
        """A few sample recommendations, to be printed after ``close``."""
        return told(self._samples, max(self.increments.cut_of, default=None))

    def _ask_samples(self) -> None:
        if self._sample is None or not self.increments.cut_of:
            return
        try:
            self._samples = [asdict(sample) for sample in self._sample()]
        except (OSError, StoreError) as error:  # the report is worth writing without them
            _log.warning("no sample recommendations: %s", error)

    def _follow(self) -> None:
        try:
            while not self._closed.wait(_POLL_S):
                self._report_due |= self._read_new()
                if self._report_due:
                    self._write_report()
                self._print(everything=False)
        except Exception as error:  # noqa: BLE001 (a thread's edge: the driver raises it)
            self.error = error

    def follow_epoch(self, epoch: int) -> None:
        """Training has started again; what the epoch before committed last is read by one listing."""
        with self._lock:
            self._add(self._chain.summaries(self._newest))
            self._epoch = epoch

    @property
    def _newest(self) -> int:
        return self.increments.cuts[-1] if len(self.increments) else -1

    def _read_new(self) -> bool:
        """Commits of this epoch beyond the last one known; asks for the next name and lists nothing, as a rule.

        A thread that was held up for long may find that retention has removed the next one: the journal has it then.
        """
        with self._lock:
            before = self._newest
            try:
                while self._chain.has(self._newest + 1, self._epoch):
                    self._add([summary_of(self._chain.read(self._newest + 1, self._epoch))])
                is_late = monotonic_s() - self._found_s > _GAP_S
            except FileNotFoundError:
                is_late = True
            if is_late:
                self._add(self._chain.summaries(self._newest))
                self._found_s = monotonic_s()
            return self._newest > before

    def _add(self, commits: Sequence[Summary]) -> None:
        with self._lock:
            for commit in commits:
                self.increments.add(commit)
                self._found_s = monotonic_s()
            self._waiting.extend(commits)

    def _print(self, everything: bool) -> None:
        while self._waiting:
            commit = self._waiting[0]
            requests = self._requests(_RECENT)
            freshness_s = self._freshness(commit, requests)
            known = freshness_s is not None or commit.version is None or not self._is_asked
            if not (known or everything or len(self._waiting) > _MOST_WAITING):
                return
            self._waiting.popleft()
            if self._tracker is not None:
                self._tracker.increment(commit, freshness_s)
            self._observer.increment(self._row(commit, freshness_s, requests.failed))

    def _freshness(self, commit: Summary, requests: Requests) -> float | None:
        """Event-weighted median over the cut's shards; None while some replica has not answered with it."""
        landings = self._landings.of_cut(commit.cut)
        if not landings:
            return None
        fresh_L = freshness_of(self.increments.cut_of, requests, landings)
        rows_L = np.array([landing.rows for landing in landings], dtype=np.float64)
        fresh_s = weighted_quantile(fresh_L, rows_L, 0.5)
        return fresh_s if fresh_s is not None and np.isfinite(fresh_s) else None

    def _row(self, commit: Summary, freshness_s: float | None, failed_requests: int) -> IncrementRow:
        def recall(figures: Mapping[str, float | None] | None) -> float | None:
            return None if figures is None else figures["recall@20"]

        return IncrementRow(
            cut=commit.cut,
            events=commit.events,
            queries=commit.queries,
            recall_live=recall(commit.scores["live"]),
            recall_frozen=recall(commit.scores["frozen"]),
            recall_experts={name: recall(figures) for name, figures in commit.expert_scores.items()},
            freshness_s=freshness_s,
            version=commit.version,
            verdict=commit.verdict,
            reason=commit.reason,
            failed_requests=failed_requests,
            backlog_shards=self._backlog(),
            train_s=train_s(commit.seconds),
            increment_s=commit.increment_s,
            faults=commit.faults,
        )

    def _write_report(self) -> None:
        began_s = monotonic_s()
        if began_s < self._next_report_s:
            return
        self._report_now(began_s)
        self._report_due = False
        self._next_report_s = began_s + (monotonic_s() - began_s) / _REPORT_SHARE

    def _best_recall(self, cut: int, oracle: Oracle) -> float | None:
        if cut not in self._oracle_of:
            recall = oracle.recall([landing.shard for landing in self._landings.of_cut(cut)])
            if recall is None:
                return None
            self._oracle_of[cut] = recall
        return self._oracle_of[cut]

    def _report_now(self, now_s: float | None) -> None:
        """The report and its page; without ``now_s`` the run has ended."""
        report = build_report(self.increments, self._requests(None), self._landings.records(), now_s)
        if self._oracle is not None:
            best = [self._best_recall(cut, self._oracle) for cut in self.increments.cuts]
            report["recall_at_20"]["oracle"] = self.increments.in_rows(
                [math.nan if one is None else one for one in best]
            )
        mirror = None if self._tracker is None else self._tracker.folder
        report["wandb_dir"] = None if mirror is None else str(mirror)
        report["samples"] = self._samples
        write_report(self._report, report)
        title, outcomes = self._report.absolute().parent.name, self.increments.outcomes()
        page = build_page(report, title, outcomes, as_of_ms=wall_ms(), is_running=now_s is not None)
        write_page(self._report.with_suffix(".html"), page)
        trim()
