"""Distillation: ADER's weight by hand, and the loop's teacher against plain autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from step_kit import MODEL, NUM_ITEMS, batch_of, fingerprint, make_examples, make_step, passes

from headrace.config.methods import DistillConfig, MethodConfig, OnlineConfig, ReplayMethodConfig
from headrace.config.models import SampledSoftmaxConfig
from headrace.config.recipe import Recipe
from headrace.inputs.contexts import contexts_of, pad
from headrace.inputs.examples import Examples
from headrace.methods.base import Mix
from headrace.methods.build import build_methods
from headrace.methods.distill import Distill
from headrace.models.base import RecallModel
from headrace.train.step import StepBatch, TrainStep

MIX = Mix(num_new=400, num_replayed=100, num_items=50, num_old_items=32)


def test_the_weight_is_aders_by_hand():
    lesson = Distill(DistillConfig(own_targets=0.25, temperature=2.0)).lesson(MIX)
    assert lesson is not None
    # 0.8 * sqrt(32 / 50 * 100 / 400) = 0.32 of a mean over 100, beside a mean over 400
    assert lesson.replayed == pytest.approx(0.32 * 400 / 100)
    assert (lesson.new, lesson.own_targets, lesson.temperature) == (0.0, 0.25, 2.0)
    fixed = Distill(DistillConfig(weight=0.5, adaptive=False, rows="new")).lesson(MIX)
    assert fixed is not None
    assert (fixed.new, fixed.replayed) == (0.5, 0.0)
    both = Distill(DistillConfig(rows="both")).lesson(MIX)
    assert both is not None
    assert both.new == both.replayed == pytest.approx(0.8 * (32 / 50 * 500 / 400) ** 0.5 * 400 / 500)


@pytest.mark.parametrize("gone", ["num_new", "num_replayed", "num_old_items"])
def test_nobody_to_learn_from_or_with(gone):
    assert Distill(DistillConfig()).lesson(replace(MIX, **{gone: 0})) is None


def test_a_recipe_needs_something_to_teach_on():
    with pytest.raises(ValidationError, match="nothing to teach on"):
        Recipe(methods=(OnlineConfig(), DistillConfig()))
    Recipe(methods=(OnlineConfig(), DistillConfig(rows="new")))
    Recipe(methods=(DistillConfig(), ReplayMethodConfig()))
    with pytest.raises(ValidationError, match="each kind of method"):
        Recipe(methods=(OnlineConfig(), OnlineConfig(warmup_steps=3)))


def taught_step(*configs: MethodConfig, dtype: torch.dtype = torch.float64, **rest) -> TrainStep:
    """After an increment over the first 30 items; a second one over all has begun."""
    step = make_step(dtype=dtype, methods=build_methods(configs or (DistillConfig(rows="new"),)), **rest)
    passes(step, make_examples(1, 60, 30), 0, 30)
    step.end_increment(make_examples(1, 60, 30), np.arange(30), np.arange(30))
    step.begin_increment(NUM_ITEMS, 1)
    return step


def plain_queries(model: RecallModel, sequences: list[list[int]]) -> torch.Tensor:
    inputs = pad(contexts_of(sequences, 100, 10), np.arange(NUM_ITEMS))
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL))
    rows = torch.arange(len(sequences))
    return model.encoder.eval()(inputs, item_BLD, rows, torch.zeros_like(rows))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_is_that_of_plain_autograd(temperature):
    step = taught_step()
    teacher, student = make_step(dtype=torch.float64).model, make_step(dtype=torch.float64).model
    for model in (teacher, student):
        model.table.grow(NUM_ITEMS)
        model.load_state_dict(step.model.state_dict())
    sequences = [[3, 35, 7], [31, 2], [33], [4, 5, 6], [1, 38]]  # items from 30 on are new to the teacher
    heard = [[3, 7], [2], [], [4, 5, 6], [1]]
    examples = Examples(
        contexts_of(sequences, 100, 10), np.arange(5), np.zeros(5, np.int64), np.array([1, 39, 2, 3, 4]),
        np.ones(5, np.float32), *(np.zeros(5, np.int64),) * 3,
    )  # fmt: skip
    own_T = np.array([1.0, 0.5, 1.0, 0.0, 1.0], dtype=np.float32)
    soft_T = np.array([0.5, 1.0, 2.0, 1.0, 0.0], dtype=np.float32)
    batch = replace(batch_of(examples, range(5)), weight_T=own_T, soft_T=soft_T, temperature=temperature)
    for _ in range(2):  # the teacher stays while the student moves
        student.load_state_dict(step.model.state_dict())
        student.zero_grad()
        told_PE = (plain_queries(teacher, heard) @ teacher.table.weight[:30].T / temperature).softmax(1).detach()
        query_PD = plain_queries(student, sequences)
        logit_PE = query_PD @ student.table.weight[:NUM_ITEMS].T
        own = logit_PE.log_softmax(1)[torch.arange(5), torch.from_numpy(examples.target_T)]
        soft = (told_PE * (logit_PE[:, :30] / temperature).log_softmax(1)).sum(1)
        weight = torch.from_numpy(soft_T * np.array([1, 1, 0, 1, 1]))  # the third knows nothing of its context
        loss = -(own * torch.from_numpy(own_T)).sum() - temperature**2 * (soft * weight).sum()
        (loss / 3.0).backward()
        step.run(batch, 3.0, torch.arange(NUM_ITEMS))
        parameters = [*student.encoder.parameters(), student.table.weight]
        wanted = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        wanted[-1] = wanted[-1][:NUM_ITEMS]
        flat = torch.cat([part.flatten() for part in wanted])
        torch.testing.assert_close(step.flat_gradient, flat, atol=1e-12, rtol=1e-9)


def test_a_row_given_to_another_item_is_no_longer_known():
    step = taught_step()
    rows = np.arange(NUM_ITEMS)
    weights = []
    for taken in ([], [4, 5], [4, 5, 35]):
        step.reset_rows(np.array(taken, dtype=np.int64))
        lesson = step.lesson(100, 0, rows)
        assert lesson is not None
        weights.append(lesson.new)
    assert weights == pytest.approx([0.8 * (known / NUM_ITEMS) ** 0.5 for known in (30, 28, 28)])


def test_without_a_past_there_is_no_teacher():
    step = make_step(methods=build_methods([DistillConfig(rows="new")]))
    step.begin_increment(NUM_ITEMS, 0)
    assert step.lesson(10, 0, np.arange(NUM_ITEMS)) is None


def test_a_teacher_without_weight_changes_nothing():
    def trained(*configs: MethodConfig) -> dict[str, bytes]:
        step = make_step(methods=build_methods(configs), model=MODEL.model_copy(update={"dropout": 0.3}))
        for increment in range(2):
            passes(step, make_examples(increment, 40), increment)
        return fingerprint(step)

    light = DistillConfig(rows="new", weight=1e-30)
    assert trained(light) == trained()
    assert trained(DistillConfig(rows="new")) != trained()


@pytest.mark.parametrize("own_targets", [0.0, 0.5])
@pytest.mark.parametrize("objective", [None, SampledSoftmaxConfig(negatives=16)])
def test_it_keeps_what_new_examples_would_overwrite(own_targets, objective):
    """The first increment learns that i is followed by i + 1, the second that it is followed by i + 2."""

    def ring(stride: int) -> Examples:
        items = np.arange(256) % NUM_ITEMS
        ones, zeros = np.ones(256, dtype=np.float32), np.zeros(256, dtype=np.int64)
        contexts = contexts_of([[item] for item in items.tolist()], 100, 10)
        return Examples(contexts, np.arange(256), zeros, (items + stride) % NUM_ITEMS, ones, zeros, zeros, zeros)

    def kept(*configs: MethodConfig) -> float:
        """The share of the old answer after the second increment."""
        step = make_step(methods=build_methods(configs), objective=objective)
        passes(step, ring(1), 0, epochs=10)
        wrong = replace(ring(1), target_T=np.zeros(256, dtype=np.int64))  # the replayed rows' own targets are poison
        passes(step, ring(2), 1, epochs=5, replayed=wrong)
        with torch.no_grad():
            query_PD = plain_queries(step.model, [[item] for item in range(NUM_ITEMS)])
            p_PE = step.model.logits(query_PD, step.model.table.weight[:NUM_ITEMS]).softmax(1)
        return float(p_PE[torch.arange(NUM_ITEMS), (torch.arange(NUM_ITEMS) + 1) % NUM_ITEMS].mean())

    assert kept(DistillConfig(weight=1.0, own_targets=own_targets)) > 3 * kept()


def test_batches_without_a_word_of_their_own_are_stepped_over_gently():
    step = taught_step(dtype=torch.float32)
    examples = make_examples(3, 8)
    soft_T = np.ones(8, dtype=np.float32)
    batch: StepBatch = replace(batch_of(examples, range(8)), weight_T=np.zeros(8, np.float32), soft_T=soft_T)
    assert step.run(batch, 8.0, torch.arange(NUM_ITEMS)) == 0.0
    assert torch.isfinite(step.flat_gradient).all()
