"""The Fisher information by hand on two parameters and by a loop over examples; and what the penalty pulls at."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from step_kit import NUM_ITEMS, PairRank, make_examples, make_step, on_both, passes
from torch import nn

from headrace.config.methods import EwcConfig
from headrace.config.models import SasRecConfig
from headrace.inputs.contexts import contexts_of, pad
from headrace.inputs.examples import Examples
from headrace.methods.base import Learned
from headrace.methods.build import build_method
from headrace.methods.ewc import Ewc
from headrace.methods.fisher import Asked, fisher_sums
from headrace.models.base import RecallModel
from headrace.models.build import build_model
from headrace.models.offset import Offset
from headrace.models.table import ItemTable

ROWS = np.arange(NUM_ITEMS)


class Scale(nn.Module):
    """The newest item, each entry times a parameter: a model with two of them."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([first, second], dtype=torch.float64))

    def forward(self, inputs, item_BLD, row_P, back_P):
        return item_BLD[row_P, -1 - back_P] * self.weight


def two_parameters() -> RecallModel:
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    return RecallModel(Scale(math.log(2.0), 0.0), ItemTable.from_rows(rows, 1, 1.0), None)


def learned(examples: Examples, increment: int = 0, slot_E: np.ndarray = ROWS, sum_=lambda tensor: None) -> Learned:
    return Learned(examples, ROWS, slot_E, increment, 9, torch.device("cpu"), sum_)


def asked(examples: Examples, draw_T: np.ndarray | None = None, labels: np.ndarray | None = None) -> Asked:
    column_T = examples.target_T if labels is None else labels
    contexts = examples.contexts_of(np.arange(len(examples.target_T)))
    return Asked(contexts, column_T, examples.weight_T, draw_T)


def test_two_parameters_by_hand():
    # context [2] reads (1, 1): the query is (ln 2, 0), logits are ln 2 and 0 over items 0 and 1, probabilities 2/3, 1/3
    one = Asked(contexts_of([[2]], 100, 5), np.array([0]), np.ones(1, dtype=np.float32), None)
    sums = fisher_sums(two_parameters(), one, np.arange(3), np.array([0, 1]), 3)
    # off by (-1/3, 1/3); to the query (-1/3) (1, 0) + (1/3) (0, 2) = (-1/3, 2/3), to the weight the same times (1, 1)
    torch.testing.assert_close(sums["encoder/weight"], torch.tensor([1 / 9, 4 / 9], dtype=torch.float64))
    # scored rows: off times the query; the row read, which is not scored: what reaches the query, times the weight
    scored = torch.tensor([[math.log(2.0) ** 2 / 9, 0.0], [math.log(2.0) ** 2 / 9, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(sums["table"][:2], scored)
    read = torch.tensor([math.log(2.0) ** 2 / 9, 0.0], dtype=torch.float64)
    torch.testing.assert_close(sums["table"][2], read)


def test_a_sum_over_examples_by_hand():
    # the second example's target is item 1: off by (2/3, -2/3), four times the squares; it weighs a half
    weight_T = np.array([1.0, 0.5], dtype=np.float32)
    two = Asked(contexts_of([[2], [2]], 100, 5), np.array([0, 1]), weight_T, None)
    sums = fisher_sums(two_parameters(), two, np.arange(3), np.array([0, 1]), 3)
    torch.testing.assert_close(sums["encoder/weight"], torch.tensor([3 / 9, 12 / 9], dtype=torch.float64))


def test_a_prior_takes_part_by_hand():
    """With the prior both items are as likely: off by (-1/2, 1/2)."""
    none = torch.zeros(0, dtype=torch.int64)
    shared_E = torch.tensor([-math.log(2.0), 0.0], dtype=torch.float64)
    offset = Offset(shared_E, none, none, torch.zeros(0, dtype=torch.float64))
    one = Asked(contexts_of([[2]], 100, 5), np.array([0]), np.ones(1, np.float32), None, lambda contexts: offset)
    sums = fisher_sums(two_parameters(), one, np.arange(3), np.array([0, 1]), 3)
    torch.testing.assert_close(sums["encoder/weight"], torch.tensor([1 / 4, 1.0], dtype=torch.float64))


def by_loop(model: RecallModel, sequences: list[list[int]], labels: np.ndarray, weight_T: np.ndarray, slot_E):
    """Squares of each example's gradient by plain autograd, one example after the other."""
    sums: dict[str, torch.Tensor] = {}
    for sequence, label, weight in zip(sequences, labels.tolist(), weight_T.tolist(), strict=True):
        model.zero_grad()
        inputs = pad(contexts_of([sequence], 100, 10), ROWS)
        item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL))
        zero = torch.zeros(1, dtype=torch.long)
        logit_PE = model.logits(model.encoder(inputs, item_BLD, zero, zero), model.table.weight[slot_E])
        (-logit_PE.log_softmax(1)[0, label]).backward()
        for name, value in model.named_parameters():
            name = "table" if name == "table.weight" else name.replace(".", "/", 1)
            square = torch.zeros_like(value) if value.grad is None else value.grad.square()
            sums[name] = sums.get(name, 0.0) + weight * square
    return sums


@pytest.mark.parametrize("scores", ["dot", "cosine"])
@pytest.mark.parametrize("slot_E", [ROWS, np.arange(3, NUM_ITEMS, 2)])
def test_it_is_what_a_loop_over_examples_finds(scores, slot_E):
    """Also where contexts hold an item twice, and where items are read but not scored."""
    model = build_model(SasRecConfig(width=8, heads=2, scores=scores), 10, NUM_ITEMS, seed=3).double().train()
    draw = np.random.default_rng(1)
    sequences = [[3, 5, 3], [4], [7, 7], *(draw.integers(NUM_ITEMS, size=n).tolist() for n in (1, 2, 3, 5, 8, 5, 3))]
    labels = draw.integers(len(slot_E), size=len(sequences))
    weight_T = draw.random(len(sequences)).astype(np.float32) + 0.5
    ours = fisher_sums(model, Asked(contexts_of(sequences, 100, 10), labels, weight_T, None), ROWS, slot_E, NUM_ITEMS)
    assert model.training
    theirs = by_loop(model.eval(), sequences, labels, weight_T, slot_E)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.detach(), rtol=1e-9, atol=1e-15, msg=name)


