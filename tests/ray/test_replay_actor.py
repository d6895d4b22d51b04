"""Batches through the actor equal those in process, also after it was killed; a dead actor is named."""

import time

import numpy as np
import pytest

from headrace.config.methods import RecencyConfig, ReplayBufferConfig
from headrace.errors import TrainingError
from headrace.inputs.contexts import Contexts, offsets
from headrace.inputs.examples import Examples
from headrace.records import generator
from headrace.replay.client import LocalReplay, Replay, ReplaySpec

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def examples(cut: int, num: int = 60) -> Examples:
    drawn = generator("test replay", cut)
    length_S = drawn.integers(1, 9, num)
    total, as_of_S = int(length_S.sum()), 1000 * cut + np.arange(num)
    contexts = Contexts(
        drawn.integers(0, 500, total),
        drawn.integers(0, 9999, total),
        np.zeros(total, dtype=np.int16),
        offsets(length_S),
        as_of_S,
        np.arange(num, dtype=np.uint64),
        np.zeros(num, dtype=np.int64),
    )
    ones, places = np.ones(num, dtype=np.float32), np.arange(num)
    return Examples(contexts, places, 0 * places, places % 9, ones, as_of_S, np.full(num, cut), places)


def spec(folder, world: int = 2) -> ReplaySpec:
    config = ReplayBufferConfig(policy=RecencyConfig(half_life_increments=2), max_bytes=30_000, segment_bytes=4000)
    return ReplaySpec(config, 1, world, str(folder))


def increment(replay: Replay, cut: int) -> tuple[list[bytes], dict]:
    """What the loop does with replay in one increment; the bytes that it was given, and the snapshot."""
    if cut == 5:
        replay.drop([3, 4])
    given = [
        batch.row_T.tobytes() + batch.shard_T.tobytes() + batch.contexts.item_T.tobytes()
        for batch in replay.batches(cut, [7] * 6)
    ]
    replay.stage(cut, examples(cut), np.arange(60, dtype=np.uint8))
    replay.revert() if cut == 6 else replay.admit(cut)
    return given, replay.snapshot()


def test_batches_through_the_actor_equal_those_in_process_also_after_it_was_killed(tmp_path):
    import ray

    from headrace.replay.actor import RemoteReplay, start_actor

    actor = start_actor(spec(tmp_path / "actor"))
    remote = [RemoteReplay(spec(tmp_path / "actor"), rank, actor) for rank in range(2)]
    local = [LocalReplay(spec(tmp_path / "local"), rank) for rank in range(2)]
    for replay in (*remote, *local):
        replay.restore({}, 1)
    for cut in range(8):
        if cut in (4, 7):
            ray.kill(actor, no_restart=False)
        for rank in range(2) if cut % 2 else (1, 0):
            assert increment(remote[rank], cut) == increment(local[rank], cut)
        assert [replay.held() for replay in remote] == [replay.held() for replay in local]
    assert remote[0].waited_s > 0.0


def test_a_kill_between_stage_and_commit_loses_nothing(tmp_path):
    import ray

    from headrace.replay.actor import RemoteReplay, start_actor

    actor = start_actor(spec(tmp_path / "actor", world=1))
    remote, local = (
        RemoteReplay(spec(tmp_path / "actor", world=1), 0, actor),
        LocalReplay(spec(tmp_path / "local", world=1), 0),
    )
    for replay in (remote, local):
        replay.restore({}, 1)
        for cut in range(4):
            increment(replay, cut)
        replay.drop([3])
        replay.stage(4, examples(4), np.arange(60, dtype=np.uint8))
    asked = remote.batches(5, [5] * 8)
    first = next(asked)
    ray.kill(actor, no_restart=False)
    rest = [batch.row_T.tolist() for batch in asked]
    expected = [batch.row_T.tolist() for batch in local.batches(5, [5] * 8)]
    assert [first.row_T.tolist(), *rest] == expected
    for replay in (remote, local):
        replay.admit(4)
    assert remote.snapshot() == local.snapshot()


def test_an_actor_that_does_not_come_back_is_a_clear_error(tmp_path):
    import ray

    from headrace.replay.actor import RemoteReplay, start_actor

    actor = start_actor(spec(tmp_path, world=1))
    remote = RemoteReplay(spec(tmp_path, world=1), 0, actor)
    remote.restore({}, 1)
    ray.kill(actor)
    began_s = time.monotonic()
    with pytest.raises(TrainingError, match="the replay actor is gone"):
        list(remote.batches(0, [4]))
    assert time.monotonic() - began_s < 30


def test_the_benchmark_measures_all_ways(tmp_path):
    from headrace.bench.replay import measure_durability, measure_throughput

    durability, refs = measure_durability(spec(tmp_path, world=1), increments=3)
    assert 0 < durability.written_bytes <= durability.largest_written_bytes <= 30_000
    throughput = measure_throughput(spec(tmp_path, world=1), refs, batch=16, batches=10)
    assert min(throughput.in_process, throughput.one_at_a_time, throughput.in_flight) > 0
