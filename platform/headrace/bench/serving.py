"""``headrace bench serving``: what those who ask notice when replicas come and go, and when the code is replaced.

Clients ask all the while, first few, then many, then few: one replica becomes three, and one again. Then the
application is deployed anew with other settings, while a new version is published every half second. Versions are
trained before, and published in turn under new numbers, so that one that is mixed up with its neighbour shows.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch

from headrace.bench.crowd import Crowd, Met
from headrace.bench.freshness import RECIPE as SHOP
from headrace.bench.output import print_table
from headrace.bundles.bundle import Bundle, bundle_of
from headrace.bundles.publish import publish
from headrace.clock import monotonic_s
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.host import start_ray
from headrace.serving import app
from headrace.serving.check import Checker
from headrace.serving.client import StoreSessions
from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.train.offline import replay

RECIPE = (
    *SHOP,
    "feed.synthetic.num_shards=4",
    'experts=[{kind="popular"},{kind="covisit"},{kind="similar_sessions"},{kind="own_items"}]',
    "serve.autoscaling={max_replicas=3,target_ongoing=3.0,look_back_s=4.0,upscale_delay_s=1.0,downscale_delay_s=4.0}",
)
_FEW_PAUSE_S = 0.05
_PUBLISH_S = 0.5
_LOOK_S = 0.1
_NEWEST = 40
"""So many answers in a row from the replicas that are waited for."""


@dataclass
class Phase:
    """What clients met in one phase."""

    name: str
    met: Met
    seconds: float
    reached: bool | None
    """Whether the replicas that the phase waits for have answered; None where it waits for none."""


def run(*, clients: int = 12, seconds: int = 10, patience: int = 60, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run every phase and print a row for each; latencies in milliseconds.

    ``clients``: how many ask at once when it is busy. ``seconds``: how long one replica, and then three, are watched.
    ``patience``: seconds after which replicas that do not come, or do not go, are no longer waited for.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        recipe = load_recipe([], [*RECIPE, *overrides])
        store = Store(f"{folder}/store")
        bundles = [bundle_of(manifest) for manifest in replay(recipe, torch.device("cpu"), store=store)]
        start_ray(
            "local", recipe.serve.most_replicas + 2
        )  # one for Serve, one for the replica that comes before one goes
        try:
            crowd = Crowd(app.start(store.uri, recipe.serve), StoreSessions(store, recipe.seed))
            phases = [*_step_load(crowd, recipe, clients, seconds, patience)]
            phases.append(_new_code(crowd, recipe, store, bundles, patience))
        finally:
            app.stop_with_ray()
        rows = {phase.name: _row(phase, Checker(store)) for phase in phases}
    result = {"clients": clients, "phases": rows} | {
        figure: sum(row[figure] for row in rows.values()) for figure in ("requests", "failed", "mixed")
    }
    _print(rows)
    return result


def _step_load(crowd: Crowd, recipe: Recipe, clients: int, seconds: int, patience: int) -> Iterator[Phase]:
    fewest, most = recipe.serve.num_replicas, recipe.serve.most_replicas
    with crowd.asking(1, _FEW_PAUSE_S) as met:
        yield _phase(f"{fewest} replica", met, None, seconds)
    with crowd.asking(clients) as met:
        yield _phase(f"{fewest} -> {most}", met, lambda: len(met.replicas(_NEWEST)) >= most, patience)
    with crowd.asking(clients) as met:
        yield _phase(f"{most} replicas", met, None, seconds)
    with crowd.asking(1, _FEW_PAUSE_S) as met:
        yield _phase(f"{most} -> {fewest}", met, lambda: _only(met, fewest), patience)


def _new_code(crowd: Crowd, recipe: Recipe, store: Store, bundles: Sequence[Bundle], patience: int) -> Phase:
    """Deploy with other settings, which Serve takes for new code, while versions are published."""
    changed = recipe.serve.model_copy(update={"max_batch": recipe.serve.max_batch // 2})
    with publishing(store, bundles), crowd.asking(2, _FEW_PAUSE_S) as met:
        began_s = monotonic_s()
        _wait(lambda: len(met.exchanges) >= _NEWEST, patience)
        before = met.replicas()
        app.deploy(store.uri, changed)
        reached = _wait(lambda: _only(met, changed.num_replicas) and not before & met.replicas(_NEWEST), patience)
        return Phase("new code, new versions", met, monotonic_s() - began_s, reached)


def _only(met: Met, num: int) -> bool:
    """Whether the newest answers come from no more replicas than that."""
    return len(met.exchanges) >= _NEWEST and len(met.replicas(_NEWEST)) <= num


def _phase(name: str, met: Met, done: Callable[[], bool] | None, seconds: float) -> Phase:
    began_s = monotonic_s()
    reached = _wait(done or (lambda: False), seconds)
    return Phase(name, met, monotonic_s() - began_s, reached if done else None)


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Wait until ``done``, for so long at most; whether it is."""
    until_s, moment = monotonic_s() + seconds, threading.Event()
    while not (reached := done()) and monotonic_s() < until_s:
        moment.wait(_LOOK_S)
    return reached


@contextmanager
def publishing(store: Store, bundles: Sequence[Bundle]) -> Iterator[None]:
    """Publish these in turn, each time under the next number, while the block runs."""
    epoch, ended = take_epoch(store), threading.Event()

    def go_on() -> None:
        version = max(bundle.version for bundle in bundles)
        for bundle in cycle(bundles):
            if ended.wait(_PUBLISH_S):
                return
            version += 1
            publish(store, replace(bundle, version=version, epoch=epoch.number, token=epoch.token), epoch)

    publisher = threading.Thread(target=go_on, name="publisher", daemon=True)
    publisher.start()
    try:
        yield
    finally:
        ended.set()
        publisher.join()


def _row(phase: Phase, checker: Checker) -> dict[str, Any]:
    exchanges = phase.met.exchanges
    latency_ms = 1000 * np.array([exchange.latency_s for exchange in exchanges])
    p50_ms, p99_ms = np.percentile(latency_ms, [50, 99]).tolist() if exchanges else (None, None)
    checked = [checker.is_mixed(request, answer) for request, answer in phase.met.answers]
    return {
        "seconds": phase.seconds,
        "requests": len(exchanges),
        "failed": phase.met.num_failed,
        "slow": sum(exchange.slow for exchange in exchanges),
        "recomputed": sum(mixed is not None for mixed in checked),
        "mixed": sum(bool(mixed) for mixed in checked),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "replicas": len(phase.met.replicas()),
        "versions": len({exchange.version for exchange in exchanges if exchange.version is not None}),
        "reached": phase.reached,
    }


def _print(rows: dict[str, dict[str, Any]]) -> None:
    def text(value: float | None) -> str:
        return "never" if value is None else f"{value:.1f}"

    figures = ("requests", "failed", "slow", "mixed")
    print_table(
        "serving while replicas come and go",
        ("phase", "s", *figures, "p50 ms", "p99 ms", "replicas", "versions", "reached"),
        [
            [
                name,
                text(row["seconds"]),
                *(str(row[figure]) for figure in figures),
                text(row["p50_ms"]),
                text(row["p99_ms"]),
                str(row["replicas"]),
                str(row["versions"]),
                {True: "yes", False: "no", None: "-"}[row["reached"]],
            ]
            for name, row in rows.items()
        ],
    )
