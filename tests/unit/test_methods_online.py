"""The warm-up's arithmetic, and methods from their configs."""

import pytest

from headrace.config.methods import OnlineConfig
from headrace.methods.build import build_method, build_methods


@pytest.mark.parametrize(("step", "scale"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (10**6, 1.0)])
def test_warm_up_is_linear(step, scale):
    assert build_method(OnlineConfig(warmup_steps=4)).learning_rate_scale(step) == scale


def test_no_warm_up_is_allowed():
    assert build_method(OnlineConfig(warmup_steps=0)).learning_rate_scale(0) == 1.0


def test_the_bound_is_the_recipes():
    first, second = build_methods([OnlineConfig(max_gradient_norm=2.0), OnlineConfig(max_gradient_norm=None)])
    assert first.max_gradient_norm() == 2.0
    assert second.max_gradient_norm() is None
