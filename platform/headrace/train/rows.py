"""Rows of the item table that pass from one item to another: what the new one starts from.

The catalogue says who holds a row, ``LearnerState.held_V`` whom the row is about. The two part where an item is new,
where a row was given on, and where the learner went back to an older commit. All here is alike on every rank.
Shape legend: V rows of the table ever in use, D rows to learn from, R those that are written.
"""

from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.catalogue.attributes import UNKNOWN
from headrace.catalogue.eligible import NEVER
from headrace.models.estimate import estimate
from headrace.train.state import LearnerState

_MAX_EXAMPLES = 32_768
"""Rows that an estimate learns from at most: those of the items met last."""
_HALF_LEARNED = 10.0
"""Events after which a row counts half."""


def start_rows(state: LearnerState) -> None:
    """After ``TrainStep.begin_increment``: rows that are about another item than their holder start afresh."""
    number_V, held_V = state.catalogue.number_V, state.held_V
    held_V = np.append(held_V, np.full(len(number_V) - len(held_V), -1, dtype=np.int64))
    new_R = np.flatnonzero((number_V != held_V) & (number_V >= 0))
    if len(reused_R := new_R[new_R < len(state.held_V)]):
        state.step.reset_rows(reused_R)
    _expect(state, new_R, np.flatnonzero((number_V == held_V) & (number_V >= 0)))
    state.held_V = number_V


def follow_attributes(state: LearnerState) -> None:
    """After training: the rows of items that nobody has touched yet follow those of the items that are like them."""
    number_V = state.catalogue.number_V
    held_R = np.flatnonzero(number_V >= 0)
    untouched_R = held_R[state.catalogue.last_ts_I[number_V[held_R]] == NEVER]
    _expect(state, untouched_R, np.setdiff1d(held_R, untouched_R, assume_unique=True))


def _expect(state: LearnerState, slot_R: NDArray[np.int64], slot_D: NDArray[np.int64]) -> None:
    """Write those of the rows ``slot_R`` of which something is to be expected, from the rows ``slot_D``."""
    catalogue, weight_VW = state.catalogue, state.model.table.weight
    number_V = catalogue.number_V
    match state.recipe.catalogue.fresh_rows:
        case "random":
            return
        case "attributes":
            slot_R = slot_R[(catalogue.listing.code_IA[number_V[slot_R]] != UNKNOWN).any(axis=1)]
        case "mean":
            pass
        case _ as never:
            assert_never(never)
    if not len(slot_R):
        return
    slot_D = slot_D[np.isin(number_V[slot_D], state.eligible.number_E, assume_unique=True)]
    newest_D = np.argsort(-catalogue.last_ts_I[number_V[slot_D]], kind="stable")[:_MAX_EXAMPLES]
    slot_D = np.sort(slot_D[newest_D])
    count_D = catalogue.count_I[number_V[slot_D]]
    if not count_D.any():
        return
    found_RW = estimate(
        weight_VW.detach()[torch.from_numpy(slot_D).to(weight_VW.device)].cpu().numpy(),
        count_D / (count_D + _HALF_LEARNED),
        catalogue.listing.code_IA[number_V[slot_D]],
        catalogue.listing.code_IA[number_V[slot_R]],
    )
    with torch.no_grad():
        weight_VW[torch.from_numpy(slot_R).to(weight_VW.device)] = torch.from_numpy(found_RW).to(weight_VW)
