"""From the recipe's experts to live ones, and from their states back to them.

This is the one place that knows every kind of expert: a new one adds a variant to the recipe and a case here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from pydantic import TypeAdapter

from headrace.config.answers import (
    CovisitConfig,
    EncodingsConfig,
    ExpertConfig,
    OwnItemsConfig,
    PopularConfig,
    SimilarSessionsConfig,
)
from headrace.errors import StoreError
from headrace.experts.base import Arrays, Expert
from headrace.experts.covisit import Covisit
from headrace.experts.encodings import Encodings
from headrace.experts.own_items import OwnItems
from headrace.experts.popular import Popular
from headrace.experts.similar_sessions import SimilarSessions


def build_expert(config: ExpertConfig) -> Expert:
    """A fresh expert that has counted nothing."""
    match config:
        case PopularConfig():
            return Popular(config.name, config.half_life_s)
        case CovisitConfig():
            return Covisit(config)
        case SimilarSessionsConfig():
            return SimilarSessions(config)
        case OwnItemsConfig():
            return OwnItems(config.name, config.half_life_events)
        case EncodingsConfig():
            return Encodings(config)
        case _:
            assert_never(config)


def build_experts(configs: Sequence[ExpertConfig]) -> list[Expert]:
    """Fresh experts, in the recipe's order."""
    return [build_expert(config) for config in configs]


def read_configs(dumps: Sequence[Mapping[str, Any]]) -> tuple[ExpertConfig, ...]:
    """The configs whose ``model_dump`` a commit's facts hold."""
    return TypeAdapter(tuple[ExpertConfig, ...]).validate_python(list(dumps))


def save_experts(experts: Sequence[Expert]) -> dict[str, Arrays]:
    """The state of each expert, by name: one part of the commit each."""
    return {expert.name: expert.state() for expert in experts}


def load_experts(configs: Sequence[ExpertConfig], states: Mapping[str, Arrays]) -> list[Expert]:
    """Experts that go on where ``save_experts`` left off; StoreError where a state is missing."""
    experts = build_experts(configs)
    for expert in experts:
        if expert.name not in states:
            raise StoreError(f"no part holds the expert {expert.name!r}; there are {sorted(states)}")
        expert.load(states[expert.name])
    return experts
