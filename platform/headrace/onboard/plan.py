"""How much of a log is looked at, so that it takes about a minute: owners are sampled whole, by hash.

Training's time is close to targets x (a + b x items): every target is scored against every item. How fast this machine
is at that is measured beforehand, to the nearest power of two, so that runs on it mostly draw the same sample.
Shape legend: N rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.clock import monotonic_s
from headrace.onboard.draft import Effort
from headrace.onboard.guess import Guess
from headrace.onboard.log import Log
from headrace.onboard.shape import WARMUP, Shape

BUDGET_S = 25.0
"""Of training, on two cores; reading, scoring and committing come on top."""
_TARGET_S = {"session": 120e-6, "user": 250e-6}
"""By what the context is: a user's is longer than a session's."""
_TARGET_ITEM_S = 16e-9
_PROBE_TARGET_ITEM_S = 11e-9
"""What the probe takes where the figures above hold: a core of the machine that they were measured on."""
_PROBE_TARGETS, _PROBE_ITEMS, _PROBE_WIDTH, _PROBES = 64, 20_000, 64, 6
_MOST_EPOCHS = 5
_LEAST_EPOCHS = 2
_STEPS = ((100_000, (64, 3e-3)), (400_000, (128, 2e-3)))


@dataclass(frozen=True)
class Plan:
    """What is looked at. Made by ``plan``."""

    keep_N: NDArray[np.bool_]
    share: float
    """Of the owners."""
    effort: Effort
    """For what is kept."""
    whole_effort: Effort
    """For the whole log, which ``headrace run`` takes."""
    estimate_s: float
    """Of training."""


def plan(log: Log, guess: Guess, shape: Shape, budget_s: float = BUDGET_S, slowness: float = 1.0) -> Plan:
    """The largest share of owners that ``budget_s`` allows two passes over the warm-up for; else more passes.

    ``slowness``: how much longer than the reference this machine takes.
    """
    item_N = log.table[guess.item_id].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    place_N = log.owner_N.astype(np.float64) / 2.0**64 / log.loaded_share
    target_N = np.ones(len(log), dtype=np.bool_)
    if guess.event is not None and shape.target_kinds:
        kinds = log.table[guess.event].to_pylist()
        target_N = np.array([str(kind) in shape.target_kinds for kind in kinds])

    def num_targets(share: float) -> float:
        return WARMUP * float((target_N & (place_N < share)).sum())

    def pass_s(share: float) -> float:
        items = len(np.unique(item_N[place_N < share]))
        each_s = slowness * (_TARGET_S[shape.context] + _TARGET_ITEM_S * items)
        return num_targets(share) * each_s

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
    effort = Effort(epochs, *_step(num_targets(share)))
    whole = Effort(epochs, *_step(num_targets(1.0) / log.loaded_share))
    return Plan(place_N < share, share * log.loaded_share, effort, whole, once_s * (epochs + 0.25))


def measure_slowness() -> float:
    """Time of a softmax over many items, forward and back, over the reference's: a power of two from 1/4 to 2."""
    query_BD = torch.randn(_PROBE_TARGETS, _PROBE_WIDTH, requires_grad=True)
    item_ED = torch.randn(_PROBE_ITEMS, _PROBE_WIDTH, requires_grad=True)
    target_B = torch.randint(0, _PROBE_ITEMS, (_PROBE_TARGETS,))
    took_s = []
    for _ in range(_PROBES):
        began_s = monotonic_s()
        torch.nn.functional.cross_entropy(query_BD @ item_ED.T, target_B).backward()  # type: ignore[no-untyped-call]
        took_s.append(monotonic_s() - began_s)
    ratio = min(took_s) / (_PROBE_TARGETS * _PROBE_ITEMS) / _PROBE_TARGET_ITEM_S
    return float(2.0 ** np.clip(np.round(np.log2(ratio)), -2, 1))


def _step(num_targets: float) -> tuple[int, float]:
    """Batch and learning rate for so many examples a pass: few examples need many small steps to get anywhere."""
    return next((step for most, step in _STEPS if num_targets < most), (256, 1e-3))
