"""Rows of the item table that pass from one item to another, in the whole loop: fresh, alike on all ranks, restored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_kit import Stream, events, lawful, poisoned_stream, recipe

from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.models.table import ItemTable
from headrace.train.rows import start_rows
from headrace.train.state import LearnerState

HOUR_S = 3600
LIFE = ("catalogue.min_events=2", f"catalogue.forget_s={2 * HOUR_S}", "catalogue.max_items=20", "model.dropout=0.0")
SPARSE = "objective.kind=sampled_softmax"


def moving(index: int, num_events: int = 80) -> pa.Table:
    """A shard whose items are a window that has moved on since the shard before."""
    table = events(num_events, seed=index, start_ms=index * HOUR_S * 1000)
    return table.set_column(0, "item_id", pa.array(table["item_id"].to_numpy() % 30 + 10 * index))


def stream_of(folder: Path, *overrides: str, shards: int = 5) -> Stream:
    stream = Stream(folder, recipe(*LIFE, *overrides))
    for index in range(shards):
        stream.land(moving(index, 300 if index == 0 else 80))
    return stream


def digest(stream: Stream) -> str:
    latest = Chain(stream.store).latest()
    assert latest is not None
    return latest.state_digest


@pytest.mark.parametrize("mode", ["objective.kind=softmax", SPARSE])
def test_rows_are_given_on_and_a_run_stopped_after_every_increment_ends_the_same(tmp_path: Path, mode: str) -> None:
    undisturbed = stream_of(tmp_path / "a", mode).advance()
    disturbed = stream_of(tmp_path / "b", mode)
    for cut in range(5):
        disturbed.advance(until=cut)
    assert digest(disturbed) == undisturbed[-1].state_digest
    assert all(lawful(m) for m in undisturbed)
    facts = undisturbed[-1].facts
    assert facts["num_slots"] <= 20 < facts["num_items"]
    assert 0 < facts["num_eligible"] <= 20


def test_two_ranks_give_rows_on_alike(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a", SPARSE, shards=4).advance_pair()
    disturbed = stream_of(tmp_path / "b", SPARSE, shards=4)
    disturbed.advance_pair(until=2)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest


@pytest.mark.parametrize("mode", ["objective.kind=softmax", SPARSE])
def test_a_row_that_is_given_on_starts_afresh_with_its_optimizer_state(tmp_path: Path, mode: str) -> None:
    states: list[LearnerState] = []
    stream_of(tmp_path, mode, shards=3).advance(change=states.append)
    state = states[0]
    slot = int(state.catalogue.slot_I[state.catalogue.slot_I >= 0][0])
    parts = {name: part for name, part in state.step.state().items() if name.startswith("optimizer/table")}
    assert all(array[slot].any() for part in parts.values() for array in part.values()), "it was trained"
    state.held_V = state.held_V.copy()
    state.held_V[slot] += 1  # as if another item had held it
    state.step.begin_increment(state.catalogue.num_slots, 3)
    start_rows(state)
    table = state.model.table
    fresh = ItemTable(table.width, table.capacity, table.seed, table.scale)
    assert torch.equal(table.weight[slot], fresh.weight[slot])
    assert not torch.equal(table.weight[slot + 1], fresh.weight[slot + 1])
    for part in state.step.state().values():
        for name in ("exp_avg", "exp_avg_sq", "clock", "touched_at"):
            if name in part and len(part[name]) == state.catalogue.num_slots:
                assert not part[name][slot].any(), name
    assert state.held_V is state.catalogue.number_V


def test_a_roll_back_past_rows_that_were_given_on_restarts_to_the_same_bytes(tmp_path: Path) -> None:
    words = ("catalogue.max_items=82",)  # full, once the poisoned cut has brought its items
    undisturbed = poisoned_stream(tmp_path / "a", *words).advance()
    assert any(m.facts["review"]["rolled_back_to"] for m in undisturbed)
    disturbed = poisoned_stream(tmp_path / "b", *words)
    for cut in range(len(undisturbed)):
        disturbed.advance(until=cut)
    assert digest(disturbed) == undisturbed[-1].state_digest


def test_items_below_the_threshold_are_passed_over_and_never_answered(tmp_path: Path) -> None:
    states: list[LearnerState] = []
    stream = Stream(tmp_path, recipe("catalogue.min_events=4", "evaluation.eval_share=0"))
    stream.land(events(300, seed=0))
    stream.land(events(80, seed=1, start_ms=HOUR_S * 1000))
    stream.advance(change=states.append)
    catalogue = states[0].catalogue
    assert np.array_equal(catalogue.slot_I >= 0, catalogue.count_I >= 4)
    assert (catalogue.slot_I < 0).any()
    assert np.array_equal(states[0].eligible.number_E, np.flatnonzero(catalogue.slot_I >= 0))


def test_a_hundred_thousand_new_items_in_one_increment(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe(SPARSE, "objective.negatives=64", "train.batch=2048"))
    stream.land(events(300, seed=0))
    flood = events(100_000, seed=1, start_ms=HOUR_S * 1000, num_users=5000)
    stream.land(flood.set_column(0, "item_id", pa.array(np.arange(100_000) + 1000)))
    flooded: Manifest = stream.advance()[-1]
    assert flooded.verdict == "publish"
    assert flooded.facts["num_items"] > 100_000
    assert sum(flooded.envelope.seconds.values()) < 60
