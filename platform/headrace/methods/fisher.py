"""The diagonal of the Fisher information: squares of per-example gradients, summed (arXiv 1612.00796).

The square of a batch's mean gradient is something else, and much smaller. Encoder and contexts get each example's own
gradient from ``torch.func``. For the items scored it is never written down, since it is 26 MB an example: it is an
outer product of how far each item's probability is off and the query, whose squares sum up as a product of matrices.
A row that is both read and scored has the sum of two gradients, so twice their product comes on top.
Shape legend: B examples of equal length, L length, D width, E items scored, U pairs of an example and a row that it
reads, V rows of the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from headrace.inputs.contexts import Contexts, ModelInputs, pad
from headrace.methods.base import PriorOf
from headrace.models.base import RecallModel
from headrace.models.table import read_rows, read_vectors

_CHUNK = 32
"""Examples at once: each has a gradient as large as the encoder, and a score for every item."""
_TABLE = "table"


@dataclass(frozen=True)
class Asked:
    """Examples with one target each, whose contexts are known and not empty. Made by methods/ewc.py."""

    contexts: Contexts
    column_T: NDArray[np.int64]
    """The target among the items scored."""
    weight_T: NDArray[np.float32]
    draw_T: NDArray[np.float64] | None
    """In [0, 1): draws the label from what the model would answer, instead of the target (the Fisher information in
    the strict sense; with targets it is the empirical one, arXiv 1905.12558)."""
    prior: PriorOf | None = None
    """What is added to the logits."""


def fisher_sums(
    model: RecallModel, asked: Asked, slot_I: NDArray[np.int64], slot_E: NDArray[np.int64], num_rows: int
) -> dict[str, Tensor]:
    """The weighted sums of squared gradients: "encoder/<parameter>" by name, and "table", ``(num_rows, D)``.

    ``slot_E`` are the rows of the items scored, ascending. Without dropout; the model stays as it is.
    """
    was_training = model.training
    model.eval()
    try:
        sums = {f"encoder/{name}": torch.zeros_like(value) for name, value in model.encoder.named_parameters()}
        sums[_TABLE] = model.table.weight.new_zeros(num_rows, model.table.width)
        on_device_E = torch.from_numpy(slot_E).to(model.table.weight.device)
        with torch.no_grad():
            items = _Items(model, on_device_E)
            for index_B in _of_equal_length(asked.contexts.length_Q):
                _add(sums, model, items, asked, index_B, pad(asked.contexts.take(index_B), slot_I))
        return sums
    finally:
        model.train(was_training)


class _Items:
    """The items scored, and the way back from the product's side of them to their rows."""

    def __init__(self, model: RecallModel, slot_E: Tensor) -> None:
        self.slot_E = slot_E
        row_ED = read_vectors(model.table.weight, slot_E)
        self.vector_ED = model.item_side(row_ED)
        self._norm_E1 = None if model.temperature is None else row_ED.norm(dim=1, keepdim=True)
        """Of rows that are normalised; None: they are scored as they are."""

    def squares(self, off_BE: Tensor, query_BD: Tensor, weight_B: Tensor) -> Tensor:
        """The weighted sum over examples of the squared gradients of the rows scored, ``(E, D)``."""
        weighted_EB = (off_BE.square() * weight_B.unsqueeze(1)).T
        square_ED = weighted_EB @ query_BD.square()
        if self._norm_E1 is None:
            return square_ED
        # each is (query - vector * cosine) / norm, of which the square has three terms
        along_EB = self.vector_ED @ query_BD.T
        cross_ED = (weighted_EB * along_EB) @ query_BD
        own_E1 = (weighted_EB * along_EB.square()).sum(1, keepdim=True)
        square_ED += self.vector_ED.square() * own_E1 - 2.0 * self.vector_ED * cross_ED
        return square_ED.div_(self._norm_E1.square())

    def gradient(self, off_U: Tensor, query_UD: Tensor, column_U: Tensor) -> Tensor:
        """The gradients of these rows as scored ones, ``(U, D)``."""
        if self._norm_E1 is None:
            return off_U.unsqueeze(1) * query_UD
        vector_UD = self.vector_ED[column_U]
        across_UD = query_UD - vector_UD * (vector_UD * query_UD).sum(1, keepdim=True)
        return off_U.unsqueeze(1) * across_UD.div(self._norm_E1[column_U])


