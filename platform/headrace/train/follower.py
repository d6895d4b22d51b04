"""The driver's third thread: follows the commits, prints a row for each, and keeps ``report.json`` up to date.

A row waits for its freshness, which is known once a client has met an answer from every replica; it does not wait for
longer than the commit after the next.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from headrace.clock import monotonic_s
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.store.store import Store
from headrace.tracking.console import IncrementRow, Observer
from headrace.tracking.report import Answer, build_report, freshness_of, weighted_quantile, write_report
from headrace.train.feeder import LandingLog

_POLL_S = 0.05
_REPORT_SHARE = 0.02  # of the driver's time that may go into writing the report while the run goes on
_MOST_WAITING = 2  # rows
_RECENT = 200  # answers looked at for a row's freshness


class Follower:
    """Follows one store for the whole run, across restarts of training."""

    def __init__(
        self,
        store: Store,
        report: Path,
        observer: Observer,
        landings: LandingLog,
        answers: Callable[[], Sequence[Answer]] | None,
        backlog: Callable[[], int],
    ) -> None:
        self._chain = Chain(store)
        self._report = report
        self._observer = observer
        self._landings = landings
        self._is_asked = answers is not None
        self._answers: Callable[[], Sequence[Answer]] = answers or list
        self._backlog = backlog
        self.manifests = self._chain.manifests()
        self._waiting: deque[Manifest] = deque()
        self._epoch = 0
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
        """Print what waits, write the last report, end."""
        self._closed.set()
        self._thread.join()
        self._read_new()
        self._print(everything=True)
        write_report(self._report, build_report(self.manifests, self._answers(), self._landings.records()))

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
            after = self._newest
            self._add([self._chain.read(cut, older) for cut, older in self._chain.names() if cut > after])
            self._epoch = epoch

    @property
    def _newest(self) -> int:
        return self.manifests[-1].cut if self.manifests else -1

    def _read_new(self) -> bool:
        """Commits of this epoch beyond the last one known; asks for the next name and lists nothing."""
        with self._lock:
            before = self._newest
            while self._chain.has(self._newest + 1, self._epoch):
                self._add([self._chain.read(self._newest + 1, self._epoch)])
            return self._newest > before

    def _add(self, manifests: list[Manifest]) -> None:
        with self._lock:
            self.manifests.extend(manifests)
            self._waiting.extend(manifests)

    def _print(self, everything: bool) -> None:
        while self._waiting:
            manifest = self._waiting[0]
            freshness_s = self._freshness(manifest)
            known = freshness_s is not None or manifest.version is None or not self._is_asked
            if not (known or everything or len(self._waiting) > _MOST_WAITING):
                return
            self._waiting.popleft()
            self._observer.increment(self._row(manifest, freshness_s))

    def _freshness(self, manifest: Manifest) -> float | None:
        """Event-weighted median over the cut's shards; None while some replica has not answered with it."""
        landings = self._landings.of_cut(manifest.cut)
        answers = self._answers()[-_RECENT:]
        if not landings or not answers:
            return None
        fresh_L = freshness_of(self.manifests, answers, landings)
        rows_L = np.array([landing.rows for landing in landings], dtype=np.float64)
        fresh_s = weighted_quantile(fresh_L, rows_L, 0.5)
        return fresh_s if fresh_s is not None and np.isfinite(fresh_s) else None

    def _row(self, manifest: Manifest, freshness_s: float | None) -> IncrementRow:
        metrics, seconds = manifest.facts["metrics"], manifest.envelope.seconds

        def recall(figures: dict[str, float] | None) -> float | None:
            return None if figures is None else figures["recall@20"]

        return IncrementRow(
            cut=manifest.cut,
            events=manifest.facts["events"],
            queries=metrics["queries"],
            recall_live=recall(metrics["live"]),
            recall_frozen=recall(metrics["frozen"]),
            recall_experts={name: recall(figures) for name, figures in metrics["experts"].items()},
            freshness_s=freshness_s,
            version=manifest.version,
            verdict=manifest.verdict,
            reason=manifest.reason,
            failed_requests=sum(answer.failed for answer in self._answers()),
            backlog_shards=self._backlog(),
            train_s=seconds["train"],
            increment_s=sum(seconds.values()) - seconds["feed"],
            faults=metrics["faults"],
        )

    def _write_report(self) -> None:
        began_s = monotonic_s()
        if began_s < self._next_report_s:
            return
        landings = self._landings.records()
        write_report(self._report, build_report(self.manifests, self._answers(), landings, now_s=began_s))
        self._report_due = False
        self._next_report_s = began_s + (monotonic_s() - began_s) / _REPORT_SHARE
