"""The teacher: a frozen copy of the model as it was before the increment, asked about the contexts of every step.

It speaks of the rows of the table that it has been trained on, while they are about the same items: an item that it
does not know is passed over in contexts, and is no part of what its distribution is compared to.
Shape legend: B batch, L length, D width, P queries, C items scored, E eligible items, R rows, V rows of the table.
"""

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.inputs.contexts import ModelInputs
from headrace.models.base import RecallModel
from headrace.models.offset import Offset
from headrace.models.table import ItemTable, grown, read_rows, read_vectors
from headrace.objectives.soft import soft_loss


class Teacher:
    """``model`` as it is now; of its table it knows the first ``num_known`` rows."""

    def __init__(self, model: RecallModel, num_known: int) -> None:
        weight_VD = model.table.weight.detach()
        table = ItemTable.from_rows(grown(weight_VD, len(weight_VD)), model.table.seed, model.table.scale)
        copied = RecallModel(deepcopy(model.encoder), table, model.temperature)
        self._model = copied.eval().requires_grad_(False)
        self._known_V = np.arange(len(weight_VD)) < num_known

    def forget(self, slot_R: NDArray[np.int64]) -> None:
        """These rows belong to other items from now on."""
        self._known_V[slot_R] = False

    def num_known(self, slot_E: NDArray[np.int64]) -> int:
        """How many of these rows it knows."""
        return int(self._known_V[slot_E].sum())

    def loss(
        self,
        inputs: ModelInputs,
        row_P: NDArray[np.int64],
        back_P: NDArray[np.int64],
        weight_P: NDArray[np.float32],
        student: tuple[Tensor, Tensor],
        slot_C: Tensor,
        correction_C: Tensor | None,
        temperature: float,
        prior: Offset | None,
    ) -> Tensor:
        """The weighted sum of cross-entropies to what it would answer; see ``soft_loss``.

        ``student``: the queries ``(P, D)`` and items ``(C, D)`` as they enter the student's product; ``slot_C`` are the
        items' rows.
        """
        inputs, newer_BR = inputs.known(self._known_V)
        back_P = newer_BR[row_P, back_P]
        index_P = np.flatnonzero((weight_P > 0.0) & (back_P < newer_BR[row_P, -1]))
        known_C = self._known_V[slot_C.cpu().numpy()]
        query_PD, vectors_CD = student
        if not len(index_P) or not known_C.any():
            return query_PD.new_zeros(())
        row_B, row_P = np.unique(row_P[index_P], return_inverse=True)
        model = self._model
        with torch.no_grad():
            slot_BL = torch.from_numpy(inputs.slot_BL[row_B]).to(query_PD.device)
            item_BLD = read_rows(model.table.weight, slot_BL)
            place_P, at_P = torch.from_numpy(row_P), torch.from_numpy(back_P[index_P])
            told_PD = model.query_side(model.encoder(inputs.take(row_B), item_BLD, place_P, at_P))
            told_CD = model.item_side(read_vectors(model.table.weight, slot_C))
        on_device_P = torch.from_numpy(index_P).to(query_PD.device)
        taught_PD = query_PD
        if len(index_P) < len(query_PD):
            taught_PD = query_PD[on_device_P]
            prior = None if prior is None else prior.take(on_device_P, len(query_PD))
        weight = torch.from_numpy(weight_P).to(query_PD)[on_device_P]
        offset_C = _offset(known_C, correction_C, query_PD)
        return soft_loss(taught_PD, vectors_CD, told_PD, told_CD, weight, offset_C, temperature, prior)


def _offset(known_C: NDArray[np.bool_], correction_C: Tensor | None, like: Tensor) -> Tensor | None:
    """What both models' logits are raised by: -inf where the teacher knows nothing; None where it is all zeros."""
    if known_C.all():
        return None if correction_C is None else correction_C.to(like)
    silent_C = torch.from_numpy(np.where(known_C, 0.0, -np.inf)).to(like)
    return silent_C if correction_C is None else silent_C + correction_C
