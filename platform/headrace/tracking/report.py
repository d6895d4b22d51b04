"""``report.json``: a pure function of the commits, of what landed, and of the client's log, so it survives a kill.

Every figure is defined in docs/metrics.md. Shape legend: R replicas, L landings, Q answers of one replica.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.commit.manifest import Manifest

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


def build_report(
    manifests: Sequence[Manifest],
    requests: Sequence[Answer],
    landings: Sequence[Landing],
    now_s: float | None = None,
) -> dict[str, Any]:
    """The report, ready for JSON. ``manifests`` come by cut, the warm-up first, and so do the values per increment.

    ``now_s`` is the monotonic clock while the run goes on: what waits to be served then counts with its age so far.
    Without it the run has ended, and what was not served counts as infinite.
    """
    return {
        "increments": len(manifests),
        "cuts": [manifest.cut for manifest in manifests],
        "events": sum(int(manifest.facts["events"]) for manifest in manifests),
        "recall_at_20": _scores(manifests, "recall@20"),
        "mrr_at_20": _scores(manifests, "mrr@20"),
        "blend_weights": _blend_weights(manifests),
        "freshness_s": _freshness(manifests, requests, landings, now_s),
        "requests": {
            "total": len(requests),
            "failed": sum(request.failed for request in requests),
            "slow": sum(request.slow for request in requests),
            "recomputed": sum(request.mixed is not None for request in requests),
            "mixed_version": sum(bool(request.mixed) for request in requests),
        },
        "versions_served": sorted({request.version for request in requests if request.version is not None}),
        "verdicts": _verdicts(manifests),
        "counters": dict(manifests[-1].facts["counters"]) if manifests else {},
        "train_events_per_s": _train_events_per_s(manifests),
        "wall_s": _wall_s(manifests),
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Replace the report at ``path``; readers see the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def freshness_of(
    manifests: Sequence[Manifest], requests: Sequence[Answer], landings: Sequence[Landing]
) -> NDArray[np.float64]:
    """Seconds from each landing to the first moment at which every replica in service had answered with its rows.

    Infinite where that never came. A replica is in service from its first answer to its last one.
    """
    published = {manifest.version: manifest.cut for manifest in manifests if manifest.version is not None}
    replicas = _replicas(requests, published)
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


@dataclass(frozen=True)
class _Replica:
    """The answers of one replica, by time; ``cut_Q`` is the newest cut it had answered with by then."""

    received_Q: NDArray[np.float64]
    cut_Q: NDArray[np.int64]
    first_s: float
    last_s: float

    def first_with(self, cut_L: NDArray[np.float64], landed_L: NDArray[np.float64]) -> NDArray[np.float64]:
        """When it first answered with each cut, after each landing; infinite where it never did."""
        index_L = np.maximum(
            np.searchsorted(self.cut_Q, cut_L, side="left"),
            np.searchsorted(self.received_Q, landed_L, side="left"),
        )
        padded_Q = np.append(self.received_Q, np.inf)
        return padded_Q[np.minimum(index_L, len(self.received_Q))]


def _replicas(requests: Sequence[Answer], published: Mapping[int, int]) -> list[_Replica]:
    answers: dict[str, list[tuple[float, int]]] = {}
    for request in requests:
        cut = None if request.version is None else published.get(request.version)
        if not request.failed and request.replica is not None and cut is not None:
            answers.setdefault(request.replica, []).append((request.received_monotonic_s, cut))
    end_s = max((received_s for answered in answers.values() for received_s, _ in answered), default=0.0)
    replicas = []
    for name in sorted(answers):
        received = sorted(answers[name])
        last_s = received[-1][0]
        replicas.append(
            _Replica(
                np.array([received_s for received_s, _ in received]),
                np.maximum.accumulate(np.array([cut for _, cut in received], dtype=np.int64)),
                received[0][0],
                last_s if end_s - last_s > _LEAVING_S else np.inf,
            )
        )
    return replicas


def _freshness(
    manifests: Sequence[Manifest], requests: Sequence[Answer], landings: Sequence[Landing], now_s: float | None
) -> dict[str, float | int | None]:
    rejected = {manifest.cut for manifest in manifests if manifest.verdict == "reject"}
    counted = [landing for landing in landings if landing.cut != 0 and landing.cut not in rejected]
    fresh_L = freshness_of(manifests, requests, counted)
    rows_L = np.array([landing.rows for landing in counted], dtype=np.float64)
    waits_L = np.isinf(fresh_L)
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
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity: null, and ``events_not_served`` tells it from nothing to measure."""
    return value if value is not None and np.isfinite(value) else None


def _scores(manifests: Sequence[Manifest], name: str) -> dict[str, Any]:
    scored = [manifest.facts.get("metrics") or {} for manifest in manifests]
    experts = sorted({expert for metrics in scored for expert in metrics.get("experts") or {}})
    return {
        "live": [_score(metrics.get("live"), name) for metrics in scored],
        "learner": [_score(metrics.get("learner"), name) for metrics in scored],
        "frozen": [_score(metrics.get("frozen"), name) for metrics in scored],
        "experts": {
            expert: [_score((metrics.get("experts") or {}).get(expert), name) for metrics in scored]
            for expert in experts
        },
    }


def _score(measured: Mapping[str, float | None] | None, name: str) -> float | None:
    return None if measured is None else measured.get(name)


def _blend_weights(manifests: Sequence[Manifest]) -> dict[str, list[float | None]]:
    """Each expert's weight after each increment."""
    weights = [manifest.facts.get("weights") or {} for manifest in manifests]
    return {name: [of.get(name) for of in weights] for name in sorted({name for of in weights for name in of})}


def _verdicts(manifests: Sequence[Manifest]) -> dict[str, int]:
    counts = Counter(manifest.verdict for manifest in manifests)
    return {"publish": counts["publish"], "hold": counts["hold"], "reject": counts["reject"]}


def _train_events_per_s(manifests: Sequence[Manifest]) -> float | None:
    """Of the increments after the warm-up, which has a budget of its own; rejected ones were trained too."""
    later = [manifest for manifest in manifests if manifest.cut != 0]
    train_s = sum(float(manifest.envelope.seconds.get("train", 0.0)) for manifest in later)
    return sum(int(manifest.facts["events"]) for manifest in later) / train_s if train_s > 0 else None


def _wall_s(manifests: Sequence[Manifest]) -> float:
    """From the beginning of the first increment to the newest commit, pauses between two starts included."""
    if not manifests:
        return 0.0
    elapsed_ms = manifests[-1].envelope.wall_ms - manifests[0].envelope.wall_ms
    return elapsed_ms / 1000 + sum(manifests[0].envelope.seconds.values())
