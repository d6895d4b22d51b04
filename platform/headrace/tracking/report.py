"""``report.json``: a pure function of the commits, of what landed, and of the client's log, so it survives a kill.

Every figure is defined in docs/metrics.md. Shape legend: R replicas (in medians by row: rows), L landings, V
versions of one replica, C cuts.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.tracking.increments import Increments

_LEAVING_S = 5.0  # a replica that was silent for so long, while others answered, has left


@dataclass(frozen=True)
class Landing:
    """Rows of one shard that one cut took. Made by train/feeder.py from the ledger, read by the report."""

    shard: str
    cut: int | None
    """The cut that took these rows; None while they wait."""
    rows: int
    landed_monotonic_s: float
    """When the rename that made the shard visible returned."""


class Answer(Protocol):
    """What the report needs to know of a request. Made by the run's own client."""

    @property
    def received_monotonic_s(self) -> float:
        """When the answer was there, on the host's monotonic clock."""
        ...

    @property
    def version(self) -> int | None:
        """That the answer names; None for a failed request."""
        ...

    @property
    def replica(self) -> str | None:
        """That answered; None for a failed request."""
        ...

    @property
    def failed(self) -> bool:
        """Not 2xx, or no connection."""
        ...

    @property
    def slow(self) -> bool:
        """Slower than a second."""
        ...

    @property
    def mixed(self) -> bool | None:
        """Whether recomputing it with the bundle that it names gave something else; None: not recomputed."""
        ...


class Requests:
    """What a client has met so far: counts, and when each replica first answered with each version.

    Its size goes with replicas and versions, not with requests. The order in which answers are added does not matter.
    """

    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self.total = self.failed = self.slow = self.recomputed = self.mixed_version = 0
        self.first_s: dict[str, dict[int, float]] = {}
        """By replica, by version: when the first answer was there, on the host's monotonic clock."""
        self.span_s: dict[str, tuple[float, float]] = {}
        """By replica: its first answer and its last."""
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        """One more."""
        self.total += 1
        self.failed += answer.failed
        self.slow += answer.slow
        self.recomputed += answer.mixed is not None
        self.mixed_version += bool(answer.mixed)
        replica, version, at_s = answer.replica, answer.version, answer.received_monotonic_s
        if answer.failed or replica is None or version is None:
            return
        firsts = self.first_s.setdefault(replica, {})
        firsts[version] = min(at_s, firsts.get(version, at_s))
        first_s, last_s = self.span_s.get(replica, (at_s, at_s))
        self.span_s[replica] = min(first_s, at_s), max(last_s, at_s)

    def copy(self, newest_versions: int | None = None) -> "Requests":
        """The same, no longer added to; of each replica's versions only so many, those that it came to last."""
        other = Requests()
        other.__dict__.update(self.__dict__)
        other.span_s = dict(self.span_s)
        other.first_s = {
            replica: dict(islice(reversed(firsts.items()), newest_versions)) for replica, firsts in self.first_s.items()
        }
        return other

    @property
    def versions(self) -> list[int]:
        """All that answers have named."""
        return sorted(set().union(*self.first_s.values()))


