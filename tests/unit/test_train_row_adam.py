"""Adam by rows: exactly that of the whole table, and a rate of learning that does not fade."""

import pytest
import torch

from headrace.train.row_adam import RowAdam

torch.set_num_threads(1)


def adam(num_rows: int, width: int = 4, dtype: torch.dtype = torch.float64) -> RowAdam:
    optimizer = RowAdam(torch.zeros(0, width, dtype=dtype))
    optimizer.grow(num_rows)
    return optimizer


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02], ids=["always", "every other step", "seldom"])
def test_rows_learn_as_under_an_adam_of_the_whole_table(share):
    draw = torch.Generator().manual_seed(1)
    start_VD = torch.randn(6, 4, dtype=torch.float64, generator=draw)
    ours_VD, theirs_VD = start_VD.clone(), torch.nn.Parameter(start_VD.clone())
    optimizer, whole = adam(6), torch.optim.Adam([theirs_VD], lr=0.01, betas=(0.0, 0.999))
    for step in range(1, 200):
        is_touched_V = torch.rand(6, generator=draw) < share
        gradient_VD = torch.randn(6, 4, dtype=torch.float64, generator=draw) * is_touched_V.unsqueeze(1)
        theirs_VD.grad = gradient_VD
        whole.step()
        slot_R = is_touched_V.nonzero()[:, 0]
        row_RD = ours_VD[slot_R]
        optimizer.update_(slot_R, row_RD, gradient_VD[slot_R], 0.01, step)
        ours_VD[slot_R] = row_RD
    torch.testing.assert_close(ours_VD, theirs_VD.detach(), rtol=1e-9, atol=1e-9)


def test_only_touched_rows_are_written():
    optimizer = adam(5)
    row_RD = torch.ones(2, 4, dtype=torch.float64)
    optimizer.update_(torch.tensor([1, 3]), row_RD, torch.ones_like(row_RD), 0.01, 7)
    assert optimizer.tensors["touched_at"].tolist() == [0, 7, 0, 7, 0]
    assert not optimizer.tensors["exp_avg_sq"][[0, 2, 4]].any()
    optimizer.grow(7)
    assert optimizer.tensors["touched_at"].tolist() == [0, 7, 0, 7, 0, 0, 0]
    optimizer.reset(torch.tensor([3]))
    assert optimizer.tensors["touched_at"].tolist() == [0, 7, 0, 0, 0, 0, 0]
    assert not optimizer.tensors["exp_avg_sq"][3].any()


def rate(optimizer: RowAdam, row_RD: torch.Tensor, first: int, gap: int = 1, touches: int = 100) -> torch.Tensor:
    """How far rows walk a touch, over the learning rate, while their gradient keeps to one."""
    slot_R, before_RD = torch.arange(len(row_RD)), row_RD.clone()
    for number in range(touches):
        optimizer.update_(slot_R, row_RD, torch.ones_like(row_RD), 1e-3, first + number * gap)
    return (before_RD - row_RD).abs().amin(1) / (touches * 1e-3)


def test_after_a_million_touches_a_row_learns_at_its_first_rate():
    # a moment holds what noisy gradients left of a million touches: what is older than 8,000 is forgotten (3e-4)
    start = float(rate(adam(1), torch.zeros(1, 4, dtype=torch.float64), 1))
    late = float(rate(adam(1), torch.zeros(1, 4, dtype=torch.float64), 1_000_000))
    row_RD, optimizer, draw = torch.zeros(1, 4, dtype=torch.float64), adam(1), torch.Generator().manual_seed(3)
    optimizer.tensors["touched_at"].fill_(1_000_000 - 8_000)
    for step in range(1_000_000 - 7_999, 1_000_001):
        noise_RD = torch.randn(1, 4, dtype=torch.float64, generator=draw)
        optimizer.update_(torch.arange(1), row_RD, noise_RD, 1e-3, step)
    after = float(rate(optimizer, row_RD, 1_000_001))
    assert after / start > 0.9
    assert after / late > 0.1  # of a row that came when the optimizer was old


def test_a_burst_of_large_gradients_is_forgotten():
    optimizer, row_RD = adam(1), torch.zeros(1, 4, dtype=torch.float64)
    for step in range(1, 101):
        optimizer.update_(torch.arange(1), row_RD, torch.full_like(row_RD, 1000.0), 1e-3, step)
    assert float(rate(optimizer, row_RD, 101)) < 0.01
    assert float(rate(optimizer, row_RD, 201, gap=20, touches=1_000)) > 1.0  # time passes for a seldom touched row, too
    assert float(rate(optimizer, row_RD, 20_201, touches=4_000)) > 0.9


def test_a_row_at_rest_learns_faster_but_no_more_than_so_much():
    rates = [
        float(rate(adam(1), torch.zeros(1, 4, dtype=torch.float64), 1 + gap, gap, 1_000)) for gap in (1, 100, 10_000)
    ]
    assert rates[0] == pytest.approx(1.0, rel=1e-2)
    assert 5.0 < rates[1] < 10.0
    assert 31.0 < rates[2] < 0.001**-0.5 + 1e-3
