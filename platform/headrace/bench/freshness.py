"""``headrace bench freshness``: how long it takes until what has landed is in the answers, with the whole road running.

Starts when the producer's rename of a shard returns, on the host's monotonic clock; ends when a client has met an
answer whose bundle covers the shard from every ready replica. Weighted by event; never served counts as infinite.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.bench.output import print_table
from headrace.config.load import load_recipe
from headrace.serving.app import Serving
from headrace.tracking.console import Observer
from headrace.train import driver

RECIPE = (
    "feed.synthetic.num_items=2000",
    "feed.synthetic.warmup_events=6000",
    "feed.max_wait_s=0.5",
    "columns.user_id=user_id",
    "columns.event=event",
    "inputs.max_events=20",
    "model.width=48",
    "model.blocks=1",
    "model.dropout=0.1",
    "train.batch=128",
    "train.learning_rate=1e-3",
    "evaluation.max_queries=500",
    "serve.port=0",
    "serve.client_rps=20",
)
"""The stream of the quickstart: a shard of 200 events a second."""
_MIN_SHARDS = 100


def run(*, seconds: int = 120, recipe: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Stream for ``seconds`` (at least 100 shards) and print p50 and p99, in seconds.

    ``recipe`` replaces the built-in one.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        files = [str(recipe)] if recipe else []
        made = load_recipe(files, [*([] if recipe else RECIPE), *overrides, f"run.dir={folder}/run"])
        synthetic = made.feed.synthetic
        if synthetic is not None:
            shards = 1 + max(_MIN_SHARDS, round(seconds / synthetic.shard_interval_s))
            synthetic = synthetic.model_copy(update={"num_shards": shards})
            made = made.model_copy(update={"feed": made.feed.model_copy(update={"synthetic": synthetic})})
        driver.run(made, Observer(), Serving())
        report = json.loads((Path(folder) / "run" / "report.json").read_text())
    result = {
        "mode": "unbounded",
        "shard_interval_s": synthetic.shard_interval_s if synthetic else None,
        **{f"{name}_s" if name in ("p50", "p99") else name: value for name, value in report["freshness_s"].items()},
        "increments": report["increments"],
        "held": report["verdicts"]["hold"],
        "requests": report["requests"],
        "versions_served": len(report["versions_served"]),
    }
    _print(result)
    return result


def _print(result: dict[str, Any]) -> None:
    def text(value: float | None) -> str:
        return "never" if value is None else f"{value:.2f}"

    requests = result["requests"]
    print_table(
        "freshness: from the landing of a shard to an answer from every replica",
        (
            "mode",
            "interval s",
            "p50 s",
            "p99 s",
            "shards",
            "events",
            "not served",
            "increments",
            "held",
            "requests",
            "failed",
            "mixed",
        ),
        [
            [
                result["mode"],
                text(result["shard_interval_s"]),
                text(result["p50_s"]),
                text(result["p99_s"]),
                *(str(result[name]) for name in ("shards", "events", "events_not_served", "increments", "held")),
                *(str(requests[name]) for name in ("total", "failed", "mixed_version")),
            ]
        ],
    )
