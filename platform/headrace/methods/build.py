"""Methods from their section of the recipe; a forgotten case is a type error."""

from collections.abc import Sequence
from typing import assert_never

from headrace.config.recipe import OnlineConfig
from headrace.methods.base import Method
from headrace.methods.online import Online


def build_method(config: OnlineConfig) -> Method:
    """The method that this section asks for."""
    match config:
        case OnlineConfig():
            return Online(config)
        case _:
            assert_never(config)


def build_methods(configs: Sequence[OnlineConfig]) -> list[Method]:
    """All methods of a recipe, in its order."""
    return [build_method(config) for config in configs]
