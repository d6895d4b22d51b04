"""Dropout: the right share, the right scale, and the same draw from the same seed."""

import pytest
import torch

from headrace.models.dropout import Dropout


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 0.5, 0.999])
def test_share_and_scale(rate):
    torch.manual_seed(1)
    dropout, x = Dropout(rate), torch.full((400, 501), 2.0, requires_grad=True)
    y = dropout(x)
    exact = dropout.threshold / 256
    assert exact == pytest.approx(rate, abs=1 / 256)
    assert float((y == 0).float().mean()) == pytest.approx(exact, abs=5e-3)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 2.0 / (1.0 - exact)))
    y.sum().backward()
    torch.testing.assert_close(x.grad * 2.0, y.detach())


def test_nothing_happens_without_a_rate_or_outside_of_training():
    x = torch.randn(3, 5)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x


def test_the_seed_decides_and_bytes_are_independent():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(Dropout(0.5)(torch.ones(4096, 8)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    correlation = torch.corrcoef((draws[0] > 0).float().T) - torch.eye(8)  # the eight bytes of a word
    assert float(correlation.abs().max()) < 0.08


def test_bfloat16_stays_bfloat16():
    assert Dropout(0.3)(torch.ones(5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
