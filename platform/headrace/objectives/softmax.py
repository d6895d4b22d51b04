"""Cross-entropy over the whole eligible set, or over a sample of it that stands for the whole.

The logits of a step are by far its largest array (256 targets over 43,000 items: 44 MB in float32), so this room holds
one such array and no copy: probabilities take its place, and the gradients of queries and items are products with it.
Shape legend: P queries, T targets, E items scored (all that are eligible, or a sample), D width.
"""

from typing import Any, Protocol, assert_never

import torch
from torch import Tensor

from headrace.config.models import ObjectiveConfig, SampledSoftmaxConfig, SoftmaxConfig
from headrace.models.offset import Offset
from headrace.objectives.levels import Contrasts, contrast_loss


class Objective(Protocol):
    """What is predicted, as a loss. Sums, never means: the loop divides by the weight of all ranks' targets."""

    @property
    def sampled(self) -> SampledSoftmaxConfig | None:
        """How the items to score are drawn; None: all that are eligible are scored."""
        ...

    def loss(
        self,
        query_PD: Tensor,
        vectors_ED: Tensor,
        query_T: Tensor,
        column_T: Tensor,
        weight_T: Tensor,
        correction_E: Tensor | None = None,
        offset: Offset | None = None,
        contrasts: Contrasts | None = None,
    ) -> Tensor:
        """The weighted sum of the targets' negative log likelihoods, a scalar with a gradient.

        Logits are ``query_PD @ vectors_ED.T``. ``query_T``: the query that each target answers (a basket has many
        targets and one query). ``column_T``: the target's column, -1 where it is not eligible, which weighs nothing.
        ``correction_E``: of a sample, what each item's logit is raised by (``Drawn.correction_N``), -inf for items that
        are there as somebody's target only; None: all eligible items are there. ``offset``: added to the logits.
        ``contrasts``: who of the targets is held against whom, which comes on top.
        """
        ...


class Softmax:
    """The exact softmax. Under bfloat16 autocast the products are taken in bfloat16, everything else in float32."""

    sampled: SampledSoftmaxConfig | None = None

    def __init__(self, config: SoftmaxConfig | None = None) -> None:
        self._level_weight = (config or SoftmaxConfig()).level_weight

    def loss(
        self,
        query_PD: Tensor,
        vectors_ED: Tensor,
        query_T: Tensor,
        column_T: Tensor,
        weight_T: Tensor,
        correction_E: Tensor | None = None,
        offset: Offset | None = None,
        contrasts: Contrasts | None = None,
    ) -> Tensor:
        """See ``Objective``."""
        assert correction_E is None, "the whole softmax has nothing to correct"
        weight_T = weight_T.to(query_PD).masked_fill(column_T < 0, 0.0)
        total: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            query_PD, vectors_ED, query_T, column_T.clamp(min=0), weight_T, offset
        )
        if contrasts is None:
            return total
        told = contrast_loss(contrasts, query_PD, vectors_ED, query_T, column_T, weight_T, offset)
        return total + self._level_weight * told


