"""Plain gradient updates, guarded twice: a warm-up of the learning rate, and a bound on the gradient's norm.

The warm-up counts steps since the optimizer was fresh, not since the increment began: Adam's moments live as long as
the model, so later increments start at the full rate (a fresh Adam at every increment costs up to ten points).
"""

from headrace.config.methods import OnlineConfig
from headrace.methods.base import Method


class Online(Method):
    """No memory of the past but the weights and the optimizer's moments."""

    def __init__(self, config: OnlineConfig) -> None:
        self.config = config

    def learning_rate_scale(self, steps_since_fresh: int) -> float:
        """Linear from 1 / ``warmup_steps`` at the first step to 1; see ``Method``."""
        if steps_since_fresh >= self.config.warmup_steps:
            return 1.0
        return (steps_since_fresh + 1) / self.config.warmup_steps

    def max_gradient_norm(self) -> float | None:
        """The recipe's bound; see ``Method``."""
        return self.config.max_gradient_norm
