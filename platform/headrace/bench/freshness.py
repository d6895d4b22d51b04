"""``headrace bench freshness``: how long it takes until what has landed is in the answers, with the whole road running.

Starts when the producer's rename of a shard returns, on the host's monotonic clock; ends when a client has met an
answer whose bundle covers the shard from every ready replica. Weighted by event; never served counts as infinite.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.landings import freshness, percentiles
from headrace.bench.output import print_table
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
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
MODES = ("unbounded", "per_increment")
"""``feed.mode``: the loop as it is, and a new ``fit()`` for each increment, which is what it is compared with."""


def run(
    *,
    seconds: int = 120,
    modes: str = "unbounded",
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Stream for ``seconds`` (at least 100 shards) in each mode and print p50 and p99, in seconds.

    ``modes``: names joined by commas. ``recipe`` replaces the built-in one. A slow mode needs ten increments after its
    first, which is left out as the workers' start; give it the seconds for that.
    """
    results = []
    for mode in modes.split(","):
        if mode not in MODES:
            raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        results.append(_stream(mode, seconds, recipe, overrides))
        _print(results[-1:] if len(results) == 1 else results)
    p50 = {result["mode"]: result["p50_s"] for result in results}
    both = all(p50.get(mode) for mode in MODES)
    ratio = p50["per_increment"] / p50["unbounded"] if both else None
    return {"modes": results, "per_increment_over_unbounded": ratio}


def _stream(mode: str, seconds: int, recipe: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        files = [str(recipe)] if recipe else []
        words = [*([] if recipe else RECIPE), *overrides, f"feed.mode={mode}", f"run.dir={folder}/run"]
        made = load_recipe(files, words)
        synthetic = made.feed.synthetic
        if synthetic is not None:
            shards = 1 + max(_MIN_SHARDS, round(seconds / synthetic.shard_interval_s))
            synthetic = synthetic.model_copy(update={"num_shards": shards})
            made = made.model_copy(update={"feed": made.feed.model_copy(update={"synthetic": synthetic})})
        serving = Serving()
        driver.run(made, Observer(), serving)
        run_dir = Path(folder) / "run"
        report = json.loads((run_dir / "report.json").read_text())
        fresh = freshness(run_dir, serving.requests())
    if mode == "per_increment":
        fresh = [(landing, seconds) for landing, seconds in fresh if landing.cut != 1]
    return {
        "mode": mode,
        "shard_interval_s": synthetic.shard_interval_s if synthetic else None,
        **percentiles(fresh),
        "shards": len({landing.shard for landing, _ in fresh}),
        "events_not_served": sum(landing.rows for landing, seconds in fresh if not np.isfinite(seconds)),
        "increments": report["increments"],
        "held": report["verdicts"]["hold"],
        "requests": report["requests"],
        "versions_served": len(report["versions_served"]),
    }


def _print(results: Sequence[dict[str, Any]]) -> None:
    def text(value: float | None) -> str:
        return "never" if value is None else f"{value:.2f}"

    header = ("mode", "interval s", "p50 s", "p99 s", "shards", "events", "not served", "increments", "held")
    print_table(
        "freshness: from the landing of a shard to an answer from every replica",
        (*header, "requests", "failed", "mixed"),
        [
            [
                result["mode"],
                text(result["shard_interval_s"]),
                text(result["p50_s"]),
                text(result["p99_s"]),
                *(str(result[name]) for name in ("shards", "events", "events_not_served", "increments", "held")),
                *(str(result["requests"][name]) for name in ("total", "failed", "mixed_version")),
            ]
            for result in results
        ],
    )