class SampledSoftmax:
    """The softmax over drawn items, each standing for those that were not drawn (arXiv 2507.09331).

    A query's own targets are in its sum with certainty: their expected count is one, so their logits stay as they are,
    drawn or not (an accidental hit counts once, as the target). Of the other items, the drawn ones are raised by
    log(drawn / expected). The sum over the sample then expects to be the sum over all, and with every item drawn once
    it is the exact softmax.
    """

    def __init__(self, config: SampledSoftmaxConfig) -> None:
        self.sampled: SampledSoftmaxConfig | None = config
        self._level_weight = config.level_weight

    def loss(
        self,
        query_PD: Tensor,
        vectors_ED: Tensor,
        query_T: Tensor,
        column_T: Tensor,
        weight_T: Tensor,
        correction_E: Tensor | None = None,
        offset: Offset | None = None,
        contrasts: Contrasts | None = None,
    ) -> Tensor:
        """See ``Objective``."""
        assert correction_E is not None, "a sample needs its corrections"
        assert offset is None, "recipes refuse a prior beside a sample"
        inside_T, weight_T = column_T >= 0, weight_T.to(query_PD)
        total: Tensor = _SampledCrossEntropy.apply(  # type: ignore[no-untyped-call]
            query_PD,
            vectors_ED,
            query_T[inside_T],
            column_T[inside_T],
            weight_T[inside_T],
            correction_E.to(query_PD),
        )
        if contrasts is None:
            return total
        return total + self._level_weight * contrast_loss(contrasts, query_PD, vectors_ED, query_T, column_T, weight_T)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that this section of a recipe asks for."""
    match config:
        case SoftmaxConfig():
            return Softmax(config)
        case SampledSoftmaxConfig():
            return SampledSoftmax(config)
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
        offset: Offset | None,
    ) -> Tensor:
        device = query_PD.device.type
        low_query_PD, low_vectors_ED = (x.to(product_dtype(query_PD)) for x in (query_PD, vectors_ED))
        with torch.autocast(device, enabled=False):
            logit_PE = with_offset(low_query_PD @ low_vectors_ED.T, offset, query_PD.dtype)
            probability_PE = softmax_(logit_PE)
        low_probability_PE = probability_PE.to(low_query_PD.dtype)
        ctx.save_for_backward(low_query_PD, low_vectors_ED, low_probability_PE, query_T, column_T, weight_T)
        return _loss(probability_PE, query_T, column_T, weight_T)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401 torch's signature
        query_PD, vectors_ED, probability_PE, query_T, column_T, weight_T = ctx.saved_tensors
        scale_T = weight_T * gradients[0]
        # the weights fall on the small side of each product
        scale_P1 = scale_T.new_zeros(len(query_PD)).index_add_(0, query_T, scale_T).unsqueeze(1)
        to_query_PD = (probability_PE @ vectors_ED).to(scale_T.dtype) * scale_P1
        to_vectors_ED = (probability_PE.T @ (query_PD * scale_P1).to(query_PD.dtype)).to(scale_T.dtype)
        scale_T1 = -scale_T.unsqueeze(1)
        to_query_PD.index_add_(0, query_T, vectors_ED[column_T].to(scale_T.dtype) * scale_T1)
        to_vectors_ED.index_put_((column_T,), query_PD[query_T].to(scale_T.dtype) * scale_T1, accumulate=True)
        return to_query_PD, to_vectors_ED, None, None, None, None


class _SampledCrossEntropy(torch.autograd.Function):
    """The same over a sample: each query sees its own targets' logits as they are, all others corrected."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 torch's context has no type
        query_PD: Tensor,
        vectors_ED: Tensor,
        query_T: Tensor,
        column_T: Tensor,
        weight_T: Tensor,
        correction_E: Tensor,
    ) -> Tensor:
        device = query_PD.device.type
        low_query_PD, low_vectors_ED = (x.to(product_dtype(query_PD)) for x in (query_PD, vectors_ED))
        with torch.autocast(device, enabled=False):
            logit_PE = low_query_PD @ low_vectors_ED.T
            corrected_PE = logit_PE + correction_E
            corrected_PE[query_T, column_T] = logit_PE[query_T, column_T].to(corrected_PE.dtype)
            probability_PE = softmax_(corrected_PE)
        low_probability_PE = logit_PE.copy_(probability_PE)
        ctx.save_for_backward(low_query_PD, low_vectors_ED, low_probability_PE, query_T, column_T, weight_T)
        return _loss(probability_PE, query_T, column_T, weight_T)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401 torch's signature
        return _CrossEntropy.backward(ctx, *gradients)


def product_dtype(like: Tensor) -> torch.dtype:
    """In which products are taken: autocast's kind of number, if it is on, else that of ``like``."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def with_offset(logit_PE: Tensor, offset: Offset | None, dtype: torch.dtype) -> Tensor:
    """The logits with an offset, in numbers fine enough for both; the array may be taken over."""
    return logit_PE if offset is None else offset.add_(logit_PE.to(dtype))


def softmax_(logit_PE: Tensor) -> Tensor:
    """Probabilities in place of the logits, in one pass (sums are float32 inside). The array may be taken over."""
    return torch.softmax(logit_PE, 1, out=logit_PE if logit_PE.device.type == "cpu" else None)


def _loss(probability_PE: Tensor, query_T: Tensor, column_T: Tensor, weight_T: Tensor) -> Tensor:
    """The weighted sum of -log likelihoods; one below the smallest number of its kind (1e-38) is told as that."""
    likely_T = probability_PE[query_T, column_T].to(weight_T.dtype)
    return -(likely_T.clamp(min=torch.finfo(likely_T.dtype).tiny).log() * weight_T).sum()