def test_labels_are_drawn_as_the_model_would_answer():
    model = two_parameters()
    size = 3000
    draw_T = (np.arange(size) + 0.5) / size
    many = Asked(contexts_of([[2]] * size, 100, 5), np.zeros(size, np.int64), np.ones(size, np.float32), draw_T)
    sums = fisher_sums(model, many, np.arange(3), np.array([0, 1]), 3)
    # a label of 0 has chance 2/3 and squares (1/9, 4/9), one of 1 the rest and four times as much
    torch.testing.assert_close(sums["encoder/weight"] / size, torch.tensor([2 / 9, 8 / 9], dtype=torch.float64))


def test_the_sample_is_about_as_large_as_asked_and_the_ranks_share_it():
    examples = make_examples(4, 2000)
    examples = replace(examples, row_T=np.arange(2000))
    method = build_method(EwcConfig(examples=300))
    assert isinstance(method, Ewc)
    whole = method._sample(learned(examples))
    assert 230 < len(whole.weight_T) < 370
    other = method._sample(learned(examples, increment=1))
    assert not np.array_equal(other.weight_T, whole.weight_T)

    def half(group: PairRank) -> Asked:
        mine = examples.take(np.flatnonzero(np.arange(2000) % 2 == group.rank))
        return method._sample(learned(mine, sum_=group.sum_))

    halves = on_both(half)
    together = np.concatenate([part.weight_T for part in halves])
    assert np.array_equal(np.sort(together), np.sort(whole.weight_T))


def test_targets_that_are_not_scored_or_ask_of_nothing_are_left_out():
    zeros, ones = np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.float32)
    position_T = np.array([0, 1, 2])
    sessions = Examples(contexts_of([[1, 2]], 100, 5), zeros, position_T, np.array([3, 4, 5]), ones, *(zeros,) * 3)
    method = Ewc(EwcConfig(labels="target"))
    found = method._sample(learned(sessions, slot_E=np.array([2, 4, 5])))
    assert found.column_T.tolist() == [1]  # item 3 is not scored, and item 5's context is empty
    assert found.contexts.item_T.tolist() == [1]


def test_the_penalty_by_hand_with_decay_growth_and_a_row_given_on():
    method, model = Ewc(EwcConfig(strength=3.0, decay=0.5, labels="target")), two_parameters()
    slot_I, zero, one = np.arange(3), np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32)
    examples = Examples(contexts_of([[2]], 100, 5), zero, zero, zero, one, zero, zero, zero)
    told = Learned(examples, slot_I, np.array([0, 1]), 0, 9, torch.device("cpu"), lambda tensor: None)
    assert method.penalties(model) == {}
    for increment in range(2):
        method.end_increment(model, replace(told, increment=increment))
    fisher = torch.tensor([1.5 / 9, 6 / 9], dtype=torch.float64)
    table = 1.5 * math.log(2.0) ** 2 / 9  # of the first entry of each row
    model.table.grow(5)
    method.begin_increment(model, 2)
    assert method.penalties(model)["ewc"].item() == 0.0
    with torch.no_grad():
        model.encoder.weight += torch.tensor([2.0, 1.0])
    assert method.penalties(model)["ewc"].item() == pytest.approx(1.5 * float(4 * fisher[0] + fisher[1]))
    with torch.no_grad():
        model.encoder.weight -= torch.tensor([2.0, 1.0])
        model.table.weight[4] += 7.0  # new: nothing holds it
        assert method.penalties(model)["ewc"].item() == pytest.approx(0.0)
        model.table.weight[:2, 0] += 1.0
    assert method.penalties(model)["ewc"].item() == pytest.approx(1.5 * 2 * table)
    method.reset_rows(np.array([1, 4]))
    assert method.penalties(model)["ewc"].item() == pytest.approx(1.5 * table)


def test_it_holds_the_model_in_the_loop():
    def moved(strength: float) -> float:
        step = make_step(methods=[build_method(EwcConfig(strength=strength))])
        passes(step, make_examples(1, 60, 30), 0, 30)
        step.end_increment(make_examples(1, 60, 30), ROWS, ROWS[:30])
        before = [p.detach().clone() for p in step.model.encoder.parameters()]
        passes(step, make_examples(2, 60), 1)
        return sum((p - b).square().sum().item() for p, b in zip(step.model.encoder.parameters(), before, strict=True))

    assert moved(1e4) < 0.5 * moved(1e-9)
