"""What every method promises, whatever it does: add a method's config here and all of this holds for it too.

Methods compose, so a case is the methods of one recipe. Each goes through increments in which the catalogue grows, a
row of the table passes to another item, and examples of the increment before are replayed.
"""

from typing import Any

import numpy as np
import pytest
import torch
from step_kit import PairRank, make_examples, on_both

from headrace.catalogue.eligible import Eligible
from headrace.config.methods import (
    DistillConfig,
    EwcConfig,
    MethodConfig,
    OnlineConfig,
    ProgressiveConfig,
    ReplayMethodConfig,
    TrainConfig,
)
from headrace.config.models import ObjectiveConfig, SampledSoftmaxConfig, SasRecConfig, SoftmaxConfig
from headrace.config.recipe import Recipe
from headrace.inputs.contexts import pad
from headrace.inputs.examples import Examples
from headrace.methods.base import Learned
from headrace.methods.build import build_method, build_methods
from headrace.models.build import build_model, load_model, model_parts
from headrace.objectives.softmax import build_objective
from headrace.replay.packed import join
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.train.group import Group, Solo
from headrace.train.passes import train_passes
from headrace.train.step import StepBatch, TrainStep

Methods = tuple[MethodConfig, ...]
SHORT = ProgressiveConfig(every=1, max_columns=2, adapter_units=4, consolidate_steps=3)
CASES = [
    pytest.param((OnlineConfig(),), id="online"),
    pytest.param((OnlineConfig(warmup_steps=0, max_gradient_norm=None),), id="online-unguarded"),
    pytest.param((ReplayMethodConfig(ratio=0.5),), id="replay"),
    pytest.param((DistillConfig(rows="new"),), id="distill"),
    pytest.param((EwcConfig(),), id="ewc"),
    pytest.param((EwcConfig(labels="target", decay=0.0),), id="ewc-targets"),
    pytest.param((OnlineConfig(), ReplayMethodConfig(), DistillConfig(own_targets=0.5), EwcConfig()), id="all"),
    pytest.param((ProgressiveConfig(every=1, max_columns=9, adapter_units=4),), id="progressive"),
    pytest.param((SHORT,), id="progressive-consolidated"),
    pytest.param((OnlineConfig(), ReplayMethodConfig(), DistillConfig(own_targets=0.5), SHORT), id="progressive-all"),
]
NUM_ITEMS = (12, 16, 16, 20)
"""Items in each increment: they grow beyond the table's capacity, and once they stay."""
GIVEN_ON = 3
"""A row that passes to another item in the increment in which the catalogue stays as it is."""
torch.set_num_threads(1)  # tiny products: more threads only wait for one another


def examples_of(increment: int, count: int = 48) -> Examples:
    return make_examples(100 + increment, count, NUM_ITEMS[increment])


def fresh(
    configs: Methods,
    group: Group | None = None,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.3,
    objective: ObjectiveConfig | None = None,
) -> TrainStep:
    model = build_model(SasRecConfig(width=8, dropout=dropout), 10, 16, seed=1).to(dtype)
    config = TrainConfig(batch=16, learning_rate=1e-2)
    made = build_objective(objective or SoftmaxConfig())
    return TrainStep(model, made, build_methods(configs), config, group or Solo(), seed=1)


def begin(step: TrainStep, increment: int) -> None:
    step.begin_increment(NUM_ITEMS[increment], increment)
    if increment == 2:
        step.reset_rows(np.array([GIVEN_ON]))


def end(step: TrainStep, increment: int, mine: Examples) -> None:
    rows = np.arange(NUM_ITEMS[increment])
    step.end_increment(mine, rows, rows)


def increment_through(step: TrainStep, increment: int) -> None:
    """Through passes, as the loop does."""
    begin(step, increment)
    rows = np.arange(NUM_ITEMS[increment])
    replayed = None
    if increment and any(method.replay_ratio() for method in step.methods):
        replayed = examples_of(increment - 1, 24)
    mine = examples_of(increment)
    train_passes(step, mine, Eligible(rows), rows, epochs=1, seed=1, increment=increment, replayed=replayed)
    end(step, increment, mine)


def bytes_of(step: TrainStep) -> dict[str, bytes]:
    parts: dict[str, Any] = {**model_parts(step.model), **step.state()}
    parts |= {f"methods/{place}": dict(method.state_dict()) for place, method in enumerate(step.methods)}
    return {name: dump_arrays(part) for name, part in parts.items()}


def resumed(configs: Methods, before: TrainStep, **options: Any) -> TrainStep:
    """A new process that knows nothing but what a commit holds."""
    after = fresh(configs, **options)
    parts = {name: load_arrays(dump_arrays(part)) for name, part in model_parts(before.model).items()}
    after.model = load_model(SasRecConfig(width=8, dropout=0.3), 10, parts)
    after.load({name: load_arrays(dump_arrays(part)) for name, part in before.state().items()})
    for theirs, ours in zip(before.methods, after.methods, strict=True):
        if state := theirs.state_dict():
            ours.load_state_dict(load_arrays(dump_arrays(dict(state))))
    return after