def _add(
    sums: dict[str, Tensor],
    model: RecallModel,
    items: _Items,
    asked: Asked,
    index_B: NDArray[np.int64],
    inputs: ModelInputs,
) -> None:
    """Add the squares of these examples, whose contexts are of one length."""
    weight = model.table.weight
    slot_BL = torch.from_numpy(inputs.slot_BL).to(weight.device)
    item_BLD = read_rows(weight, slot_BL)
    row_B = torch.arange(len(index_B))
    query_BD = model.query_side(model.encoder(inputs, item_BLD, row_B, torch.zeros_like(row_B)))
    logit_BE = query_BD @ items.vector_ED.T
    if asked.prior is not None:
        asked.prior(asked.contexts.take(index_B)).add_(logit_BE)
    off_BE = logit_BE.softmax(1)
    off_BE[row_B, _labels(asked, index_B, off_BE)] -= 1.0
    encoder, to_item_BLD = _per_example(model, inputs, item_BLD, query_BD, off_BE @ items.vector_ED)
    weight_B = torch.from_numpy(asked.weight_T[index_B]).to(weight)
    for name, gradient in encoder.items():
        sums[f"encoder/{name}"] += torch.einsum("b...,b->...", gradient.square(), weight_B)
    table_VD = sums[_TABLE]
    square_ED = items.squares(off_BE, query_BD, weight_B)
    table_VD.index_put_((items.slot_E,), square_ED, accumulate=True)
    row_U, slot_U, read_UD = _distinct_reads(slot_BL, to_item_BLD, len(table_VD))
    column_U = torch.searchsorted(items.slot_E, slot_U).clamp(max=len(items.slot_E) - 1)
    off_U = torch.where(items.slot_E[column_U] == slot_U, off_BE[row_U, column_U], 0.0)
    scored_UD = items.gradient(off_U, query_BD[row_U], column_U)
    added_UD = (read_UD.square() + 2.0 * read_UD * scored_UD) * weight_B[row_U].unsqueeze(1)
    table_VD.index_put_((slot_U,), added_UD, accumulate=True)


def _per_example(
    model: RecallModel, inputs: ModelInputs, item_BLD: Tensor, query_BD: Tensor, direction_BD: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Each example's own gradient of query times direction: by the encoder's parameters, and by the items it reads."""
    parameters = {name: value.detach() for name, value in model.encoder.named_parameters()}
    one, first = inputs.take(np.zeros(1, dtype=np.int64)), torch.zeros(1, dtype=torch.int64)

    def word(given: dict[str, Tensor], item_LD: Tensor, direction_D: Tensor) -> tuple[Tensor, Tensor]:
        encoder: nn.Module = model.encoder
        query_D = model.query_side(functional_call(encoder, given, (one, item_LD.unsqueeze(0), first, first)))[0]
        return query_D @ direction_D, query_D

    per_example = vmap(grad(word, argnums=(0, 1), has_aux=True), in_dims=(None, 0, 0))
    (encoder, to_item_BLD), again_BD = per_example(parameters, item_BLD, direction_BD)
    assert torch.allclose(again_BD, query_BD, rtol=1e-3, atol=1e-3, equal_nan=True), (
        "this encoder reads more of its inputs than which rows are filled, so examples cannot share them"
    )
    return encoder, to_item_BLD


def _labels(asked: Asked, index_B: NDArray[np.int64], probability_BE: Tensor) -> Tensor:
    """The columns of the targets, or of items drawn from what the model would answer."""
    if asked.draw_T is None:
        return torch.from_numpy(asked.column_T[index_B]).to(probability_BE.device)
    draw_B1 = torch.from_numpy(asked.draw_T[index_B]).to(probability_BE).unsqueeze(1)
    column_B = (probability_BE.cumsum(1) <= draw_B1).sum(1)
    return column_B.clamp(max=probability_BE.shape[1] - 1)


def _distinct_reads(slot_BL: Tensor, to_item_BLD: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Example, row and gradient of each distinct row that an example reads: one that comes twice has their sum."""
    key_BL = torch.arange(len(slot_BL), device=slot_BL.device).unsqueeze(1) * num_rows + slot_BL
    key_U, place_N = torch.unique(key_BL, return_inverse=True)
    read_UD = to_item_BLD.new_zeros(len(key_U), to_item_BLD.shape[-1])
    read_UD.index_put_((place_N.flatten(),), to_item_BLD.flatten(0, 1), accumulate=True)
    return key_U // num_rows, key_U % num_rows, read_UD


def _of_equal_length(length_Q: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices in chunks; contexts of one length share a mask, so that one example's inputs serve all."""
    for length in np.unique(length_Q).tolist():
        index_N = np.flatnonzero(length_Q == length)
        for start in range(0, len(index_N), _CHUNK):
            yield index_N[start : start + _CHUNK]
