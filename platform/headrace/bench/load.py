"""``headrace bench load``: how much the whole road carries, on the synthetic stream with one replica.

One run, in phases: a burst of ten times the usual rate and the time until new shards are as fresh as before it; rising
rates, of which the highest that keeps the p99 of freshness within ten seconds is what is sustained; and an hour's
backlog that lands at once, drained at so many times real time. Training is as the plan says: whole sessions in one
pass, as many replayed examples as new ones.
"""

import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.landings import Fresh, freshness, percentiles
from headrace.bench.output import print_table
from headrace.config.feed import SyntheticConfig
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.feed.landing import Landed, Landing, shard_name
from headrace.feed.synthetic import shard_events
from headrace.serving.app import Serving
from headrace.tracking.console import Observer
from headrace.train import driver

RECIPE = (
    "feed.max_wait_s=0.5",
    "feed.max_events=20000",
    "feed.max_events_per_user=100000",
    "columns.user_id=user_id",
    "columns.event=event",
    "inputs.max_events=20",
    "model.width=64",
    "model.dropout=0.1",
    "objective.examples=sessions",
    'methods=[{kind="online"},{kind="replay",ratio=1.0}]',
    "train.batch=256",
    "train.learning_rate=1e-3",
    "evaluation.max_queries=500",
    "evaluation.frozen_every=10",
    "serve.port=0",
    "serve.client_rps=20",
)
_FRESH_S = 10.0
"""The p99 of freshness that a sustained rate keeps."""
_USUAL, _TIMES = 200, 10
_BACKLOG_S = 3600
_BACKLOG_SHARD = 7200


@dataclass(frozen=True)
class Phase:
    """So many events a second, a shard each second, for so many seconds; at once where ``seconds`` is 0."""

    name: str
    rate: int
    seconds: int
    total: int = 0
    """Events, where they land at once."""


class Schedule:
    """A ``ShardSource``: the warm-up, then phase after phase, begun when the warm-up is committed."""

    def __init__(self, phases: Sequence[Phase], config: SyntheticConfig, seed: int, landing: Landing) -> None:
        self._config = config
        self._seed = seed
        self._landing = landing
        self._began_s: float | None = None
        self._index = 0
        self._due: deque[tuple[float, int, str]] = deque(_shards(phases))
        self.phase_of: dict[str, str] = {}
        """Of each landed shard."""

    @property
    def exhausted(self) -> bool:
        """Whether the last phase has landed."""
        return self._index > 0 and not self._due

    def step(self, now_s: float, committed_files: int) -> tuple[Landed, ...]:
        """Land what is due; see ``ShardSource``."""
        if self._index == 0:
            return (self._land("warm-up", self._config.warmup_events),)
        if committed_files < 1:
            return ()
        self._began_s = now_s if self._began_s is None else self._began_s
        landed = []
        while self._due and now_s >= self._began_s + self._due[0][0]:
            _, events, phase = self._due.popleft()
            landed.append(self._land(phase, events))
        return tuple(landed)

    def _land(self, phase: str, events: int) -> Landed:
        name = shard_name(self._index)
        field = "warmup_events" if self._index == 0 else "events_per_shard"
        config = self._config.model_copy(update={field: events})
        self.phase_of[name] = phase
        self._index += 1
        return self._landing.land(name, shard_events(config, self._seed, self._index - 1))