@pytest.mark.parametrize("configs", CASES)
def test_configs_round_trip_through_a_recipe(configs):
    recipe = Recipe(methods=configs)
    assert Recipe.model_validate(recipe.model_dump()).methods == configs
    assert Recipe.model_validate_json(recipe.model_dump_json()).methods == configs


@pytest.mark.parametrize("configs", CASES)
@pytest.mark.parametrize("objective", [SoftmaxConfig(), SampledSoftmaxConfig(negatives=8)], ids=["full", "sampled"])
def test_a_resume_at_every_increment_ends_with_the_bytes_of_a_run_that_never_stopped(configs, objective):
    """The same seed gives the same bytes, and state comes back, through growth and with rows given on."""
    whole = fresh(configs, objective=objective)
    stopped = fresh(configs, objective=objective)
    for increment in range(len(NUM_ITEMS)):
        increment_through(whole, increment)
        stopped = resumed(configs, stopped, objective=objective) if increment else stopped
        increment_through(stopped, increment)
        assert bytes_of(stopped) == bytes_of(whole)


@pytest.mark.parametrize("configs", CASES)
def test_the_first_increment_has_no_penalty(configs):
    step = fresh(configs)
    begin(step, 0)
    for method in step.methods:
        assert all(value.item() == 0.0 for value in method.penalties(step.model).values())
    assert step.lesson(10, 10, np.arange(NUM_ITEMS[0])) is None


@pytest.mark.parametrize("configs", CASES)
def test_nothing_is_penalised_before_the_first_step(configs):
    """What is held is held where the increment begins, rows of new items and of other items not at all."""
    step = fresh(configs)
    for increment in (0, 1):
        increment_through(step, increment)
    begin(step, 2)
    with torch.no_grad():
        step.model.table.weight[GIVEN_ON] += 1.0
        step.model.table.weight[NUM_ITEMS[1] :] += 1.0
        for method in step.methods:
            assert all(value.item() == 0.0 for value in method.penalties(step.model).values())


def batches(increment: int, count: int, ranks: int, rank: int, soft: float | None) -> list[StepBatch]:
    """Ten steps of eight examples each, the later half of them replayed ones; a rank's part of every step."""
    examples = join(examples_of(increment, 40), examples_of(max(increment - 1, 0), 40))
    made = []
    for number in range(count):
        step = np.concatenate([np.arange(4) + 4 * number, 40 + np.arange(4) + 4 * number])
        mine = examples.take(step.reshape(4, 2)[:, rank] if ranks == 2 else step)
        queries = np.arange(len(mine))
        inputs = pad(mine.contexts, np.arange(max(NUM_ITEMS)))
        soft_T = None if soft is None else soft * mine.weight_T
        rest = (mine.position_T, queries, mine.target_T, mine.weight_T, soft_T, 2.0)
        made.append(StepBatch(inputs, queries, *rest))
    return made


def ten_steps_twice(configs: Methods, group: Group) -> TrainStep:
    step = fresh(configs, group, torch.float64, dropout=0.0)
    for increment in range(2):
        begin(step, increment)
        lesson = step.lesson(40, 40, np.arange(NUM_ITEMS[increment]))
        soft = None if lesson is None else max(lesson.new, lesson.replayed)
        whole = batches(increment, 10, 1, 0, soft)
        mine = batches(increment, 10, group.world, group.rank, soft)
        for all_ranks, batch in zip(whole, mine, strict=True):
            step.run(batch, float(all_ranks.weight_T.sum(dtype=np.float64)), torch.arange(NUM_ITEMS[increment]))
        examples = examples_of(increment)
        end(step, increment, examples.take(np.arange(group.rank, len(examples), group.world)))
    return step


@pytest.mark.parametrize("configs", CASES)
def test_two_ranks_are_one_with_twice_the_batch(configs):
    def on_rank(group: PairRank) -> TrainStep:
        return ten_steps_twice(configs, group)

    whole, (first, second) = ten_steps_twice(configs, Solo()), on_both(on_rank)
    assert bytes_of(first) == bytes_of(second)
    assert first.steps_since_fresh == 20
    for ours, theirs in zip(first.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    for ours, theirs in zip(first.methods, whole.methods, strict=True):
        for name, value in theirs.state_dict().items():
            np.testing.assert_allclose(ours.state_dict()[name], value, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("configs", CASES)
def test_scales_and_bounds_are_usable(configs):
    for config in configs:
        method = build_method(config)
        scales = [method.learning_rate_scale(step) for step in range(300)]
        assert all(0.0 < scale <= 1.0 for scale in scales)
        assert method.max_gradient_norm() is None or method.max_gradient_norm() > 0.0
        assert method.replay_ratio() >= 0.0


@pytest.mark.parametrize("configs", CASES)
def test_hooks_leave_torchs_generator_alone(configs):
    model = build_model(SasRecConfig(width=8), 10, 32, seed=1)
    rows = np.arange(NUM_ITEMS[0])
    learned = Learned(examples_of(0), rows, rows, 0, 1, torch.device("cpu"), lambda tensor: None)
    before = torch.get_rng_state()
    for method in build_methods(configs):
        for _ in range(2):
            method.begin_increment(model, 0)
            method.reset_rows(np.array([GIVEN_ON]))
            method.penalties(model)
            method.end_increment(model, learned)
    assert torch.equal(torch.get_rng_state(), before)
