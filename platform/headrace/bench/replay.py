"""``headrace bench replay``: how quickly a rank gets batches of the past, and what keeping them durable costs.

The same batches are drawn in process, through the actor one call at a time, and through the actor with a few in flight.
Then increments come, each with a twentieth as many examples as the full buffer holds, and each snapshot's bytes are
counted as they are written. Figures hold for the examples' lengths: contexts of 8 events on average, at most 50.
"""

import logging
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from pydantic import TypeAdapter

from headrace.bench.output import print_table
from headrace.clock import monotonic_s
from headrace.config.methods import ReplayBufferConfig, ReplayPolicyConfig
from headrace.inputs.contexts import Contexts, offsets
from headrace.inputs.examples import Examples
from headrace.records import KEY_GROUPS, generator
from headrace.replay.actor import RemoteReplay, start_actor
from headrace.replay.client import LocalReplay, Replay, ReplaySpec
from headrace.store.store import PartRef

_POLICIES = ({"kind": "reservoir"}, {"kind": "recency", "half_life_increments": 10}, {"kind": "frequency"})
_FILL_CUTS = 20
_SHARE = 20
"""Each increment brings one example for so many that are held."""


@dataclass(frozen=True)
class Throughput:
    """Made by ``measure_throughput``: examples a second, by way."""

    policy: str
    in_process: float
    one_at_a_time: float
    in_flight: float


@dataclass(frozen=True)
class Durability:
    """Made by ``measure_durability``: what commits of a full buffer write, and how long it takes to go on from one."""

    policy: str
    num_examples: int
    size_bytes: int
    offered: int
    """New examples an increment."""
    written_bytes: float
    """Of a snapshot, mean."""
    largest_written_bytes: int
    stage_s: float
    """Staging and admitting, median."""
    snapshot_s: float
    restore_s: float


def run(
    *, max_mib: int = 64, batch: int = 256, batches: int = 400, increments: int = 20, in_flight: int = 4
) -> dict[str, Any]:
    """Measure every policy with a full buffer of ``max_mib`` and print two tables.

    ``batch``: examples a batch. ``batches``: of each way. ``increments``: snapshots that are measured.
    """
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    throughputs, durabilities = [], []
    try:
        for policy in _POLICIES:
            config = ReplayBufferConfig(
                policy=TypeAdapter(ReplayPolicyConfig).validate_python(policy),
                max_bytes=max_mib * 2**20,
                in_flight=in_flight,
            )
            with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
                spec = ReplaySpec(config, 1, 1, folder)
                durability, refs = measure_durability(spec, increments)
                durabilities.append(durability)
                throughputs.append(measure_throughput(spec, refs, batch, batches))
    finally:
        ray.shutdown()
    _print(throughputs, durabilities, batch, in_flight)
    return {
        "throughput": [asdict(throughput) for throughput in throughputs],
        "durability": [asdict(durability) for durability in durabilities],
    }


