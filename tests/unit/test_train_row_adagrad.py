"""Adagrad by rows: steps by hand, and the whole table under it in the loop."""

import math

import numpy as np
import pytest
import torch
from step_kit import MODEL, NUM_ITEMS, fingerprint, make_examples, make_step, on_both, passes

from headrace.config.methods import RowAdagradConfig
from headrace.config.models import SampledSoftmaxConfig
from headrace.inputs.contexts import contexts_of
from headrace.inputs.examples import Examples
from headrace.models.build import load_model, model_parts
from headrace.train.group import Group
from headrace.train.row_adagrad import RowAdagrad
from headrace.train.step import TrainStep

torch.set_num_threads(1)
ROWS = RowAdagradConfig(learning_rate=0.1, half_life_steps=50)


def test_steps_by_hand():
    optimizer = RowAdagrad(torch.zeros(0, 2, dtype=torch.float64), half_life_steps=1)
    optimizer.grow(3)
    row_RD, gradient_RD = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    optimizer.update_(torch.tensor([1]), row_RD, gradient_RD, 0.1, step=4)
    # the mean square is 5
    wanted = -0.1 * gradient_RD / math.sqrt(5.0)
    torch.testing.assert_close(row_RD, wanted)
    optimizer.update_(torch.tensor([1]), row_RD, gradient_RD, 0.1, step=6)
    # two half-lives later a quarter of it is left
    torch.testing.assert_close(row_RD, wanted - 0.1 * gradient_RD / math.sqrt(5.0 / 4.0 + 5.0))
    assert optimizer.tensors["touched_at"].tolist() == [0, 6, 0]
    assert optimizer.tensors["sum_sq"].tolist() == [0.0, 6.25, 0.0]
    optimizer.grow(5)
    optimizer.reset(torch.tensor([1]))
    assert optimizer.tensors["sum_sq"].tolist() == [0.0] * 5


def test_it_never_stops_learning():
    optimizer = RowAdagrad(torch.zeros(0, 1, dtype=torch.float64), half_life_steps=100)
    optimizer.grow(1)
    row_RD, ones = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for step in range(1, 3000):
        before = float(row_RD)
        optimizer.update_(torch.tensor([0]), row_RD, ones, 1.0, step)
    # so many steps count as a geometric series says
    assert before - float(row_RD) == pytest.approx((1.0 - 0.5**0.01) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("objective", [None, SampledSoftmaxConfig(negatives=16)], ids=["full", "sampled"])
def test_a_restart_goes_on_to_the_same_bytes_through_growth(objective):
    whole = make_step(optimizer=ROWS, objective=objective)
    passes(whole, make_examples(5, 40, 12), 0, 12)
    parts, optimizer = model_parts(whole.model), whole.state()
    assert set(optimizer["optimizer/table/00000"]) == {"sum_sq", "touched_at"}
    passes(whole, make_examples(6, 40), 1)
    fresh = make_step(optimizer=ROWS, objective=objective)
    model = load_model(MODEL, 10, parts)
    again = TrainStep(model, fresh.objective, fresh.methods, fresh.config, fresh.group, fresh.seed)
    again.load(optimizer)
    passes(again, make_examples(6, 40), 1)
    assert fingerprint(again) == fingerprint(whole)


def test_two_ranks_move_the_same_rows():
    def work(group: Group) -> dict[str, bytes]:
        step = make_step(group, optimizer=ROWS)
        passes(step, make_examples(3 + group.rank, 30))
        return fingerprint(step)

    first, second = on_both(work)
    assert first == second


def test_a_row_given_on_learns_as_fast_as_a_new_one():
    step = make_step(optimizer=ROWS)
    passes(step, make_examples(7, 60), 0)
    step.begin_increment(NUM_ITEMS, 1)
    step.reset_rows(np.array([4]))
    assert step.state()["optimizer/table/00000"]["sum_sq"][4] == 0.0
    assert step.state()["optimizer/table/00000"]["sum_sq"][5] > 0.0


def test_it_learns():
    step = make_step(optimizer=ROWS)
    items = np.arange(256) % NUM_ITEMS
    ones, zeros = np.ones(256, dtype=np.float32), np.zeros(256, dtype=np.int64)
    contexts = contexts_of([[item] for item in items.tolist()], 100, 10)
    ring = Examples(contexts, np.arange(256), zeros, (items + 1) % NUM_ITEMS, ones, zeros, zeros, zeros)
    losses = passes(step, ring, epochs=10).loss_per_epoch
    assert losses[0] > 2.0
    assert losses[-1] < 0.5
    finite, largest = step.extremes()
    assert finite
    assert largest < 100.0