def build_report(
    increments: Increments, requests: Requests, landings: Sequence[Landing], now_s: float | None = None
) -> dict[str, Any]:
    """The report, ready for JSON.

    ``now_s`` is the monotonic clock while the run goes on: what waits to be served then counts with its age so far.
    Without it the run has ended, and what was not served counts as infinite.
    """
    newest = increments.newest
    return {
        "increments": len(increments),
        "increments_a_row": increments.a_row,
        "cuts": increments.row_cuts,
        "events": increments.events,
        "recall_at_20": increments.scores("recall@20"),
        "mrr_at_20": increments.scores("mrr@20"),
        "live_above": increments.live_above(),
        "blend_weights": increments.weights(),
        "vitals": increments.vitals(),
        "anchors": increments.anchors(),
        "freshness_s": _freshness(increments, requests, landings, now_s),
        "requests": {
            "total": requests.total,
            "failed": requests.failed,
            "slow": requests.slow,
            "recomputed": requests.recomputed,
            "mixed_version": requests.mixed_version,
        },
        "versions_served": requests.versions,
        "verdicts": dict(increments.verdicts),
        "counters": {} if newest is None else dict(newest.counters),
        "train_events_per_s": increments.train_events_per_s,
        "wall_s": increments.wall_s,
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Replace the report at ``path``; readers see the old one or the new one, whole."""
    lines = (f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in report.items())
    replace_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def replace_whole(path: Path, text: str) -> None:
    """Replace the file at ``path``; readers see the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def freshness_of(cut_of: Mapping[int, int], requests: Requests, landings: Sequence[Landing]) -> NDArray[np.float64]:
    """Seconds from each landing to the first moment at which every replica in service had answered with its rows.

    ``cut_of`` names the cut of each version. Infinite where that never came. A replica is in service from its first
    answer to its last one.
    """
    replicas = _replicas(requests, cut_of)
    landed_L = np.array([landing.landed_monotonic_s for landing in landings], dtype=np.float64)
    cut_L = np.array([np.inf if landing.cut is None else landing.cut for landing in landings], dtype=np.float64)
    covered_RL = [replica.first_with(cut_L, landed_L) for replica in replicas]
    served_L = np.full(len(landings), np.inf)
    for moment_L in covered_RL:  # the moment is one at which some replica answers with the rows for the first time
        met_L = np.isfinite(moment_L)
        for replica, others_L in zip(replicas, covered_RL, strict=True):
            absent_L = (moment_L < replica.first_s) | (moment_L > replica.last_s)
            met_L &= absent_L | (others_L <= moment_L)
        served_L = np.where(met_L, np.minimum(served_L, moment_L), served_L)
    return np.asarray(served_L - landed_L, dtype=np.float64)


def weighted_quantile(value_L: NDArray[np.float64], weight_L: NDArray[np.float64], q: float) -> float | None:
    """The least value with at least the share ``q`` of the weight at or below it; None without any weight."""
    total = float(weight_L.sum())
    if total <= 0:
        return None
    order_L = np.argsort(value_L, kind="stable")
    reached_L = np.cumsum(weight_L[order_L]) >= q * total * (1 - 1e-12)
    return float(value_L[order_L][int(np.argmax(reached_L))])


def median_by_row(
    cuts: Sequence[int], a_row: int, landings: Sequence[Landing], value_L: NDArray[np.float64]
) -> list[float | None]:
    """Of each ``a_row`` cuts, the median of their landings' values, weighted by event.

    None where it is infinite, or no event is theirs. One sort for all, since a long run has many. ``cuts`` ascend.
    """
    cut_C = np.array(cuts, dtype=np.float64)
    num_rows = math.ceil(len(cuts) / a_row)
    cut_L = np.array([np.nan if landing.cut is None else landing.cut for landing in landings], dtype=np.float64)
    at_L = np.searchsorted(cut_C, cut_L)
    is_known_L = np.append(cut_C, np.nan)[at_L] == cut_L
    row_L = np.where(is_known_L, at_L // a_row, num_rows)  # those that wait, which have no cut, come last
    order_L = np.lexsort((value_L, row_L))
    row_L, taken_L = row_L[order_L], value_L[order_L]
    events_L = np.array([landing.rows for landing in landings], dtype=np.float64)[order_L]
    reached_L = np.append(0.0, np.cumsum(events_L))
    before_R, after_R = (reached_L[np.searchsorted(row_L, np.arange(num_rows), side)] for side in ("left", "right"))
    median_R = np.searchsorted(reached_L[1:], (before_R + after_R) / 2)  # the first landing that reaches one half
    return [
        _finite(float(taken_L[at])) if events > 0 else None
        for at, events in zip(median_R, after_R - before_R, strict=True)
    ]


@dataclass(frozen=True)
class _Replica:
    """One replica's first answers with each version, by time; ``cut_V`` is the newest cut answered with by then."""

    received_V: NDArray[np.float64]
    cut_V: NDArray[np.int64]
    first_s: float
    last_s: float

    def first_with(self, cut_L: NDArray[np.float64], landed_L: NDArray[np.float64]) -> NDArray[np.float64]:
        """When it first answered with each cut, not before each landing; infinite where it never did."""
        padded_V = np.append(self.received_V, np.inf)
        return np.asarray(np.maximum(padded_V[np.searchsorted(self.cut_V, cut_L, side="left")], landed_L))


def _replicas(requests: Requests, cut_of: Mapping[int, int]) -> list[_Replica]:
    end_s = max((last_s for _, last_s in requests.span_s.values()), default=0.0)
    replicas = []
    for name, firsts in sorted(requests.first_s.items()):
        received = sorted((at_s, cut_of[version]) for version, at_s in firsts.items() if version in cut_of)
        first_s, last_s = requests.span_s[name]
        replicas.append(
            _Replica(
                np.array([at_s for at_s, _ in received], dtype=np.float64),
                np.maximum.accumulate(np.array([cut for _, cut in received], dtype=np.int64)),
                first_s,
                last_s if end_s - last_s > _LEAVING_S else np.inf,
            )
        )
    return replicas


def _freshness(
    increments: Increments, requests: Requests, landings: Sequence[Landing], now_s: float | None
) -> dict[str, Any]:
    rejected = increments.rejected
    counted = [landing for landing in landings if landing.cut != 0 and landing.cut not in rejected]
    fresh_L = freshness_of(increments.cut_of, requests, counted)
    rows_L = np.array([landing.rows for landing in counted], dtype=np.float64)
    waits_L = np.isinf(fresh_L)
    per_increment = median_by_row(increments.cuts, increments.a_row, counted, fresh_L)
    if now_s is not None:
        age_L = now_s - np.array([landing.landed_monotonic_s for landing in counted])
        fresh_L = np.where(waits_L, age_L, fresh_L)
    p50, p99 = (weighted_quantile(fresh_L, rows_L, q) for q in (0.5, 0.99))
    return {
        "p50": _finite(p50),
        "p99": _finite(p99),
        "shards": len({landing.shard for landing in counted}),
        "events": int(rows_L.sum()),
        "events_not_served": int(rows_L[waits_L].sum()),
        "events_rejected": sum(landing.rows for landing in landings if landing.cut in rejected),
        "per_increment": per_increment,
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity: null, and ``events_not_served`` tells it from nothing to measure."""
    return value if value is not None and np.isfinite(value) else None
