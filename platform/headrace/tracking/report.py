"""``report.json``: a pure function of the commits, of what landed, and of the client's log, so it survives a kill.

Every figure is defined in docs/metrics.md. Shape legend: C commits, R rows of the report (in freshness: replicas), A
commits of a row, L landings, V versions of one replica.
"""

import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.clock import train_s
from headrace.commit.summary import KEPT_FIGURES, Summary
from headrace.tracking.series import mean_difference

if TYPE_CHECKING:
    from headrace.commit.manifest import Verdict

_MOST_ROWS = 1000  # of a series in the report
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


class Outcome(NamedTuple):
    """What was decided on one increment. Made by ``Increments.outcomes``, read by the page."""

    cut: int
    version: int | None
    """Published by this increment; None where it was not."""
    verdict: "Verdict"
    reason: str


class Increments:
    """All commits so far, a few numbers of each, so that a run may go on for ever: some 500 bytes a commit."""

    def __init__(self, commits: Iterable[Summary] = ()) -> None:
        self.cuts = array("q")
        self.cut_of: dict[int, int] = {}
        """By version: the cut whose commit published it."""
        self.newest: Summary | None = None
        self.events = 0
        self.verdicts = Counter(publish=0, hold=0, reject=0)
        self.rejected: set[int] = set()
        """Cuts."""
        self._decided: list[tuple[Verdict, str]] = []
        """Verdict and reason of each commit; most are the same one."""
        self._decisions: dict[tuple[Verdict, str], tuple[Verdict, str]] = {}
        self._first: Summary | None = None
        self._later_events = 0
        self._later_train_s = 0.0
        self._series: dict[tuple[str, ...], array[float]] = {}
        for commit in commits:
            self.add(commit)

    def __len__(self) -> int:
        return len(self.cuts)

    def add(self, commit: Summary) -> None:
        """One more; they come by cut, the warm-up first."""
        if commit.version is not None:
            self.cut_of[commit.version] = commit.cut
        if commit.verdict == "reject":
            self.rejected.add(commit.cut)
        decision = (commit.verdict, commit.reason)
        self._decided.append(self._decisions.setdefault(decision, decision))
        if commit.cut != 0:
            self._later_events += commit.events
            self._later_train_s += train_s(commit.seconds)
        self._first, self.newest = self._first or commit, commit
        self.events += commit.events
        self.verdicts[commit.verdict] += 1
        known = dict(_figures(commit))
        for name in known.keys() - self._series.keys():
            self._series[name] = array("d", [math.nan] * len(self.cuts))
        for name, series in self._series.items():
            value = known.get(name)
            series.append(math.nan if value is None else value)
        self.cuts.append(commit.cut)

    @property
    def a_row(self) -> int:
        """Commits, one after the other, that share a row of the report: one, until there are too many."""
        return max(1, math.ceil(len(self) / _MOST_ROWS))

    @property
    def row_cuts(self) -> list[int]:
        """The newest cut of each row."""
        ends = [*range(self.a_row, len(self), self.a_row), len(self)] if len(self) else []
        return [self.cuts[end - 1] for end in ends]

    def series(self, *name: str) -> list[float | None]:
        """One value for each row, the mean of its commits'; None where there is none."""
        found = self._series.get(name)
        return [None] * len(self.row_cuts) if found is None else self.in_rows(found)

    def in_rows(self, value_C: Sequence[float] | NDArray[np.float64]) -> list[float | None]:
        """The means of each row's commits, of those that are not NaN; None where there is none."""
        if self.a_row == 1:
            return [None if math.isnan(value) else float(value) for value in value_C]
        rows = len(self.row_cuts)
        padded_RA = np.full((rows, self.a_row), np.nan)
        padded_RA.reshape(-1)[: len(value_C)] = value_C
        known_RA = np.isfinite(padded_RA)
        num_R, sum_R = known_RA.sum(axis=1), np.where(known_RA, padded_RA, 0.0).sum(axis=1)
        return [float(total / num) if num else None for total, num in zip(sum_R, num_R, strict=True)]

    def scores(self, figure: str) -> dict[str, Any]:
        """A figure of each version that is scored, and of each expert."""
        versions = {name: self.series(name, figure) for name in ("live", "learner", "frozen")}
        return {**versions, "experts": {name: self.series("experts", name, figure) for name in self._experts(figure)}}

    def vitals(self) -> dict[str, list[float | None]]:
        """How the learner was at each commit, by figure; what frozen found and live did not among them."""
        names = sorted(name[1] for name in self._series if name[0] == "vitals")
        found = {_plain(name): self.series("vitals", name) for name in names}
        if found:
            found["regret_at_20"] = self.in_rows(self._recall("frozen") - self._recall("live"))
        return found

    def live_above(self) -> dict[str, Any]:
        """Of recall@20, on the commits that have both: how far live lies above frozen and each expert, [mean, half].

        Half the width of a 95 % interval, as of independent commits; None where fewer than two have both.
        """
        live_C = self._recall("live")
        experts = {name: self._recall("experts", name) for name in self._experts("recall@20")}
        return {
            "frozen": mean_difference(live_C, self._recall("frozen")),
            "experts": {name: mean_difference(live_C, their_C) for name, their_C in experts.items()},
        }

    def _experts(self, figure: str) -> list[str]:
        return sorted(name[1] for name in self._series if name[0] == "experts" and name[2] == figure)

    def _recall(self, *name: str) -> NDArray[np.float64]:
        found = self._series.get((*name, "recall@20"))
        return np.full(len(self), np.nan) if found is None else np.array(found)

    def anchors(self) -> dict[str, list[float | None]]:
        """By the cut that completed them: what the neural expert made of held-out queries whenever they were asked."""
        names = sorted((name[1] for name in self._series if name[0] == "anchor"), key=int)
        return {name: self.series("anchor", name) for name in names}

    def weights(self) -> dict[str, list[float | None]]:
        """Each expert's weight after each commit."""
        names = sorted(name[1] for name in self._series if name[0] == "weights")
        return {name: self.series("weights", name) for name in names}

    def outcomes(self) -> list[Outcome]:
        """What was decided on each commit."""
        version_of = {cut: version for version, cut in self.cut_of.items()}
        return [
            Outcome(cut, version_of.get(cut), verdict, reason)
            for cut, (verdict, reason) in zip(self.cuts, self._decided, strict=True)
        ]

    @property
    def train_events_per_s(self) -> float | None:
        """Of the increments after the warm-up, which has a budget of its own; rejected ones were trained too."""
        return self._later_events / self._later_train_s if self._later_train_s > 0 else None

    @property
    def wall_s(self) -> float:
        """From the beginning of the first increment to the newest commit, pauses between two starts included."""
        if self._first is None or self.newest is None:
            return 0.0
        return (self.newest.wall_ms - self._first.wall_ms) / 1000 + sum(self._first.seconds.values())


def _figures(commit: Summary) -> Iterator[tuple[tuple[str, ...], float | None]]:
    for version, scores in commit.scores.items():
        yield from (((version, figure), (scores or {}).get(figure)) for figure in KEPT_FIGURES)
    for expert, scores in commit.expert_scores.items():
        yield from ((("experts", expert, figure), scores.get(figure)) for figure in KEPT_FIGURES)
    yield from ((("weights", expert), weight) for expert, weight in commit.weights.items())
    yield from ((("vitals", name), value) for name, value in commit.vitals.items())
    if commit.anchor is not None:
        yield ("anchor", f"{commit.anchor['cut']:.0f}"), commit.anchor["neural"]


def _plain(name: str) -> str:
    """A figure's name as a key of the report."""
    return name.replace("@", "_at_").replace("/", "_")


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