def measure_durability(spec: ReplaySpec, increments: int) -> tuple[Durability, dict[str, PartRef]]:
    """Fill a buffer to its budget, then measure ``increments`` more; also the last snapshot's parts."""
    replay, num = LocalReplay(spec, 0), spec.config.max_bytes // 200
    for cut in range(_FILL_CUTS):
        _learn(replay, cut, num // 10)
    refs, offered = replay.snapshot(), replay.held().num_examples // _SHARE
    written, stage_s, snapshot_s = [], [], []
    for cut in range(_FILL_CUTS, _FILL_CUTS + increments):
        stage_s.append(_learn(replay, cut, offered))
        before = {ref.sha256 for ref in refs.values()}
        seconds, refs = _timed(replay.snapshot)
        written.append(sum(ref.size_bytes for ref in refs.values() if ref.sha256 not in before))
        snapshot_s.append(seconds)
    own = {name.removeprefix("replay/"): ref for name, ref in refs.items()}
    restored = LocalReplay(spec, 0)
    restore_s, _ = _timed(lambda: restored.restore(own, 1))
    assert restored.snapshot() == refs
    held = replay.held()
    durability = Durability(
        spec.config.policy.kind,
        held.num_examples,
        held.size_bytes,
        offered,
        statistics.mean(written),
        max(written),
        statistics.median(stage_s),
        statistics.median(snapshot_s),
        restore_s,
    )
    return durability, own


def measure_throughput(spec: ReplaySpec, refs: dict[str, PartRef], batch: int, batches: int) -> Throughput:
    """The same batches three times, compared, so that no way leaves something out; Ray must be up."""
    actor = start_actor(spec)
    single = ReplaySpec(spec.config.model_copy(update={"in_flight": 1}), spec.seed, 1, spec.store_uri)
    ways: list[Replay] = [LocalReplay(spec, 0), RemoteReplay(single, 0, actor), RemoteReplay(spec, 0, actor)]
    rates, answers = [], []
    for replay in ways:
        replay.restore(refs, 1)
        next(replay.batches(0, [batch]))
        seconds, drawn = _timed(lambda replay=replay: [made.row_T for made in replay.batches(1, [batch] * batches)])  # type: ignore[misc]
        rates.append(batch * batches / seconds)
        answers.append(np.concatenate(drawn))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    ray.kill(actor)
    return Throughput(spec.config.policy.kind, *rates)


def _learn(replay: Replay, cut: int, num: int) -> float:
    """One increment's worth of examples; returns the seconds of staging and admitting them."""
    made = examples(cut, num)
    group_S = generator("bench replay groups", cut).integers(0, KEY_GROUPS, num).astype(np.uint8)
    began_s = monotonic_s()
    replay.stage(cut, made, group_S)
    replay.admit(cut)
    return monotonic_s() - began_s


def examples(cut: int, num: int, num_items: int = 20_000) -> Examples:
    """Prefix examples of one cut: lengths are geometric, items follow a power law."""
    draw = generator("bench replay", cut)
    length_S = np.minimum(draw.geometric(1 / 8, num), 50)
    item_T = np.minimum(draw.pareto(1.0, int(length_S.sum()) + num), num_items - 1).astype(np.int64)
    as_of_S = 1_700_000_000_000 + 60_000 * cut + np.sort(draw.integers(0, 60_000, num))
    num_events = int(length_S.sum())
    contexts = Contexts(
        item_T[:num_events],
        np.repeat(as_of_S, length_S) - draw.integers(1, 600_000, num_events),
        np.zeros(num_events, dtype=np.int16),
        offsets(length_S),
        as_of_S,
        draw.integers(0, 1 << 60, num).astype(np.uint64),
        np.zeros(num, dtype=np.int64),
    )
    place_S = np.arange(num)
    weight_S = np.ones(num, dtype=np.float32)
    return Examples(
        contexts, place_S, np.zeros_like(place_S), item_T[num_events:], weight_S, as_of_S, np.full(num, cut), place_S
    )


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began_s = monotonic_s()
    result = call()
    return monotonic_s() - began_s, result


def _print(throughputs: list[Throughput], durabilities: list[Durability], batch: int, in_flight: int) -> None:
    print_table(
        f"replay: examples a second, batches of {batch}",
        ("policy", "in process", "actor, one at a time", f"actor, {in_flight} in flight"),
        [[t.policy, f"{t.in_process:,.0f}", f"{t.one_at_a_time:,.0f}", f"{t.in_flight:,.0f}"] for t in throughputs],
    )
    mib = 2**20
    print_table(
        f"a commit when an increment brings {100 // _SHARE} % as many examples as a full buffer holds",
        ("policy", "held", "MiB", "written MiB", "largest", "stage s", "snapshot s", "restore s"),
        [
            [
                d.policy,
                f"{d.num_examples:,}",
                f"{d.size_bytes / mib:.1f}",
                f"{d.written_bytes / mib:.1f}",
                f"{d.largest_written_bytes / mib:.1f}",
                f"{d.stage_s:.3f}",
                f"{d.snapshot_s:.3f}",
                f"{d.restore_s:.3f}",
            ]
            for d in durabilities
        ],
    )
