"""The softmax against values computed by hand, and its gradients against finite differences."""

import math

import pytest
import torch

from headrace.config.models import SoftmaxConfig
from headrace.objectives.softmax import build_objective

SOFTMAX = build_objective(SoftmaxConfig())


def test_values_by_hand():
    # one query; logits 0, ln 2, ln 5 -> probabilities 1/8, 2/8, 5/8
    query_PD = torch.tensor([[1.0, 0.0]])
    vectors_ED = torch.tensor([[0.0, 3.0], [math.log(2.0), 1.0], [math.log(5.0), 0.0]])
    loss = SOFTMAX.loss(query_PD, vectors_ED, torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([1.0, 3.0]))
    assert float(loss.detach()) == pytest.approx(math.log(4.0) + 3.0 * math.log(8.0 / 5.0), rel=1e-6)


def test_targets_outside_weigh_nothing():
    query_PD, vectors_ED = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss = SOFTMAX.loss(query_PD, vectors_ED, torch.tensor([0, 1]), torch.tensor([-1, -1]), torch.ones(2))
    loss.backward()
    assert loss.item() == 0.0
    assert not query_PD.grad.any()
    assert not vectors_ED.grad.any()


def case(seed: int, num_queries: int = 70, num_items: int = 9) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    query_PD = torch.randn(num_queries, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    vectors_ED = torch.randn(num_items, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    query_T = torch.randint(num_queries, (num_queries + 5,), generator=draw)
    column_T = torch.randint(-1, num_items, query_T.shape, generator=draw)
    weight_T = torch.rand(query_T.shape, dtype=torch.float64, generator=draw)
    return query_PD, vectors_ED, query_T, column_T, weight_T


def plain(query_PD, vectors_ED, query_T, column_T, weight_T):
    log_PE = torch.log_softmax(query_PD @ vectors_ED.T, 1)
    return -(log_PE[query_T, column_T.clamp(min=0)] * weight_T * (column_T >= 0)).sum()


def test_it_is_cross_entropy_with_its_gradients():
    query_PD, vectors_ED, *rest = case(1)
    ours, theirs = SOFTMAX.loss(query_PD, vectors_ED, *rest), plain(query_PD, vectors_ED, *rest)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    ours_grad = torch.autograd.grad(ours * 0.3, (query_PD, vectors_ED))
    theirs_grad = torch.autograd.grad(theirs * 0.3, (query_PD, vectors_ED))
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-10, atol=1e-13)


def test_gradients_by_finite_differences():
    query_PD, vectors_ED, *rest = case(2, num_queries=3, num_items=5)
    assert torch.autograd.gradcheck(lambda q, v: SOFTMAX.loss(q, v, *rest), (query_PD, vectors_ED))


def test_extreme_logits_stay_finite():
    query_PD = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    vectors_ED = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    loss = SOFTMAX.loss(query_PD, vectors_ED, torch.tensor([0, 1]), torch.tensor([1, 1]), torch.ones(2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        -math.log(torch.finfo(torch.float32).tiny)
    )  # 600, told as far as it goes
    assert torch.isfinite(query_PD.grad).all()
    assert torch.isfinite(vectors_ED.grad).all()


def test_bfloat16_products_give_float32_losses_close_to_exact():
    query_PD, vectors_ED, query_T, column_T, weight_T = (x.float() if x.is_floating_point() else x for x in case(3))
    query_PD, vectors_ED = query_PD.detach().requires_grad_(), vectors_ED.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = SOFTMAX.loss(query_PD, vectors_ED, query_T, column_T, weight_T)
    exact = SOFTMAX.loss(query_PD, vectors_ED, query_T, column_T, weight_T)
    assert low.dtype == torch.float32
    assert float(low.detach()) == pytest.approx(float(exact.detach()), rel=1e-2)
    low_grads = torch.autograd.grad(low, (query_PD, vectors_ED))
    exact_grads = torch.autograd.grad(exact, (query_PD, vectors_ED))
    for low_grad, exact_grad in zip(low_grads, exact_grads, strict=True):
        assert low_grad.dtype == torch.float32
        assert float((low_grad - exact_grad).norm() / exact_grad.norm()) < 2e-2
