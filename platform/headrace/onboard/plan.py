"""How much of a log is looked at, so that it takes about a minute: owners are sampled whole, by hash.

Training's time is close to targets x (a + b x items): every target is scored against every item. Scoring pays the same
for each query and version. Shape legend: N rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.onboard.draft import Effort
from headrace.onboard.guess import Guess
from headrace.onboard.log import Log
from headrace.onboard.shape import WARMUP, Shape

BUDGET_S = 30.0
"""Of training, on two cores; reading, scoring and committing come on top."""
_TARGET_S = 120e-6
_TARGET_ITEM_S = 16e-9
_MOST_EPOCHS = 5
_LEAST_EPOCHS = 2


@dataclass(frozen=True)
class Plan:
    """What is looked at. Made by ``plan``."""

    keep_N: NDArray[np.bool_]
    share: float
    """Of the owners."""
    effort: Effort
    estimate_s: float
    """Of training."""


def plan(log: Log, guess: Guess, shape: Shape, budget_s: float = BUDGET_S) -> Plan:
    """The largest share of owners that ``budget_s`` allows two passes over the warm-up for; else more passes."""
    item_N = log.table[guess.item_id].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    place_N = log.owner_N.astype(np.float64) / 2.0**64 / log.loaded_share
    target_N = np.ones(len(log), dtype=np.bool_)
    if guess.event is not None and shape.target_kinds:
        kinds = log.table[guess.event].to_pylist()
        target_N = np.array([str(kind) in shape.target_kinds for kind in kinds])

    def pass_s(share: float) -> float:
        keep_N = place_N < share
        items = len(np.unique(item_N[keep_N]))
        return float((keep_N & target_N).sum()) * WARMUP * (_TARGET_S + _TARGET_ITEM_S * items)

    low, high = 0.0, 1.0
    if pass_s(1.0) * (_LEAST_EPOCHS + 0.25) > budget_s:
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if pass_s(middle) * (_LEAST_EPOCHS + 0.25) <= budget_s else (low, middle)
        share = low
    else:
        share = 1.0
    once_s = pass_s(share)
    epochs = int(np.clip(budget_s / max(once_s, 1e-6) - 0.25, _LEAST_EPOCHS, _MOST_EPOCHS))
    return Plan(place_N < share, share * log.loaded_share, Effort(epochs), once_s * (epochs + 0.25))
