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
from headrace.models.estimate import estimate
from headrace.train.state import LearnerState

_MAX_EXAMPLES = 32_768
"""Rows that an estimate learns from at most: those of the items met last."""
_HALF_LEARNED = 10.0
"""Events after which a row counts half."""
_YOUNG = 5
"""An item with fewer events than this is held to what is to be expected of it (with 20, their recall suffers)."""
_TRUST = 0.5
"""After n events its row moves there by ``_TRUST / (n + _TRUST)`` of the way, increment after increment."""


def start_rows(state: LearnerState) -> None:
    """After ``TrainStep.begin_increment``: rows that are about another item than their holder start afresh."""
    number_V, held_V = state.catalogue.number_V, state.held_V
    held_V = np.append(held_V, np.full(len(number_V) - len(held_V), -1, dtype=np.int64))
    new_R = np.flatnonzero((number_V != held_V) & (number_V >= 0))
    if len(reused_R := new_R[new_R < len(state.held_V)]):
        state.step.reset_rows(reused_R)
    _expect(state, new_R, np.ones(len(new_R)), np.flatnonzero((number_V == held_V) & (number_V >= 0)))
    state.held_V = number_V


def follow_attributes(state: LearnerState) -> None:
    """After training: items that nobody has touched follow those that are like them, and young ones are held to them.

    A softmax pushes a new item down at every step at which it is not the target, until it has been one often enough.
    """
    catalogue, number_V = state.catalogue, state.catalogue.number_V
    held_R = np.flatnonzero(number_V >= 0)
    count_R = catalogue.count_I[number_V[held_R]]
    described_R = (catalogue.listing.code_IA[number_V[held_R]] != UNKNOWN).any(axis=1)
    young_R = (count_R == 0) | (described_R & (count_R < _YOUNG))
    _expect(state, held_R[young_R], _TRUST / (count_R[young_R] + _TRUST), held_R[count_R > 0])


def _expect(
    state: LearnerState, slot_R: NDArray[np.int64], share_R: NDArray[np.float64], slot_D: NDArray[np.int64]
) -> None:
    """Move those of the rows ``slot_R`` of which something is to be expected, by a share, to what the others say."""
    catalogue, weight_VW = state.catalogue, state.model.table.weight
    number_V = catalogue.number_V
    match state.recipe.catalogue.fresh_rows:
        case "random":
            return
        case "attributes":
            described_R = (catalogue.listing.code_IA[number_V[slot_R]] != UNKNOWN).any(axis=1)
            slot_R, share_R = slot_R[described_R], share_R[described_R]
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
    expected_RW = estimate(
        weight_VW.detach()[torch.from_numpy(slot_D).to(weight_VW.device)].cpu().numpy(),
        count_D / (count_D + _HALF_LEARNED),
        catalogue.listing.code_IA[number_V[slot_D]],
        catalogue.listing.code_IA[number_V[slot_R]],
    )
    on_device_R, expected = torch.from_numpy(slot_R).to(weight_VW.device), torch.from_numpy(expected_RW).to(weight_VW)
    share_R1 = torch.from_numpy(share_R).to(weight_VW).unsqueeze(1)
    with torch.no_grad():
        weight_VW[on_device_R] = torch.lerp(weight_VW[on_device_R], expected, share_R1)
