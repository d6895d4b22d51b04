"""Methods from their section of the recipe; a forgotten case is a type error."""

from collections.abc import Sequence
from typing import assert_never

from headrace.config.methods import (
    DistillConfig,
    EwcConfig,
    MethodConfig,
    OnlineConfig,
    ProgressiveConfig,
    ReplayMethodConfig,
)
from headrace.methods.base import Method
from headrace.methods.distill import Distill
from headrace.methods.ewc import Ewc
from headrace.methods.online import Online
from headrace.methods.progressive import Progressive
from headrace.methods.replay import Replay


def build_method(config: MethodConfig) -> Method:
    """The method that this section asks for."""
    match config:
        case OnlineConfig():
            return Online(config)
        case ReplayMethodConfig():
            return Replay(config)
        case DistillConfig():
            return Distill(config)
        case EwcConfig():
            return Ewc(config)
        case ProgressiveConfig():
            return Progressive(config)
        case _:
            assert_never(config)


def build_methods(configs: Sequence[MethodConfig]) -> list[Method]:
    """All methods of a recipe, in its order."""
    return [build_method(config) for config in configs]
