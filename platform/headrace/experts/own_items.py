"""The own-items expert: what this context has already held may come again. A function of the context; holds no table.

Every event of the context is worth half as much after ``half_life_events`` steps back, and an item's events add up: a
short half-life says "again what was just seen" (a shop's session), a long one "what is bought most" (a household).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.experts.base import Arrays, Counted, Sparse
from headrace.experts.ragged import steps_back, vote
from headrace.inputs.contexts import Contexts


class OwnItems:
    """The context's own items, by recency and frequency."""

    def __init__(self, name: str, half_life_events: float) -> None:
        self.name = name
        self.half_life_events = half_life_events
        """Steps back after which an event is worth half."""

    def reduce(self, counted: Counted) -> Arrays:
        """Nothing: there is no table."""
        return {}

    def apply(self, deltas: Sequence[Arrays], watermark_ms: int) -> None:
        """Nothing: there is no table."""

    def probabilities(self, contexts: Contexts, query_QD: NDArray[np.float32] | None, eligible: Eligible) -> Sparse:
        """Shares of each context's own eligible items; a context without any abstains."""
        query_T, back_T = steps_back(contexts)
        value_T = np.exp2(-back_T / self.half_life_events)
        return vote(query_T, eligible.column_of(contexts.item_T), value_T, len(contexts), len(eligible))

    def state(self) -> Arrays:
        """Nothing: there is no table."""
        return {}

    def load(self, state: Arrays) -> None:
        """Nothing: there is no table."""

    @property
    def size_bytes(self) -> int:
        """None held."""
        return 0
