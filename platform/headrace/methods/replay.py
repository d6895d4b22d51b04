"""Replay: every increment trains on examples of earlier ones beside its own (one-hot targets, as they were)."""

from headrace.config.methods import ReplayMethodConfig
from headrace.methods.base import Method


class Replay(Method):
    """Asks the loop for a share of the past; which part of it is kept, the recipe's section ``replay`` says."""

    def __init__(self, config: ReplayMethodConfig) -> None:
        self.config = config

    def replay_ratio(self) -> float:
        """The recipe's ratio; see ``Method``."""
        return self.config.ratio
