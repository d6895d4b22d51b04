"""``headrace bench soak``: what grows while a stream goes on and on.

A small shop's stream, with every kind of counter and replay, for as long as asked. All that has a bound (history, the
replay buffer, the counters, the items that hold a row) has a small one here, full within the first minutes, so that
what grows after those is what has none. Every few seconds all processes of the run are counted and weighed, and the
files of its folder. What was grown by the end is told against the moment at which the start was over: memory by kind of
process, processes, actors, files.
"""

import os
import tempfile
import threading
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.bench.freshness import RECIPE
from headrace.bench.output import print_table
from headrace.clock import monotonic_s
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.serving.app import Serving
from headrace.tracking.console import Observer
from headrace.train import driver

_EVERYTHING = (
    'experts=[{kind="popular",half_life_s=20},{kind="covisit",half_life_s=20},'
    '{kind="similar_sessions",max_events=20000},{kind="own_items"}]',
    'methods=[{kind="online"},{kind="replay"}]',
    "replay.max_bytes=1048576",
    "history.max_bytes=1048576",
    "catalogue.alive_s=60",
    "catalogue.forget_s=120",
    "evaluation.frozen_every=10",
)
_EVERY_S = 5.0
_KINDS = {"RayTrainWorker": "workers", "ServeReplica": "replica", "ReplayActor": "replay", "raylet": "raylet"}
"""What a process is called by, and its kind; the rest is "ray"."""
_ROWS = 12


class _Scale(threading.Thread):
    """Weighs the run until ``stop``."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(name="scale", daemon=True)
        self.at_s = array("d")
        self.found: dict[str, array[float]] = {}
        """By what was weighed or counted: a number for each time, so that the scale itself hardly grows."""
        self.error: Exception | None = None
        self._run_dir = run_dir
        self._stopped = threading.Event()
        self._began_s = monotonic_s()

    def stop(self) -> None:
        """Weigh no more."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Runs in the thread."""
        try:
            while not self._stopped.wait(_EVERY_S):
                self._keep(monotonic_s() - self._began_s, self._weigh())
        except Exception as error:  # noqa: BLE001 (a thread's edge: the benchmark raises it)
            self.error = error

    def _keep(self, at_s: float, weighed: dict[str, float]) -> None:
        for name in weighed.keys() - self.found.keys():
            self.found[name] = array("d", [0.0] * len(self.at_s))
        for name, values in self.found.items():
            values.append(weighed.get(name, 0.0))
        self.at_s.append(at_s)

    def _weigh(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for process in _family(os.getpid()):
            try:
                title, own_mb = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(), _own_mb(process)
            except OSError:  # it has ended meanwhile
                continue
            kind = next((kind for name, kind in _KINDS.items() if name in title), "ray")
            found[f"{'driver' if process.name == str(os.getpid()) else kind} MB"] += own_mb
            found["processes"] += 1
            found["actors"] += title.startswith("ray::") and "IDLE" not in title
        for folder, _, names in os.walk(self._run_dir):
            part = Path(folder).relative_to(self._run_dir).parts[:2]
            found[f"files in {'/'.join(part) or '.'}"] += len(names)
        return dict(found)


def _family(process: int) -> list[Path]:
    """The folders under /proc of a process and all that it has started."""
    parent_of: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended meanwhile
                continue
    family, new = {process}, {process}
    while new := {child for child, parent in parent_of.items() if parent in new} - family:
        family |= new
    return [Path("/proc") / str(member) for member in sorted(family)]


def _own_mb(process: Path) -> float:
    """Memory that no other process shares, megabytes."""
    rollup = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    return sum(float(rollup[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


def run(*, minutes: float = 60.0, settled_minutes: float = 10.0, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Stream for ``minutes`` and print what grew after ``settled_minutes``; megabytes and counts."""
    if settled_minutes + 1 > minutes:
        raise ConfigError(f"minutes={minutes:g} leaves nothing after settled_minutes={settled_minutes:g}: ask for more")
    shards = 1 + round(minutes * 60)
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        words = [
            *RECIPE,
            *_EVERYTHING,
            *overrides,
            "feed.synthetic.shard_interval_s=1.0",
            f"feed.synthetic.num_shards={shards}",
        ]
        words.append(f"run.dir={folder}/run")
        scale = _Scale(Path(folder) / "run")
        scale.start()
        driver.run(load_recipe([], words), Observer(), Serving())
        scale.stop()
    if scale.error is not None:
        raise scale.error
    rows = _growth(scale.at_s, scale.found, settled_minutes * 60)
    print_table(
        f"from minute {settled_minutes:g} to the end",
        ("what", "then", "at the end", "a minute", "in the second half"),
        [
            [
                name,
                *(f"{row[key]:.1f}" for key in ("then", "end")),
                *(f"{row[key]:+.2f}" for key in ("a_minute", "late")),
            ]
            for name, row in rows.items()
        ],
    )
    return {"minutes": minutes, "settled_minutes": settled_minutes, "growth": rows}


def _growth(
    at_s: Sequence[float], found: Mapping[str, Sequence[float]], settled_s: float
) -> dict[str, dict[str, float]]:
    """Medians of the first and last samples after ``settled_s`` (the end of the run itself left out), and the slopes.

    Growth a minute over all of them, and over their second half ("late"): what has a bound grows until it is full.
    """
    at_S = np.array(at_s)
    used_S = (settled_s <= at_S) & (at_S <= at_S[-1] - 2 * _EVERY_S)
    rows: dict[str, dict[str, float]] = {}
    if not used_S.any():  # the run ended too soon
        return rows
    for name, values in sorted(found.items()):
        value_S = np.array(values)[used_S]
        half = len(value_S) // 2
        rows[name] = {
            "then": float(np.median(value_S[:_ROWS])),
            "end": float(np.median(value_S[-_ROWS:])),
            "a_minute": _slope(at_S[used_S], value_S),
            "late": _slope(at_S[used_S][half:], value_S[half:]),
        }
    return rows


def _slope(at_S: NDArray[np.float64], value_S: NDArray[np.float64]) -> float:
    """A minute; ``at_S`` are seconds."""
    return float(np.polyfit(at_S / 60, value_S, 1)[0]) if len(value_S) > 2 else 0.0