def _shards(phases: Sequence[Phase]) -> list[tuple[float, int, str]]:
    """When each shard is due, its events and its phase."""
    due, start = [], 0.0
    for phase in phases:
        if phase.seconds:
            due += [(start + second, phase.rate, phase.name) for second in range(phase.seconds)]
        else:
            due += [(start, _BACKLOG_SHARD, phase.name)] * (phase.total // _BACKLOG_SHARD)
        start += phase.seconds
    return due


def run(
    *,
    rates: str = "500,1000,2000,3000",
    seconds: int = 40,
    burst_seconds: int = 60,
    items: int = 10_000,
    backlog: bool = True,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run all phases and print a row for each; rates in events a second, everything else in seconds."""
    climb = [Phase(f"{rate}/s", int(rate), seconds) for rate in rates.split(",")]
    phases = [
        Phase("before the burst", _USUAL, 30),
        Phase("burst", _TIMES * _USUAL, burst_seconds),
        Phase("after the burst", _USUAL, 2 * burst_seconds),
        *climb,
    ]
    phases += [Phase("backlog", 0, 0, _USUAL * _BACKLOG_S)] if backlog else []
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        words = [*RECIPE, f"feed.synthetic.num_items={items}", "feed.synthetic.warmup_events=20000"]
        made = load_recipe([], [*words, *overrides, f"run.dir={folder}/run"])
        measured = _measure(made, phases, Path(folder) / "run")
    rows = {phase.name: percentiles(measured[phase.name]) for phase in phases}
    result = {
        "items": items,
        "phases": rows,
        "sustained_events_s": _sustained(climb, rows),
        "recovered_s": _recovered(measured),
        "backlog_times_real_time": _drained(measured["backlog"]) if backlog else None,
    }
    _print(result)
    return result


def _measure(made: Recipe, phases: Sequence[Phase], run_dir: Path) -> dict[str, Fresh]:
    """Shards of each phase, in the order in which they were taken."""
    assert made.feed.synthetic is not None
    source = Schedule(phases, made.feed.synthetic, made.seed, Landing(str(run_dir / "landing")))
    serving = Serving()
    driver.run(made, Observer(), serving, source)
    measured: dict[str, Fresh] = {phase.name: [] for phase in phases}
    for landing, fresh_s in freshness(run_dir, serving.requests()):
        measured[source.phase_of[landing.shard]].append((landing, fresh_s))
    return measured


def _sustained(climb: Sequence[Phase], rows: dict[str, dict[str, Any]]) -> int:
    """The highest rate up to which every rate's p99 stays within the bound; 0 where the lowest does not."""
    sustained = 0
    for phase in climb:
        p99_s = rows[phase.name]["p99_s"]
        if p99_s is None or p99_s > _FRESH_S:
            break
        sustained = phase.rate
    return sustained


def _recovered(measured: dict[str, Fresh]) -> float | None:
    """Seconds from the end of the burst until a shard that landed then was as fresh as before it, within twice."""
    usual_s = percentiles(measured["before the burst"])["p50_s"]
    after = sorted((landing.landed_monotonic_s, fresh_s) for landing, fresh_s in measured["after the burst"])
    if usual_s is None or usual_s > _FRESH_S or not after:
        return None
    began_s = after[0][0]
    return next((landed_s - began_s for landed_s, fresh_s in after if fresh_s <= 2 * usual_s), None)


def _drained(backlog: Fresh) -> float | None:
    """How many times real time an hour's events were served at, all landed at once."""
    began_s = min(landing.landed_monotonic_s for landing, _ in backlog)
    ended_s = max(landing.landed_monotonic_s + fresh_s for landing, fresh_s in backlog)
    return _BACKLOG_S / (ended_s - began_s) if np.isfinite(ended_s) else None


def _print(result: dict[str, Any]) -> None:
    def text(value: float | None) -> str:
        return "never" if value is None else f"{value:.2f}"

    rows = [
        [name, str(row["events"]), text(row["p50_s"]), text(row["p99_s"])] for name, row in result["phases"].items()
    ]
    print_table("freshness under load", ("phase", "events", "p50 s", "p99 s"), rows)
    times = result["backlog_times_real_time"]
    print_table(
        "what it carries",
        ("figure", "value"),
        [
            [f"sustained, p99 within {_FRESH_S:.0f} s", f"{result['sustained_events_s']} events/s"],
            [f"as fresh as before, after a burst of {_TIMES}x", f"{text(result['recovered_s'])} s"],
            ["an hour's backlog", "not measured" if times is None else f"{times:.1f}x real time"],
        ],
    )
