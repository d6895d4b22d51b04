"""What landed in a finished run, which cut took it, and how soon it was served: read back from its folder.

Rows of rejected cuts are never served; they are left out, as the report leaves them out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headrace.commit.chain import Chain
from headrace.feed.entries import Shard
from headrace.feed.ledger import LedgerReader
from headrace.records import Cut
from headrace.store.store import Store
from headrace.tracking.increments import Increments
from headrace.tracking.report import Landing, Requests, freshness_of, weighted_quantile
from headrace.train.feeder import LandingLog

Fresh = list[tuple[Landing, float]]
"""Rows of a shard that one cut took, and the seconds until they were served."""


def freshness(run_dir: Path, requests: Requests) -> Fresh:
    """All shards of a run but the warm-up's; seconds are infinite where rows were never served."""
    store = Store(str(run_dir / "store"))
    landed_s = LandingLog(run_dir / "landings.jsonl").landed_s
    increments = Increments(Chain(store).summaries())
    names: dict[int, str] = {}
    landings: list[Landing] = []
    for entry in LedgerReader(store).entries():
        if isinstance(entry, Shard):
            names[entry.number] = entry.uri.rsplit("/", 1)[-1]
        elif isinstance(entry, Cut) and entry.number > 0 and entry.number not in increments.rejected:
            landings += [
                Landing(names[part.shard], entry.number, part.num_rows, landed_s[names[part.shard]])
                for part in entry.ranges
            ]
    served_L = freshness_of(increments.cut_of, requests, landings)
    return list(zip(landings, served_L.tolist(), strict=True))


def percentiles(fresh: Fresh) -> dict[str, Any]:
    """Median and 99th percentile, weighted by rows (None: never), and the events that they speak for."""
    fresh_L = np.array([fresh_s for _, fresh_s in fresh])
    rows_L = np.array([landing.rows for landing, _ in fresh], dtype=np.float64)
    found: Mapping[str, float | None] = {
        name: weighted_quantile(fresh_L, rows_L, q) for name, q in (("p50_s", 0.5), ("p99_s", 0.99))
    }
    finite = {name: value if value is not None and np.isfinite(value) else None for name, value in found.items()}
    return {**finite, "events": int(rows_L.sum())}
