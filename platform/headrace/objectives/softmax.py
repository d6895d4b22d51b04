"""Cross-entropy over the whole eligible set.

The logits of a step are by far its largest array (256 targets over 43,000 items: 44 MB in float32), so this room holds
one such array and no copy: exponentials take its place, and the gradients of queries and items are products with it.
Shape legend: P queries, T targets, E eligible items, D width, R rows of a chunk.
"""

from typing import Any, Protocol, assert_never

import torch
from torch import Tensor

from headrace.config.recipe import SoftmaxConfig

_ROWS = 32  # of logits, turned into exponentials at a time


class Objective(Protocol):
    """What is predicted, as a loss. Sums, never means: the loop divides by the weight of all ranks' targets."""

    def loss(self, query_PD: Tensor, vectors_ED: Tensor, query_T: Tensor, column_T: Tensor, weight_T: Tensor) -> Tensor:
        """The weighted sum of the targets' negative log likelihoods, a scalar with a gradient.

        Logits are ``query_PD @ vectors_ED.T``. ``query_T``: the query that each target answers (a basket has many
        targets and one query). ``column_T``: the target's column, -1 where it is not eligible, which weighs nothing.
        """
        ...


class Softmax:
    """The exact softmax. Under bfloat16 autocast the products are taken in bfloat16, everything else in float32."""

    def loss(self, query_PD: Tensor, vectors_ED: Tensor, query_T: Tensor, column_T: Tensor, weight_T: Tensor) -> Tensor:
        """See ``Objective``."""
        weight_T = weight_T.to(query_PD).masked_fill(column_T < 0, 0.0)
        total: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            query_PD, vectors_ED, query_T, column_T.clamp(min=0), weight_T
        )
        return total


def build_objective(config: SoftmaxConfig) -> Objective:
    """The objective that this section of a recipe asks for."""
    match config:
        case SoftmaxConfig():
            return Softmax()
        case _:
            assert_never(config)


class _CrossEntropy(torch.autograd.Function):
    """Weighted sum of -log softmax(query @ vectors.T)[target], with one array of (P, E) in all."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 torch's context has no type
        query_PD: Tensor,
        vectors_ED: Tensor,
        query_T: Tensor,
        column_T: Tensor,
        weight_T: Tensor,
    ) -> Tensor:
        device = query_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query_PD.dtype
        with torch.autocast(device, enabled=False):
            low_query_PD, low_vectors_ED = query_PD.to(dtype), vectors_ED.to(dtype)
            logit_PE = low_query_PD @ low_vectors_ED.T
            target_T = logit_PE[query_T, column_T].to(query_PD.dtype)
            top_P = logit_PE.amax(1).to(query_PD.dtype)
            sum_P = torch.empty_like(top_P)
            for start in range(0, len(logit_PE), _ROWS):  # a few rows at a time stay in the processor's cache
                rows_RE, top_R1 = logit_PE[start : start + _ROWS], top_P[start : start + _ROWS].unsqueeze(1)
                exponential_RE = torch.sub(rows_RE, top_R1).exp_()
                torch.sum(exponential_RE, 1, out=sum_P[start : start + _ROWS])
                rows_RE.copy_(exponential_RE)
        ctx.save_for_backward(low_query_PD, low_vectors_ED, logit_PE, sum_P, query_T, column_T, weight_T)
        return (((sum_P.log() + top_P)[query_T] - target_T) * weight_T).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None, None]:  # noqa: ANN401 torch's signature
        query_PD, vectors_ED, exponential_PE, sum_P, query_T, column_T, weight_T = ctx.saved_tensors
        scale_T = weight_T * gradients[0]
        # probabilities are exponentials over their sum: the division falls on the small side of each product
        scale_P1 = (scale_T.new_zeros(len(query_PD)).index_add_(0, query_T, scale_T) / sum_P).unsqueeze(1)
        to_query_PD = (exponential_PE @ vectors_ED).to(scale_T.dtype) * scale_P1
        scaled_PD = (query_PD * scale_P1).to(query_PD.dtype)
        to_vectors_ED = (exponential_PE.T @ scaled_PD).to(scale_T.dtype)
        scale_T1 = -scale_T.unsqueeze(1)
        to_query_PD.index_add_(0, query_T, vectors_ED[column_T].to(scale_T.dtype) * scale_T1)
        to_vectors_ED.index_put_((column_T,), query_PD[query_T].to(scale_T.dtype) * scale_T1, accumulate=True)
        return to_query_PD, to_vectors_ED, None, None, None
