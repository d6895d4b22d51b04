"""Adam by rows: what a row's own clock does, and that its rate of learning does not fade."""

import pytest
import torch

from headrace.train.row_adam import RowAdam

torch.set_num_threads(1)


def adam(num_rows: int, width: int = 4, dtype: torch.dtype = torch.float64) -> RowAdam:
    optimizer = RowAdam(torch.zeros(0, width, dtype=dtype))
    optimizer.grow(num_rows)
    return optimizer


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["always", "every other step"])
def test_rows_learn_as_under_an_adam_of_the_whole_table(share):
    draw = torch.Generator().manual_seed(1)
    start_VD = torch.randn(6, 4, dtype=torch.float64, generator=draw)
    ours_VD, theirs_VD = start_VD.clone(), torch.nn.Parameter(start_VD.clone())
    optimizer, whole = adam(6), torch.optim.Adam([theirs_VD], lr=0.01, betas=(0.0, 0.999))
    for step in range(1, 60):
        is_touched_V = torch.rand(6, generator=draw) < (share if step > 1 else 1.0)
        gradient_VD = torch.randn(6, 4, dtype=torch.float64, generator=draw) * is_touched_V.unsqueeze(1)
        theirs_VD.grad = gradient_VD
        whole.step()
        slot_R = is_touched_V.nonzero()[:, 0]
        row_RD = ours_VD[slot_R]
        optimizer.update_(slot_R, row_RD, gradient_VD[slot_R], 0.01, step)
        ours_VD[slot_R] = row_RD
    torch.testing.assert_close(ours_VD, theirs_VD.detach(), rtol=1e-6, atol=1e-8)


def test_only_touched_rows_are_written():
    optimizer = adam(5)
    row_RD = torch.ones(2, 4, dtype=torch.float64)
    optimizer.update_(torch.tensor([1, 3]), row_RD, torch.ones_like(row_RD), 0.01, 7)
    assert optimizer.tensors["clock"].tolist() == [0, 1, 0, 1, 0]
    assert optimizer.tensors["touched_at"].tolist() == [0, 7, 0, 7, 0]
    assert not optimizer.tensors["exp_avg_sq"][[0, 2, 4]].any()
    optimizer.grow(7)
    assert optimizer.tensors["clock"].tolist() == [0, 1, 0, 1, 0, 0, 0]
    optimizer.reset(torch.tensor([3]))
    assert optimizer.tensors["clock"].tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert not optimizer.tensors["exp_avg_sq"][3].any()


def test_a_first_touch_moves_by_the_learning_rate_whenever_it_comes():
    row_RD = torch.zeros(1, 4, dtype=torch.float64)
    adam(1).update_(torch.arange(1), row_RD, torch.full_like(row_RD, 5.0), 1e-3, 1_000_000)
    torch.testing.assert_close(row_RD, torch.full_like(row_RD, -1e-3), rtol=1e-6, atol=0)


def rate(optimizer: RowAdam, row_RD: torch.Tensor, first: int, gap: int = 1, touches: int = 100) -> torch.Tensor:
    """How far rows walk a touch, over the learning rate, while their gradient keeps to one."""
    slot_R, before_RD = torch.arange(len(row_RD)), row_RD.clone()
    for number in range(touches):
        optimizer.update_(slot_R, row_RD, torch.ones_like(row_RD), 1e-3, first + number * gap)
    return (before_RD - row_RD).abs().amin(1) / (touches * 1e-3)


def test_after_a_million_touches_a_row_learns_at_its_first_rate():
    # rows that have been touched 0, 10^3, .. 10^6 times, each with the moment that so many noisy gradients leave
    touches_R = torch.tensor([0, 1_000, 10_000, 100_000, 1_000_000])
    row_RD, optimizer, draw = torch.zeros(5, 4, dtype=torch.float64), adam(5), torch.Generator().manual_seed(3)
    step = 1_000_000 - 8_000
    optimizer.tensors["clock"] = (touches_R - 8_000).clamp(min=0).int()  # what is older is forgotten: 0.999^8000 = 3e-4
    optimizer.tensors["touched_at"].fill_(step)
    for left in range(8_000, 0, -1):
        step += 1
        mine_R = (touches_R >= left).nonzero()[:, 0]
        noise_RD = torch.randn(len(mine_R), 4, dtype=torch.float64, generator=draw)
        optimizer.update_(mine_R, row_RD[mine_R], noise_RD, 1e-3, step)
    assert optimizer.tensors["clock"].tolist() == touches_R.tolist()
    rate_R = rate(optimizer, row_RD, step + 1)
    assert (rate_R[1:] / rate_R[0] > 0.9).all()


def test_a_burst_of_large_gradients_is_forgotten():
    optimizer, row_RD = adam(1), torch.zeros(1, 4, dtype=torch.float64)
    for step in range(1, 101):
        optimizer.update_(torch.arange(1), row_RD, torch.full_like(row_RD, 1000.0), 1e-3, step)
    assert float(rate(optimizer, row_RD, 101)) < 0.01
    assert float(rate(optimizer, row_RD, 201, gap=20, touches=1_000)) < 4.0  # time passes for a seldom touched row, too
    assert float(rate(optimizer, row_RD, 20_201, touches=4_000)) > 0.9


def test_a_clock_runs_so_far_and_no_further_between_two_touches():
    often, seldom, never = (adam(1) for _ in range(3))
    rates = [
        float(rate(optimizer, torch.zeros(1, 4, dtype=torch.float64), 1, gap, 2_000))
        for optimizer, gap in ((often, 1), (seldom, 256), (never, 5_000))
    ]
    assert rates[0] == pytest.approx(1.0, rel=1e-3)
    assert 10.0 < rates[1] < 16.01
    assert rates[2] == pytest.approx(rates[1], rel=1e-9)
