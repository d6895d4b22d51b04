"""Cross-entropy against a teacher's distribution instead of one target (arXiv 1503.02531).

As in objectives/softmax.py, the difference of the two distributions is the one array that is kept for the way back.
Shape legend: P queries, E items scored, D width.
"""

from typing import Any

import torch
from torch import Tensor

from headrace.models.offset import Offset
from headrace.objectives.softmax import product_dtype, softmax_, with_offset


def soft_loss(
    query_PD: Tensor,
    vectors_ED: Tensor,
    teacher_PD: Tensor,
    teacher_ED: Tensor,
    weight_P: Tensor,
    offset_E: Tensor | None = None,
    temperature: float = 1.0,
    prior: Offset | None = None,
) -> Tensor:
    """The weighted sum over queries of the cross-entropy of ``softmax(query @ vectors.T)`` to the teacher's.

    ``offset_E`` is added to both models' logits: -inf where the teacher has nothing to say, the correction of a sample.
    Logits, with the ``prior`` that both have, are divided by the temperature before, and the loss is multiplied by its
    square, so that gradients keep their size.
    """
    prior = None if prior is None else prior.divided(temperature)
    with torch.no_grad():
        dtype = product_dtype(query_PD)
        with torch.autocast(query_PD.device.type, enabled=False):
            logit_PE = (teacher_PD / temperature).to(dtype) @ teacher_ED.to(dtype).T
            logit_PE = with_offset(logit_PE, prior, query_PD.dtype)
            if offset_E is not None:
                logit_PE += offset_E
            teacher_PE = softmax_(logit_PE)
    total: Tensor = _SoftCrossEntropy.apply(  # type: ignore[no-untyped-call]
        query_PD / temperature, vectors_ED, teacher_PE, weight_P * temperature**2, offset_E, prior
    )
    return total


class _SoftCrossEntropy(torch.autograd.Function):
    """Weighted sum of log(sum of exponentials) less the logits' mean under the teacher; takes the teacher's array."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 torch's context has no type
        query_PD: Tensor,
        vectors_ED: Tensor,
        teacher_PE: Tensor,
        weight_P: Tensor,
        offset_E: Tensor | None,
        prior: Offset | None,
    ) -> Tensor:
        low_query_PD, low_vectors_ED = (x.to(product_dtype(query_PD)) for x in (query_PD, vectors_ED))
        with torch.autocast(query_PD.device.type, enabled=False):
            logit_PE = with_offset(low_query_PD @ low_vectors_ED.T, prior, query_PD.dtype)
            mean_P = torch.einsum("pe,pe->p", teacher_PE, logit_PE)
            if offset_E is not None:
                mean_P += teacher_PE @ offset_E.masked_fill(offset_E == -torch.inf, 0.0).to(teacher_PE)
                logit_PE += offset_E
            highest_P = logit_PE.amax(1)
            probability_PE = softmax_(logit_PE)
            log_sum_P = highest_P - probability_PE.amax(1).log()
            difference_PE = probability_PE.sub_(teacher_PE).to(low_query_PD.dtype)
        ctx.save_for_backward(low_query_PD, low_vectors_ED, difference_PE, weight_P)
        return ((log_sum_P - mean_P).to(weight_P) * weight_P).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401 torch's signature
        query_PD, vectors_ED, difference_PE, weight_P = ctx.saved_tensors
        scale_P1 = (weight_P * gradients[0]).unsqueeze(1)
        to_query_PD = (difference_PE @ vectors_ED).to(scale_P1.dtype) * scale_P1
        to_vectors_ED = (difference_PE.T @ (query_PD * scale_P1).to(query_PD.dtype)).to(scale_P1.dtype)
        return to_query_PD, to_vectors_ED, None, None, None, None
