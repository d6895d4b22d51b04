"""The buffer: nothing is drawn before its commit, nothing exceeds the budget, and snapshots are whole and small."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config.methods import FrequencyConfig, RecencyConfig, ReplayBufferConfig, ReservoirConfig
from headrace.errors import StoreError
from headrace.inputs.contexts import Contexts, offsets
from headrace.inputs.examples import Examples
from headrace.records import Rows, generator
from headrace.replay.buffer import Buffer
from headrace.replay.client import LocalReplay, ReplaySpec
from headrace.replay.packed import concatenate, groups_of, join, pack
from headrace.replay.policy import build_policy
from headrace.store.store import Store, part_name

POLICIES = (ReservoirConfig(), RecencyConfig(half_life_increments=3), FrequencyConfig())
each_policy = pytest.mark.parametrize("config", POLICIES, ids=lambda config: config.kind)


def examples(cut: int, num: int, max_events: int = 8, max_targets: int = 1) -> Examples:
    """Drawn examples of one cut; the shard is the cut. Those of several targets have levels."""
    drawn = generator("test replay", cut)
    length_S, count_S = drawn.integers(1, max_events + 1, num), drawn.integers(1, max_targets + 1, num)
    events, targets = int(length_S.sum()), int(count_S.sum())
    as_of_S = 10_000 * cut + np.arange(num)
    contexts = Contexts(
        drawn.integers(0, 1000, events),
        drawn.integers(0, 10_000, events),
        drawn.integers(0, 3, events).astype(np.int16),
        offsets(length_S),
        as_of_S,
        drawn.integers(0, 1 << 60, num).astype(np.uint64),
        drawn.integers(0, 1 << 60, num),
    )
    return Examples(
        contexts,
        np.repeat(np.arange(num), count_S),
        drawn.integers(0, 1, targets),
        drawn.integers(0, 20, targets),
        drawn.random(targets).astype(np.float32),
        np.repeat(as_of_S, count_S),
        np.full(targets, cut),
        np.arange(targets),
        (np.arange(targets) % 3).astype(np.int8) if max_targets > 1 else None,
    )


def groups(num: int) -> np.ndarray:
    return (np.arange(num) * 7 % 64).astype(np.uint8)


def arrays(made: Examples) -> dict[str, np.ndarray]:
    flat = {f"contexts.{field.name}": getattr(made.contexts, field.name) for field in fields(Contexts)}
    own = {field.name: getattr(made, field.name) for field in fields(Examples) if field.name != "contexts"}
    return flat | {name: array for name, array in own.items() if array is not None}


def test_examples_without_levels_are_joined_to_others_as_of_the_lowest():
    plain, told = examples(1, 4), examples(2, 3, max_targets=2)
    assert join(plain, plain).level_T is None
    assert join(pack(plain, groups(4), 1).take(np.arange(0)).examples(), told).level_T.tolist() == told.level_T.tolist()
    assert join(told, plain).level_T.tolist() == [*told.level_T.tolist(), 0, 0, 0, 0]


def assert_same(first: Examples, second: Examples) -> None:
    assert list(arrays(first)) == list(arrays(second))
    for name, array in arrays(first).items():
        assert array.dtype == arrays(second)[name].dtype, name
        assert np.array_equal(array, arrays(second)[name]), name


def buffer(config=POLICIES[0], max_bytes: int = 40_000, segment_bytes: int = 4000) -> Buffer:
    return Buffer(build_policy(config, 1), max_bytes, segment_bytes, 1)


def add(held: Buffer, cut: int, num: int, max_targets: int = 1) -> None:
    held.stage(pack(examples(cut, num, max_targets=max_targets), groups(num), cut), cut)
    held.admit(cut)


def cuts_drawn(held: Buffer, size: int = 4000) -> set[int]:
    return set(held.sample(99, 0, 0, size).shard_T.tolist())


def replay(folder, *, rank: int = 0, world: int = 1, config=POLICIES[0], max_bytes: int = 40_000) -> LocalReplay:
    made = ReplayBufferConfig(policy=config, max_bytes=max_bytes, segment_bytes=4000)
    return LocalReplay(ReplaySpec(made, 1, world, str(folder)), rank)


def without_folder(refs):
    return {name.removeprefix("replay/"): ref for name, ref in refs.items()}


@pytest.mark.parametrize("max_targets", [1, 4])
def test_what_is_drawn_is_what_was_staged(max_targets):
    made = examples(3, 50, max_targets=max_targets)
    held = buffer()
    held.stage(pack(made, groups(50), 3), 3)
    held.admit(3)
    drawn = held.sample(4, 0, 0, 50)
    first_S = np.searchsorted(made.sequence_T, np.arange(50))
    by_row = {row: place for place, row in enumerate(made.row_T[first_S].tolist())}
    first_B = np.searchsorted(drawn.sequence_T, np.arange(50))
    assert_same(drawn, made.take(np.array([by_row[row] for row in drawn.row_T[first_B].tolist()])))


def test_staged_examples_are_not_drawn_and_a_rejected_stage_is_gone():
    held = buffer()
    add(held, 0, 20)
    held.stage(pack(examples(1, 20), groups(20), 1), 1)
    assert (len(held), cuts_drawn(held)) == (20, {0})
    before = held.parts()
    held.revert()
    held.admit(1)
    assert (len(held), cuts_drawn(held)) == (20, {0})
    assert [name for name in held.parts() if name != "index"] == [name for name in before if name != "index"]
    add(held, 2, 20)
    assert cuts_drawn(held) == {0, 2}


def test_a_cut_staged_twice_counts_once():
    held = buffer()
    for _ in range(2):
        held.stage(pack(examples(1, 20), groups(20), 1), 1)
    held.admit(1)
    held.admit(1)
    assert len(held) == 20


@each_policy
def test_dropped_cuts_are_gone_at_once_and_for_good_once_committed(config):
    held = buffer(config)
    for cut in range(5):
        add(held, cut, 10)
    held.drop(range(3, 5))
    assert cuts_drawn(held) == {0, 1, 2}
    held.revert()
    assert cuts_drawn(held) == {0, 1, 2, 3, 4}, "a rejection takes the roll back back"
    held.drop(range(3, 5))
    held.admit(5)
    held.revert()
    assert cuts_drawn(held) == {0, 1, 2}
    other = buffer(config)
    other.load(held.parts())
    assert cuts_drawn(other) == {0, 1, 2}


@each_policy
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 120), st.sampled_from(["admit", "revert", "drop"])), min_size=1, max_size=25),
    st.sampled_from([3000, 10_000, 40_000]),
)
def test_the_budget_holds_after_every_call(config, increments, max_bytes):
    held = buffer(config, max_bytes, 2000)
    for cut, (num, then) in enumerate(increments):
        if then == "drop":
            held.drop([cut - 1, cut - 3])
        held.stage(pack(examples(cut, num, max_targets=2), groups(num), cut), cut)
        assert held.size_bytes <= max_bytes
        held.revert() if then == "revert" else held.admit(cut)
        assert held.size_bytes <= max_bytes
        assert held.alive_bytes <= max_bytes * 3 // 4
        segments = [part for name, part in held.parts().items() if name != "index"]
        assert sum(array.nbytes for part in segments for array in part.values()) <= max_bytes
        assert sum(len(part["example"]) for part in segments) >= len(held)


@each_policy
@pytest.mark.parametrize("sizes", [[40] * 60, [30, 600, 60, 60], [300] * 20], ids=["small", "warm-up", "large"])
def test_a_buffer_fills_up_and_is_not_left_half_empty(config, sizes):
    held = buffer(config)
    for cut, num in enumerate(sizes):
        add(held, cut, num)
    assert held.alive_bytes > 40_000 * (0.7 if sizes[-1] < 300 else 0.6)
    assert len(held.parts()) < 30


def test_the_reservoir_holds_old_and_new_alike_after_many_increments():
    held = buffer(ReservoirConfig(), 400_000, 20_000)
    for cut in range(50):
        add(held, cut, 200)
    num_cut = np.bincount(held.sample(50, 0, 0, len(held)).shard_T, minlength=50)
    expected = num_cut.sum() / 50
    assert ((num_cut - expected) ** 2 / expected).sum() < 85.4, "chi-square, 49 degrees of freedom, 99.9 % quantile"


@each_policy
def test_going_on_from_a_snapshot_gives_the_same_bytes_as_never_having_stopped(config, tmp_path):
    through, stopped = replay(tmp_path / "a", config=config), replay(tmp_path / "b", config=config)
    for cut in range(30):
        made = examples(cut, 40)
        for held in (through, stopped):
            held.stage(cut, made, groups(40))
            held.admit(cut)
        refs = through.snapshot()
        assert refs == stopped.snapshot()
        assert_same(*(next(held.batches(cut + 1, [16])) for held in (through, stopped)))
        if cut % 4 == 0:
            stopped = replay(tmp_path / "b", config=config)
            stopped.restore(without_folder(refs), 1)
            assert stopped.snapshot() == refs
            assert stopped.held() == through.held()


def test_batches_are_pure_functions_of_state_and_key(tmp_path):
    held = replay(tmp_path)
    held.stage(0, examples(0, 90), groups(90))
    held.admit(0)
    steps = list(held.batches(1, [8, 8, 5]))
    assert [len(batch) for batch in steps] == [8, 8, 5]
    assert_same(next(held.batches(1, [5], first_step=2)), steps[2])
    assert_same(held.sample(1, 1, 8), steps[1])
    assert not np.array_equal(steps[0].row_T, steps[1].row_T)
    assert not np.array_equal(next(held.batches(2, [8])).row_T, steps[0].row_T)


def test_an_empty_replay_gives_empty_batches_and_a_snapshot(tmp_path):
    held = replay(tmp_path)
    assert [len(batch) for batch in held.batches(1, [4, 4])] == [0, 0]
    refs = held.snapshot()
    assert list(refs) == ["replay/0000/index"]
    held.restore(without_folder(refs), 1)
    held.restore({}, 1)
    assert held.held().num_examples == 0


def test_segments_in_which_nothing_changed_are_not_touched_again(tmp_path, monkeypatch):
    held, written = replay(tmp_path, max_bytes=400_000), []
    put = Store.put_part
    monkeypatch.setattr(Store, "put_part", lambda store, content: written.append(len(content)) or put(store, content))
    held.stage(0, examples(0, 1500), groups(1500))
    held.admit(0)
    held.snapshot()
    first = sum(written)
    written.clear()
    held.stage(1, examples(1, 20), groups(20))
    held.admit(1)
    refs = held.snapshot()
    assert len(written) == 2, "the new segment and the index"
    assert sum(written) < first / 20
    written.clear()
    assert held.snapshot() == refs
    assert written == []
    held.restore(without_folder(refs), 1)
    assert held.snapshot() == refs
    assert len(written) == 1, "the index alone"


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (2, 3)])
def test_another_world_size_deals_the_examples_out_again_by_key_group(worlds, tmp_path):
    refs, before = {}, set()
    for rank in range(worlds[0]):
        held = replay(tmp_path, rank=rank, world=worlds[0], max_bytes=600_000)
        for cut in range(4):
            made = examples(cut, 200)
            mine = np.flatnonzero(groups(200) % worlds[0] == rank)
            held.stage(cut, made.take(mine), groups(200)[mine])
            held.admit(cut)
        refs |= without_folder(held.snapshot())
        drawn = held.sample(9, 0, 5000)
        before |= set(zip(drawn.shard_T.tolist(), drawn.row_T.tolist(), strict=True))
    after = set()
    for rank in range(worlds[1]):
        held = replay(tmp_path, rank=rank, world=worlds[1], max_bytes=600_000)
        held.restore(refs, worlds[0])
        drawn = held.sample(9, 0, 5000)
        assert set((drawn.row_T * 7 % 64 % worlds[1]).tolist()) == {rank}
        mine = set(zip(drawn.shard_T.tolist(), drawn.row_T.tolist(), strict=True))
        assert not after & mine
        after |= mine
    assert len(before) == 800
    assert after == before


@each_policy
def test_full_buffers_that_are_dealt_out_again_are_full(config, tmp_path):
    one = replay(tmp_path, max_bytes=80_000, config=config)
    for cut in range(40):
        one.stage(cut, examples(cut, 40), groups(40))
        one.admit(cut)
    refs, total = without_folder(one.snapshot()), 0
    for rank in range(2):
        half = replay(tmp_path, rank=rank, world=2, max_bytes=80_000, config=config)
        half.restore(refs, 1)
        assert half.held().size_bytes <= 40_000
        total += half.held().num_examples
    assert total > 0.9 * one.held().num_examples


def test_dealt_out_reservoirs_are_still_uniform_over_what_was_seen(tmp_path):
    refs = {}
    for rank, num in ((0, 1000), (1, 400)):
        held = replay(tmp_path, rank=rank, world=2, max_bytes=120_000)
        mine = np.flatnonzero(groups(2 * num) % 2 == rank)
        held.stage(rank, examples(rank, 2 * num).take(mine), groups(2 * num)[mine])
        held.admit(rank)
        refs |= without_folder(held.snapshot())
    held = replay(tmp_path, max_bytes=120_000)
    held.restore(refs, 2)
    drawn = held.sample(9, 0, held.held().num_examples)
    num_first = (drawn.shard_T == 0).sum()
    assert held.held().size_bytes <= 120_000
    assert abs(num_first / len(drawn) - 1000 / 1400) < 0.07


def test_another_policy_or_a_smaller_budget_goes_on_from_what_is_there(tmp_path):
    held = replay(tmp_path)
    for cut in range(20):
        held.stage(cut, examples(cut, 40), groups(40))
        held.admit(cut)
    refs = held.snapshot()
    other = replay(tmp_path, config=RecencyConfig(half_life_increments=1), max_bytes=20_000)
    other.restore(without_folder(refs), 1)
    assert other.held().size_bytes <= 20_000
    other.stage(20, examples(20, 40), groups(40))
    other.admit(20)
    assert (other.sample(21, 0, 1000).shard_T == 20).mean() > 0.3, "the reservoir's threshold does not hold"


def test_a_missing_part_or_rank_is_named(tmp_path):
    held = replay(tmp_path)
    held.stage(0, examples(0, 10), groups(10))
    held.admit(0)
    refs = without_folder(held.snapshot())
    with pytest.raises(StoreError, match="no parts of rank 0"):
        held.restore({name.replace("0000/", "0001/", 1): ref for name, ref in refs.items()}, 1)
    Store(str(tmp_path)).delete(part_name(refs["0000/00000000"].sha256))
    with pytest.raises(StoreError, match="is missing from"):
        held.restore(refs, 1)


def test_the_key_group_of_an_example_is_its_first_targets():
    made = examples(0, 30, max_targets=3)
    num = len(made.row_T)
    order = generator("rows").permutation(num)
    empty = np.zeros(num)
    rows = Rows(made.shard_T[order], made.row_T[order], groups(num)[order], *([empty] * 8))
    first_S = np.searchsorted(made.sequence_T, np.arange(30))
    assert (groups_of(made, rows) == groups(num)[first_S]).all()
    none = examples(0, 0)
    assert len(groups_of(none, Rows(none.shard_T, none.row_T, groups(0), *([empty[:0]] * 8)))) == 0


def test_joined_examples_are_both_parts_in_order():
    first, second = examples(0, 5, max_targets=3), examples(1, 7, max_targets=2)
    both = join(first, second)
    assert len(both) == 12
    assert_same(both.take(np.arange(5)), first)
    assert_same(both.take(np.arange(5, 12)), second)
    assert_same(join(first, concatenate([]).examples()), first)
