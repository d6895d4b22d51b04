"""``headrace bench stream``: a log with real times, in event time, through production's own increment.

Each cut is scored by the version that finished the cut before it: what users would have got, provided that
an increment takes less than a slice of event time, which is printed. Intervals are a paired bootstrap over increments.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.bench.output import print_table
from headrace.commit.manifest import Manifest
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.records import generator
from headrace.train.offline import peak_mb, replay

_RESAMPLES = 2000
_EVERY = 50


def run(
    *,
    data: Path,
    increments: int | None = None,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/globo.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Replay ``increments`` cuts after the warm-up (None: all) and print means weighted by query, as shares."""
    made = load_recipe([str(recipe)], [*overrides, f"feed.path={data}"])
    scored: list[Manifest] = []
    for manifest in replay(made, torch.device(device), increments):
        if manifest.facts["metrics"]["queries"]:
            scored.append(manifest)
        if manifest.cut % _EVERY == 0 and scored:
            _print(f"after cut {manifest.cut}", _means(scored))
    if not scored:
        raise ConfigError(f"{data} gave no increment that could be scored: it needs more than the warm-up")
    means = _means(scored)
    live = {name: _paired(scored, name) for name in means if name != "live"}
    _print("all increments", means, live)
    took = [sum(m.envelope.seconds.values()) for m in scored]
    return {
        "increments": len(scored),
        "queries": sum(m.facts["metrics"]["queries"] for m in scored),
        "means": means,
        "live_over": live,
        "increment_s": {"p50": float(np.median(took)), "max": float(np.max(took))},
        "peak_mb": peak_mb(),
        "weights": scored[-1].facts["weights"],
    }


def _values(manifest: Manifest) -> dict[str, dict[str, float]]:
    metrics = manifest.facts["metrics"]
    named = {name: metrics[name] for name in ("live", "learner", "frozen") if metrics[name] is not None}
    return {**named, **metrics["experts"]}


def _columns(scored: Sequence[Manifest], name: str, metric: str) -> NDArray[np.float64]:
    return np.array([_values(m)[name][metric] for m in scored])


def _weights(scored: Sequence[Manifest]) -> NDArray[np.float64]:
    return np.array([m.facts["metrics"]["queries"] for m in scored], dtype=np.float64)


def _means(scored: Sequence[Manifest]) -> dict[str, dict[str, float]]:
    weight_K = _weights(scored)
    return {
        name: {
            metric: float(np.average(_columns(scored, name, metric), weights=weight_K))
            for metric in _values(scored[0])[name]
        }
        for name in _values(scored[0])
        if all(name in _values(m) for m in scored)
    }


def _paired(scored: Sequence[Manifest], name: str) -> dict[str, dict[str, float]]:
    """How far live is above ``name``, with a 95 % interval over increments."""
    weight_K = _weights(scored)
    draw = generator("bench stream", name)
    pick_SK = draw.integers(0, len(scored), (_RESAMPLES, len(scored)))
    result = {}
    for metric in ("recall@20", "mrr@20"):
        above_K = _columns(scored, "live", metric) - _columns(scored, name, metric)
        mean_S = (above_K * weight_K)[pick_SK].sum(axis=1) / weight_K[pick_SK].sum(axis=1)
        low, high = np.percentile(mean_S, [2.5, 97.5])
        result[metric] = {"mean": float(np.average(above_K, weights=weight_K)), "low": float(low), "high": float(high)}
    return result


def _print(
    title: str, means: dict[str, dict[str, float]], live: dict[str, dict[str, dict[str, float]]] | None = None
) -> None:
    def above(name: str) -> str:
        if live is None or name not in live:
            return "-"
        gain = live[name]["recall@20"]
        return f"{100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"

    print_table(
        title,
        ("version or expert", "R@20", "MRR@20", "R@100", "live above it, R@20"),
        [
            [name, *(f"{100 * value[metric]:.2f}" for metric in ("recall@20", "mrr@20", "recall@100")), above(name)]
            for name, value in means.items()
        ],
    )
