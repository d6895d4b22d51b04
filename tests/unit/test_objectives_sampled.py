"""The sampled softmax: with all items it is the whole one, and otherwise it expects to be; sign and multiplicity."""

import numpy as np
import pytest
import torch

from headrace.config.models import SampledSoftmaxConfig, SoftmaxConfig
from headrace.objectives.negatives import Drawn, Frequencies, Proposal
from headrace.objectives.softmax import build_objective
from headrace.records import generator

SOFTMAX = build_objective(SoftmaxConfig())
SAMPLED = build_objective(SampledSoftmaxConfig())
NUM_ITEMS, NUM_DRAWN, NUM_DRAWS = 60, 15, 3000
FREQUENCY = np.random.default_rng(3).random(NUM_ITEMS) ** 4


def case(seed: int = 1, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Two queries, one with two targets, one target outside; float64."""
    draw = torch.Generator().manual_seed(seed)
    query_PD = torch.randn(2, 4, dtype=torch.float64, generator=draw) * spread
    vectors_ED = torch.randn(NUM_ITEMS, 4, dtype=torch.float64, generator=draw)
    return (
        query_PD,
        vectors_ED,
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([7, 3, 50, -1]),
        torch.tensor([1.0, 2.0, 0.5, 9.0]),
    )


def sampled_loss(drawn: Drawn, query_PD, vectors_ED, query_T, column_T, weight_T, wrong=lambda x: x) -> torch.Tensor:
    """As the training step does it: drawn items and targets side by side."""
    column_C = np.unique(np.concatenate([drawn.column_N, column_T[column_T >= 0].numpy()]))
    correction_C = np.full(len(column_C), -np.inf)
    correction_C[np.searchsorted(column_C, drawn.column_N)] = wrong(drawn.correction_N)
    at_T = np.where(column_T < 0, -1, np.searchsorted(column_C, column_T))
    vectors_CD = vectors_ED[torch.from_numpy(column_C)]
    return SAMPLED.loss(query_PD, vectors_CD, query_T, torch.from_numpy(at_T), weight_T, torch.from_numpy(correction_C))


def partition(drawn: Drawn, logit_E: np.ndarray, target: int, correction_N: np.ndarray) -> float:
    """The sum under the softmax that a sample stands for, by its definition."""
    others = drawn.column_N != target
    return float(np.exp(logit_E[target]) + np.exp(logit_E[drawn.column_N] + correction_N)[others].sum())


@pytest.mark.parametrize("frequency", [None, FREQUENCY], ids=["uniform", "frequency"])
def test_all_items_as_negatives_are_the_whole_softmax(frequency):
    drawn = Proposal(4096, NUM_ITEMS, frequency, 0.5).draw(generator(1))
    assert drawn.column_N.tolist() == list(range(NUM_ITEMS))
    query_PD, vectors_ED, *rest = case()
    query_PD.requires_grad_(), vectors_ED.requires_grad_()
    ours, theirs = sampled_loss(drawn, query_PD, vectors_ED, *rest), SOFTMAX.loss(query_PD, vectors_ED, *rest)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    pairs = zip(*(torch.autograd.grad(loss, (query_PD, vectors_ED)) for loss in (ours, theirs)), strict=True)
    for our_gradient, their_gradient in pairs:
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frequency", [None, FREQUENCY], ids=["uniform", "frequency"])
def test_the_corrected_sum_expects_to_be_the_sum_over_all(frequency):
    proposal = Proposal(NUM_DRAWN, NUM_ITEMS, frequency, 0.5)
    logit_E = np.random.default_rng(5).normal(size=NUM_ITEMS) * 1.5
    whole = np.exp(logit_E).sum()
    sums: dict[str, list[float]] = {"right": [], "sign": [], "multiplicity": []}
    for number in range(NUM_DRAWS):
        drawn = proposal.draw(generator(2, number))
        uncounted = drawn.correction_N + np.log(NUM_DRAWN)  # as if one item had been drawn
        for name, correction_N in (
            ("right", drawn.correction_N),
            ("sign", -drawn.correction_N),
            ("multiplicity", uncounted),
        ):
            sums[name].append(partition(drawn, logit_E, 7, correction_N))
    mean, error = np.mean(sums["right"]), np.std(sums["right"]) / NUM_DRAWS**0.5
    assert abs(mean - whole) < 4.0 * error
    assert error < 0.015 * whole
    assert abs(np.mean(sums["sign"]) - whole) > 0.3 * whole
    assert abs(np.mean(sums["multiplicity"]) - whole) > 0.3 * whole


@pytest.mark.parametrize("frequency", [None, FREQUENCY], ids=["uniform", "frequency"])
def test_loss_and_gradient_expect_to_be_those_of_the_whole_softmax(frequency):
    # a logarithm, or a share, of an unbiased sum is off by its relative variance, which a large sample keeps small
    query_PD, vectors_ED, *rest = case(spread=0.3)
    query_PD.requires_grad_(), vectors_ED.requires_grad_()
    whole = SOFTMAX.loss(query_PD, vectors_ED, *rest)
    wanted = torch.cat([grad.flatten() for grad in torch.autograd.grad(whole, (query_PD, vectors_ED))])
    proposal, losses, gradients = Proposal(40, NUM_ITEMS, frequency, 0.5), [], []
    for number in range(NUM_DRAWS // 3):
        loss = sampled_loss(proposal.draw(generator(3, number)), query_PD, vectors_ED, *rest)
        gradients.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, (query_PD, vectors_ED))]))
        losses.append(float(loss.detach()))
    assert np.mean(losses) == pytest.approx(float(whole.detach()), rel=2e-3)
    mean, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / len(gradients) ** 0.5
    assert float(error.max()) < 0.02 * float(wanted.abs().max())
    assert ((mean - wanted).abs() < 4.5 * error + 2e-3 * wanted.abs().max()).all()


def test_an_own_target_among_the_negatives_counts_once():
    query_PD, vectors_ED, *rest = case()
    apart = Drawn(np.array([10, 20]), np.array([0.7, 1.1], dtype=np.float32))
    among = Drawn(np.array([7, 10, 20]), np.array([5.0, 0.7, 1.1], dtype=np.float32))
    first = slice(0, 1)
    one = [query_PD[:1], vectors_ED, *(part[first] for part in rest)]
    torch.testing.assert_close(sampled_loss(among, *one), sampled_loss(apart, *one), rtol=0, atol=0)


def test_others_targets_that_were_not_drawn_are_no_negatives():
    query_PD, vectors_ED, query_T, column_T, weight_T = case()
    drawn = Drawn(np.array([10, 20]), np.array([0.7, 1.1], dtype=np.float32))
    both = sampled_loss(drawn, query_PD, vectors_ED, query_T, column_T, weight_T)
    alone = [
        sampled_loss(drawn, query_PD[[query]], vectors_ED, query_T[mine] * 0, column_T[mine], weight_T[mine])
        for query in (0, 1)
        for mine in [query_T == query]
    ]
    torch.testing.assert_close(both, alone[0] + alone[1])


def test_gradients_by_finite_differences():
    query_PD, vectors_ED, *rest = case()
    drawn = Proposal(NUM_DRAWN, NUM_ITEMS).draw(generator(4))
    inputs = (query_PD.requires_grad_(), vectors_ED.requires_grad_())
    assert torch.autograd.gradcheck(lambda query, vectors: sampled_loss(drawn, query, vectors, *rest), inputs)


def test_bfloat16_products_give_float32_losses_close_to_exact():
    query_PD, vectors_ED, *rest = case()
    query_PD, vectors_ED = query_PD.float().requires_grad_(), vectors_ED.float().requires_grad_()
    drawn = Proposal(NUM_DRAWN, NUM_ITEMS).draw(generator(4))
    with torch.autocast("cpu", torch.bfloat16):
        low = sampled_loss(drawn, query_PD, vectors_ED, *rest)
    exact = sampled_loss(drawn, query_PD, vectors_ED, *rest)
    assert low.dtype == torch.float32
    assert float(low.detach()) == pytest.approx(float(exact.detach()), rel=1e-2)


@pytest.mark.parametrize("frequency", [None, FREQUENCY], ids=["uniform", "frequency"])
def test_items_are_drawn_as_often_as_expected(frequency):
    proposal = Proposal(NUM_DRAWN, NUM_ITEMS, frequency, 0.2)
    share_E = np.zeros(NUM_ITEMS)
    for number in range(NUM_DRAWS):
        drawn = proposal.draw(generator(6, number))
        share_E[drawn.column_N] += np.exp(drawn.correction_N) / NUM_DRAWS  # drawn / expected: one on average
    rarest = 0.2 * NUM_DRAWN / NUM_ITEMS
    assert np.allclose(share_E, 1.0, atol=4.5 / (NUM_DRAWS * rarest) ** 0.5)
    assert share_E.mean() == pytest.approx(1.0, abs=0.02)


def test_no_item_is_expected_more_than_once():
    frequency = np.ones(NUM_ITEMS)
    frequency[0] = 1000.0
    drawn = Proposal(NUM_DRAWN, NUM_ITEMS, frequency, 0.5).draw(generator(7))
    assert len(drawn.column_N) >= NUM_DRAWN - 2
    assert drawn.correction_N.min() > -0.01


def test_a_draw_belongs_to_its_seed():
    proposal = Proposal(NUM_DRAWN, NUM_ITEMS)
    first, again, other = (proposal.draw(generator(8, number)) for number in (1, 1, 2))
    assert np.array_equal(first.column_N, again.column_N)
    assert not np.array_equal(first.column_N, other.column_N)


def test_no_eligible_items_draw_nothing():
    assert len(Proposal(NUM_DRAWN, 0).draw(generator(9)).column_N) == 0


def test_frequencies_fade_target_by_target_and_start_anew():
    frequencies = Frequencies(half_life_targets=4)
    frequencies.observe(np.array([0, 0, 1]), 2)
    frequencies.observe(np.array([2, 2, 2, 2]), 3)
    assert frequencies.count_V.tolist() == [1.0, 0.5, 4.0]
    frequencies.reset(np.array([0, 3]))  # 3 has never been counted
    assert frequencies.count_V.tolist() == [0.0, 0.5, 4.0]
