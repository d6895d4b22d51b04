"""What the synthetic shop's own law would answer: the best Recall@20 that anybody can have who sees the same questions.

A question is an event of a session that has begun; the oracle knows the shop's state and the session's last item, and
ranks all items alive by the chance that the walk steps there. Ties count against it, as they do against models.
Shape legend: Q questions of a block, I items alive, by position.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.config.feed import SyntheticConfig
from headrace.feed.landing import SUFFIX, shard_name
from headrace.feed.synthetic import Steps, steps_of

_CUTOFF = 20
_MOST = 500  # questions of a shard that are looked at


class Oracle:
    """Answers for one stream; pure in its arguments, so that nothing has to be kept."""

    def __init__(self, config: SyntheticConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def recall(self, shards: Sequence[str]) -> float | None:
        """Recall@20 over these shards' questions, by name; None without any, and for the warm-up's shard."""
        blocks = [_block(name) for name in shards]
        counted = [self._count(block) for block in blocks if block > 0]
        hits, questions = (sum(pair[i] for pair in counted) for i in range(2))
        return hits / questions if questions else None

    def _count(self, block: int) -> tuple[int, int]:
        own, spilt = (steps_of(self._config, self._seed, b) for b in (block, block - 1))
        ranks = np.concatenate([_ranks(own, ~own.spills_Q), _ranks(spilt, spilt.spills_Q)])
        return int((ranks <= _CUTOFF).sum()), len(ranks)


def _ranks(steps: Steps, chosen_Q: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rank of each step that was taken, among all that could have been."""
    index_Q = np.flatnonzero(chosen_Q)[:_MOST]
    p_QI = steps.probabilities(steps.from_Q[index_Q])
    taken_Q1 = p_QI[np.arange(len(index_Q)), steps.to_Q[index_Q]][:, None]
    return np.asarray((p_QI >= taken_Q1).sum(axis=1), dtype=np.int64)


def _block(name: str) -> int:
    """The number of a shard in its name."""
    number = int("".join(c for c in name.removesuffix(SUFFIX) if c.isdigit()) or -1)
    return number if name == shard_name(number) else -1
