"""Adam by rows: what a row's own count does, and that its rate of learning does not fade."""

import torch

from headrace.train.row_adam import RowAdam

torch.set_num_threads(1)


def adam(num_rows: int, width: int = 4, dtype: torch.dtype = torch.float64) -> RowAdam:
    optimizer = RowAdam(torch.zeros(0, width, dtype=dtype))
    optimizer.grow(num_rows)
    return optimizer


def test_a_row_that_is_always_touched_learns_as_under_torchs_adam():
    draw = torch.Generator().manual_seed(1)
    start_RD = torch.randn(3, 4, dtype=torch.float64, generator=draw)
    ours, theirs = start_RD.clone(), torch.nn.Parameter(start_RD.clone())
    optimizer, reference = adam(3), torch.optim.Adam([theirs], lr=0.01)
    for _ in range(50):
        theirs.grad = torch.randn(3, 4, dtype=torch.float64, generator=draw)
        optimizer.update_(torch.arange(3), ours, theirs.grad, 0.01)
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-8)


def test_a_row_that_is_seldom_touched_learns_as_if_no_time_passed_between():
    draw = torch.Generator().manual_seed(2)
    gradient_NRD = torch.randn(20, 2, 4, dtype=torch.float64, generator=draw)
    often, seldom = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    first, second = adam(2), adam(2)
    for gradient_RD in gradient_NRD:
        first.update_(torch.arange(2), often, gradient_RD, 0.01)
        for row in range(2):  # at times of their own
            part = seldom[row : row + 1]
            second.update_(torch.tensor([row]), part, gradient_RD[row : row + 1], 0.01)
    torch.testing.assert_close(often, seldom)
    assert first.tensors["touches"].tolist() == [20, 20]


def test_only_touched_rows_are_written():
    optimizer = adam(5)
    row_RD = torch.ones(2, 4, dtype=torch.float64)
    optimizer.update_(torch.tensor([1, 3]), row_RD, torch.ones_like(row_RD), 0.01)
    assert optimizer.tensors["touches"].tolist() == [0, 1, 0, 1, 0]
    assert not optimizer.tensors["exp_avg"][[0, 2, 4]].any()
    optimizer.grow(7)
    assert optimizer.tensors["touches"].tolist() == [0, 1, 0, 1, 0, 0, 0]
    optimizer.reset(torch.tensor([3]))
    assert optimizer.tensors["touches"].tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert not optimizer.tensors["exp_avg_sq"][3].any()


def rate(optimizer: RowAdam, row_RD: torch.Tensor, slot_R: torch.Tensor, touches: int) -> torch.Tensor:
    """How far a row walks a touch, over the learning rate, while its gradient keeps to one side."""
    before_RD = row_RD.clone()
    for _ in range(touches):
        optimizer.update_(slot_R, row_RD, torch.ones_like(row_RD), 1e-3)
    return (before_RD - row_RD).abs().amin(1) / (touches * 1e-3)


def test_after_a_million_touches_a_row_learns_at_its_first_rate():
    # rows that have been touched 0, 10^3, .. 10^6 times, each with the moments that so many noisy gradients leave
    touches_R = torch.tensor([0, 1_000, 10_000, 100_000, 1_000_000])
    slot_R, row_RD = torch.arange(5), torch.zeros(5, 4, dtype=torch.float64)
    optimizer, draw = adam(5), torch.Generator().manual_seed(3)
    for left in range(8_000, 0, -1):  # more than that is forgotten: 0.999^8000 = 3e-4
        mine_R = slot_R[touches_R >= left]
        optimizer.tensors["touches"][mine_R] = (touches_R[mine_R] - left).int()
        part_RD = row_RD[mine_R]
        noise_RD = torch.randn(part_RD.shape, dtype=torch.float64, generator=draw)
        optimizer.update_(mine_R, part_RD, noise_RD, 1e-3)
    assert optimizer.tensors["touches"].tolist() == touches_R.tolist()
    rate_R = rate(optimizer, row_RD, slot_R, 100)
    assert (rate_R[1:] / rate_R[0] > 0.5).all()


def test_a_burst_of_large_gradients_is_forgotten():
    optimizer, row_RD, slot_R = adam(1), torch.zeros(1, 4, dtype=torch.float64), torch.arange(1)
    for _ in range(100):
        optimizer.update_(slot_R, row_RD, torch.full_like(row_RD, 1000.0), 1e-3)
    assert float(rate(optimizer, row_RD, slot_R, 100)) < 0.6  # the way it still goes on is the burst's
    for _ in range(16_000):
        optimizer.update_(slot_R, row_RD, torch.ones_like(row_RD), 1e-3)
    assert float(rate(optimizer, row_RD, slot_R, 100)) > 0.9
