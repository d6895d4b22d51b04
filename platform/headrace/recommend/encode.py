"""Contexts to query vectors, in shapes that depend on a query alone.

A product over another shape differs in its last bits. So that a request gets the same bits whatever it shares a batch
with, every context is padded to a shape that it decides by itself, and encoded among ``ROWS`` rows, never more nor
fewer; the missing ones are empty. Shape legend: Q queries, R = Q + 1 offsets, B = ROWS, L width, D width of vectors.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.inputs.contexts import Contexts, ModelInputs, offsets, pad, ranges
from headrace.models.base import RecallModel

ROWS = 16
"""Contexts encoded at once."""


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; the model's mode is what it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def newest(contexts: Contexts, max_events: int) -> Contexts:
    """The same queries with the newest ``max_events`` events of each context."""
    length_Q = contexts.length_Q
    if length_Q.max(initial=0) <= max_events:
        return contexts
    kept_Q = np.minimum(length_Q, max_events)
    flat_T = ranges(contexts.offset_R[1:] - kept_Q, kept_Q)
    return Contexts(
        contexts.item_T[flat_T],
        contexts.ts_T[flat_T],
        contexts.kind_T[flat_T],
        offsets(kept_Q),
        contexts.as_of_Q,
        contexts.session_Q,
        contexts.told_Q,
    )


def encode(model: RecallModel, contexts: Contexts, slot_I: NDArray[np.int64], max_events: int) -> Tensor:
    """The query vectors ``(Q, D)``, zeros where the model has nothing to say of an empty context.

    None may hold more than ``max_events`` events.
    """
    vector_QD = model.table.weight.new_zeros(len(contexts), model.table.width)
    length_Q = contexts.length_Q
    width_Q = np.minimum(1 << np.ceil(np.log2(np.maximum(length_Q, 1))).astype(np.int64), max_events)
    shape_Q = model.kin(contexts) * (max_events + 1) + width_Q
    asked_Q = (length_Q > 0) | model.reads_empty
    for shape in np.unique(shape_Q[asked_Q]).tolist():
        index_N = np.flatnonzero((shape_Q == shape) & asked_Q)
        width = shape % (max_events + 1)
        for start in range(0, len(index_N), ROWS):
            index_B = index_N[start : start + ROWS]
            encoded_BD = _block(model, contexts.take(index_B), slot_I, width)
            vector_QD[torch.from_numpy(index_B).to(vector_QD.device)] = encoded_BD[: len(index_B)]
    return vector_QD


def _block(model: RecallModel, contexts: Contexts, slot_I: NDArray[np.int64], width: int) -> Tensor:
    """The vectors ``(ROWS, D)`` of up to ROWS contexts; those of missing ones mean nothing."""
    inputs = _widened(pad(contexts, slot_I), width)
    device = model.table.weight.device
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL).to(device))
    row_P = torch.arange(ROWS, device=device)
    query_BD: Tensor = model.encoder(inputs, item_BLD, row_P, torch.zeros_like(row_P))
    return query_BD


def _widened(inputs: ModelInputs, width: int) -> ModelInputs:
    """The same batch with empty columns on the left and empty rows below, ``(ROWS, width)``."""
    rows, columns = inputs.slot_BL.shape
    margin = ((0, ROWS - rows), (width - columns, 0))
    return ModelInputs(
        np.pad(inputs.slot_BL, margin, constant_values=-1),
        np.pad(inputs.ts_BL, margin),
        np.pad(inputs.kind_BL, margin),
        np.pad(inputs.as_of_B, margin[0]),
        np.pad(inputs.told_B, margin[0]),
    )
