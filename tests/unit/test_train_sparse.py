"""Sparse mode: the same problem as the whole softmax where all is drawn, and the same bits over ranks and restarts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from step_kit import NUM_ITEMS, PairRank, batch_of, fingerprint, make_examples, on_both, passes
from step_kit import make_step as make_any_step

from headrace.catalogue.eligible import Eligible
from headrace.config.models import ObjectiveConfig, SampledSoftmaxConfig, SasRecConfig, SoftmaxConfig
from headrace.methods.base import Method
from headrace.models.build import load_model, model_parts
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.train.group import Group, Solo
from headrace.train.passes import train_passes
from headrace.train.step import TrainStep

torch.set_num_threads(1)  # tiny products: more threads only wait for one another
SPARSE = SampledSoftmaxConfig(negatives=16, draw="uniform")
BY_FREQUENCY = SampledSoftmaxConfig(negatives=16, half_life_targets=50)
EVERYTHING = SampledSoftmaxConfig(negatives=10 * NUM_ITEMS)
CONFIGS = [pytest.param(SPARSE, id="uniform"), pytest.param(BY_FREQUENCY, id="frequency")]


def make_step(objective: ObjectiveConfig = SPARSE, group: Group | None = None, **changes: object) -> TrainStep:
    return make_any_step(group, objective=objective, **changes)


def test_the_gradient_with_everything_drawn_is_that_of_the_whole_softmax():
    gradients = []
    for objective in (EVERYTHING, SoftmaxConfig()):
        step = make_step(objective, dtype=torch.float64, methods=[])
        step.begin_increment(NUM_ITEMS, 0)
        step.run(batch_of(make_examples(2, 8), range(8)), 3.0, torch.arange(NUM_ITEMS))
        gradients.append(step.flat_gradient)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-13, rtol=1e-10)


def test_a_step_changes_touched_rows_only_with_their_moments():
    step = make_step()
    step.begin_increment(NUM_ITEMS, 0)
    before_VD = step.model.table.weight.detach().clone()
    batch = batch_of(make_examples(3, 8), range(8))
    step.run(batch, 8.0, torch.arange(NUM_ITEMS))
    parts = step.state()["optimizer/table/00000"]
    touched_V = parts["touched_at"] > 0
    moved_V = (step.model.table.weight.detach() != before_VD).any(1).numpy()
    assert 16 <= touched_V.sum() < NUM_ITEMS
    assert np.array_equal(moved_V[:NUM_ITEMS], touched_V)
    assert not moved_V[NUM_ITEMS:].any()
    assert np.array_equal(parts["exp_avg_sq"].any(1), touched_V)
    own = np.unique(np.concatenate([batch.inputs.slot_BL[batch.inputs.slot_BL >= 0], batch.column_T]))
    assert touched_V[own].all()
    assert step.flat_gradient.numel() == sum(p.numel() for p in step.model.encoder.parameters()) + 8 * touched_V.sum()


@pytest.mark.parametrize("objective", CONFIGS)
def test_two_ranks_agree_to_the_byte_and_with_one_but_for_rounding(objective):
    def half(group: PairRank) -> TrainStep:
        step, examples = make_step(objective, group, dtype=torch.float64), make_examples(4, 80)
        step.begin_increment(NUM_ITEMS, 0)
        step.observe(examples.target_T, NUM_ITEMS)
        size = 8 // group.world
        for number in range(10):
            first = 8 * number + size * group.rank
            step.run(batch_of(examples, range(first, first + size)), 8.0, torch.arange(NUM_ITEMS))
        return step

    first, second = on_both(half)
    assert fingerprint(first) == fingerprint(second)
    for ours, theirs in zip(first.model.parameters(), half(Solo()).model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_a_rank_without_examples_moves_the_rows_of_the_others():
    def work(group: PairRank) -> dict[str, bytes]:
        step = make_step(group=group)
        passes(step, make_examples(3 + group.rank, 30 if group.rank else 0))
        return fingerprint(step)

    first, second = on_both(work)
    assert first == second


@pytest.mark.parametrize("objective", CONFIGS)
def test_a_restart_goes_on_to_the_same_bytes_through_growth(objective):
    config = SasRecConfig(width=8, dropout=0.5)
    whole = make_step(objective, model=config)
    passes(whole, make_examples(5, 40, 12), 0, 12)
    parts = {name: load_arrays(dump_arrays(part)) for name, part in model_parts(whole.model).items()}
    optimizer = {name: load_arrays(dump_arrays(part)) for name, part in whole.state().items()}
    passes(whole, make_examples(6, 40), 1)

    again = make_step(objective, model=config)
    again.model = load_model(config, 10, parts)
    again.load(optimizer)
    assert {k: dump_arrays(v) for k, v in again.state().items()} == {k: dump_arrays(v) for k, v in optimizer.items()}
    passes(again, make_examples(6, 40), 1)
    assert fingerprint(again) == fingerprint(whole)


def test_negatives_come_from_the_eligible_alone():
    step = make_step(SampledSoftmaxConfig(negatives=8, draw="uniform"), methods=[])
    step.begin_increment(NUM_ITEMS, 0)
    alive = Eligible(np.arange(20, NUM_ITEMS))
    stats = train_passes(step, make_examples(7, 64, 30), alive, np.arange(NUM_ITEMS), epochs=1, seed=9, increment=0)
    assert stats.targets > 0
    read = np.unique(make_examples(7, 64, 30).contexts.item_T)
    touched = np.flatnonzero(step.state()["optimizer/table/00000"]["touched_at"])
    assert set(touched) <= set(read) | set(range(20, NUM_ITEMS))
    assert set(range(30, NUM_ITEMS)) <= set(touched)


@pytest.mark.parametrize("objective", [*CONFIGS, pytest.param(SoftmaxConfig(), id="whole")])
def test_a_row_that_is_given_to_another_item_starts_afresh(objective):
    step = make_step(objective)
    fresh = step.model.table.weight.detach().clone()
    passes(step, make_examples(8, 40, 12), 0, 12)
    kept = step.state()["optimizer/table/00000"]
    step.begin_increment(12, 1)
    step.reset_rows(np.array([3, 7]))
    parts = step.state()["optimizer/table/00000"]
    assert torch.equal(step.model.table.weight[[3, 7]], fresh[[3, 7]])
    assert not torch.equal(step.model.table.weight[:3], fresh[:3])
    for key, array in parts.items():
        assert kept[key][[3, 7]].any()
        assert not array[[3, 7]].any()
        assert np.array_equal(np.delete(array, [3, 7], 0), np.delete(kept[key], [3, 7], 0))


def test_a_penalty_on_the_table_reaches_touched_rows():
    class Pull(Method):
        def penalties(self, model):
            return {"pull": model.table.weight.square().sum()}

    step = make_step(dtype=torch.float64, methods=[Pull()])
    step.begin_increment(NUM_ITEMS, 0)
    before_VD = step.model.table.weight.detach().clone()
    step.run(None, 1.0, torch.arange(NUM_ITEMS))
    touched = np.flatnonzero(step.state()["optimizer/table/00000"]["touched_at"])
    torch.testing.assert_close(step.flat_gradient[-8 * len(touched) :].view(-1, 8), 2.0 * before_VD[touched])


def test_extremes_see_what_is_not_a_number_in_a_touched_row():
    step = make_step()
    passes(step, make_examples(9, 40))
    finite, largest = step.extremes()
    assert finite
    assert 0.0 < largest < 100.0
    with torch.no_grad():
        step.model.table.weight[3, 3] = float("nan")
    assert not step.extremes()[0]


@pytest.mark.parametrize("objective", CONFIGS)
def test_it_learns(objective):
    examples = make_examples(10, 160)
    newest_S = examples.contexts.item_T[examples.contexts.offset_R[1:] - 1]
    examples = replace(examples, target_T=(newest_S + 1) % NUM_ITEMS)
    losses = passes(make_step(objective, learning_rate=3e-2), examples, epochs=20).loss_per_epoch
    assert losses[0] > 2.5
    assert losses[-1] < 1.0


@pytest.mark.parametrize("objective", [*CONFIGS, pytest.param(SoftmaxConfig(), id="whole")])
def test_the_update_ratio_is_that_of_all_parameters(objective):
    step = make_step(objective)
    passes(step, make_examples(11, 40, 12), 0, 12)
    step.begin_increment(NUM_ITEMS, 1)
    parameters = [*step.model.encoder.parameters(), step.model.table.weight]
    before = [parameter.detach()[:NUM_ITEMS].clone() for parameter in parameters]
    assert step.update_ratio() == 0.0
    train_passes(
        step, make_examples(12, 12), Eligible(np.arange(NUM_ITEMS)), np.arange(NUM_ITEMS), epochs=1, seed=9, increment=1
    )
    after = [parameter.detach()[:NUM_ITEMS] for parameter in parameters]
    moved = sum(float((new - old).square().sum()) for new, old in zip(after, before, strict=True))
    norm = sum(float(old.square().sum()) for old in before)
    assert step.update_ratio() == pytest.approx((moved / norm) ** 0.5, rel=1e-5)
