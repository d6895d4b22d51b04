"""What every method promises, whatever it does: add a method's config here and all of this holds for it too."""

import numpy as np
import pytest
import torch

from headrace.catalogue.eligible import Eligible
from headrace.config.recipe import (
    DistillConfig,
    MethodConfig,
    OnlineConfig,
    Recipe,
    ReplayMethodConfig,
    SasRecConfig,
    SoftmaxConfig,
    TrainConfig,
)
from headrace.inputs.contexts import contexts_of
from headrace.inputs.examples import Examples
from headrace.methods.build import build_method
from headrace.models.build import build_model, model_parts
from headrace.objectives.softmax import build_objective
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.train.group import Solo
from headrace.train.passes import train_passes
from headrace.train.step import TrainStep

CONFIGS = [
    pytest.param(OnlineConfig(), id="online"),
    pytest.param(OnlineConfig(warmup_steps=0, max_gradient_norm=None), id="online-unguarded"),
    pytest.param(ReplayMethodConfig(ratio=0.5), id="replay"),
    pytest.param(DistillConfig(rows="new"), id="distill"),
]
NUM_ITEMS = 20
torch.set_num_threads(1)  # tiny products: more threads only wait for one another


def examples() -> Examples:
    draw = np.random.default_rng(1)
    zeros = np.zeros(64, dtype=np.int64)
    sequences = [draw.integers(NUM_ITEMS, size=3).tolist() for _ in range(64)]
    target = draw.integers(NUM_ITEMS, size=64)
    ones = np.ones(64, dtype=np.float32)
    return Examples(contexts_of(sequences, 100, 5), np.arange(64), zeros, target, ones, zeros, zeros, zeros)


def two_increments(config: MethodConfig, reload_method: bool = False) -> dict[str, bytes]:
    model, method = build_model(SasRecConfig(width=8), 5, 32, seed=1), build_method(config)
    for increment in range(2):
        step_methods = [method]
        if increment == 0:
            step = TrainStep(model, build_objective(SoftmaxConfig()), step_methods, TrainConfig(batch=16), Solo(), 1)
        elif reload_method:
            state = load_arrays(dump_arrays(method.state_dict()))
            method = build_method(config)
            method.load_state_dict(state)
            step.methods = [method]
        step.begin_increment(NUM_ITEMS, increment)
        eligible = Eligible(np.arange(NUM_ITEMS))
        train_passes(step, examples(), eligible, np.arange(NUM_ITEMS), epochs=1, seed=1, increment=increment)
        step.end_increment(examples())
    parts = {**model_parts(model), **step.state(), "method": dict(method.state_dict())}
    return {name: dump_arrays(part) for name, part in parts.items()}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_round_trips_through_a_recipe(config):
    recipe = Recipe(methods=(config,))
    assert Recipe.model_validate(recipe.model_dump()).methods == (config,)
    assert Recipe.model_validate_json(recipe.model_dump_json()).methods == (config,)


@pytest.mark.parametrize("config", CONFIGS)
def test_same_seed_same_bytes(config):
    assert two_increments(config) == two_increments(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_state_round_trips(config):
    assert two_increments(config, reload_method=True) == two_increments(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_increment_has_no_penalty(config):
    model, method = build_model(SasRecConfig(width=8), 5, 32, seed=1), build_method(config)
    method.begin_increment(model, 0)
    assert all(float(value) == 0.0 for value in method.penalties(model).values())


@pytest.mark.parametrize("config", CONFIGS)
def test_scales_and_bounds_are_usable(config):
    method = build_method(config)
    scales = [method.learning_rate_scale(step) for step in range(300)]
    assert all(0.0 < scale <= 1.0 for scale in scales)
    assert method.max_gradient_norm() is None or method.max_gradient_norm() > 0.0


@pytest.mark.parametrize("config", CONFIGS)
def test_hooks_leave_torchs_generator_alone(config):
    model, method = build_model(SasRecConfig(width=8), 5, 32, seed=1), build_method(config)
    before = torch.get_rng_state()
    method.begin_increment(model, 0)
    method.penalties(model)
    method.end_increment(model, examples(), 0)
    assert torch.equal(torch.get_rng_state(), before)
