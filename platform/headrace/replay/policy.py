"""Which examples stay under a byte budget, and how likely each is to be drawn. Pure and seeded: no Ray, no torch.

Nothing here holds a generator. What is random about an example is hashed from where it came from (shard and row), so
that the same are kept whatever the restarts or the world size. Shape legend: N examples, I items, B drawn.
"""

import math
from dataclasses import dataclass
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.config.methods import FrequencyConfig, RecencyConfig, ReplayPolicyConfig, ReservoirConfig
from headrace.records import hash64, hash64_array


@dataclass(frozen=True)
class Candidates:
    """What a policy may look at. Made by replay/buffer.py; the order has no influence on who stays."""

    cut_N: NDArray[np.integer]
    """The increment that trained the example first."""
    ts_N: NDArray[np.int64]
    """Event time of the question, ms."""
    item_N: NDArray[np.integer]
    """The (first) target's item number."""
    shard_N: NDArray[np.integer]
    row_N: NDArray[np.integer]
    """With ``shard_N``: where the (first) target came from; names the example."""
    size_N: NDArray[np.int64]
    """Bytes that keeping it takes."""
    order_N: NDArray[np.floating]
    """Its place among the examples of its item and cut, lower first (replay/herding.py); 0 where nobody has said."""

    def __len__(self) -> int:
        return len(self.cut_N)

    def take(self, index_B: NDArray[np.integer]) -> "Candidates":
        """These, in this order."""
        return Candidates(*(column_N[index_B] for column_N in self.__dict__.values()))


@dataclass(frozen=True)
class Kept:
    """What a policy decided. Read by replay/buffer.py."""

    keep_N: NDArray[np.bool_]
    threshold: float
    """Examples of this priority or a higher one were let go, and are never kept later; inf: none were."""


class Policy(Protocol):
    """Decides from the candidates alone; the same candidates give the same decision."""

    name: str
    """Says all that a threshold depends on."""
    draws_evenly: bool
    """Whether all that is kept is drawn alike."""

    def keep(self, candidates: Candidates, budget_bytes: int, threshold: float, cut: int) -> Kept:
        """Who stays, in at most ``budget_bytes``; ``threshold`` is what the last decision said, ``cut`` the newest."""
        ...

    def weights(self, candidates: Candidates, threshold: float) -> NDArray[np.float64]:
        """How likely each of the kept is to be drawn, up to a factor; not asked where ``draws_evenly``."""
        ...


def build_policy(config: ReplayPolicyConfig, seed: int) -> Policy:
    """The recipe's policy."""
    match config:
        case ReservoirConfig():
            return Weighted(seed)
        case RecencyConfig():
            return Weighted(seed, config.half_life_s, config.half_life_increments)
        case FrequencyConfig():
            return FrequencyQuota(seed)
        case _:
            assert_never(config)


class Weighted:
    """A sample of everything seen in which an example's chance halves with each half-life of age; None: never.

    Weighted sampling by exponential ranks (Efraimidis and Spirakis, arXiv 1012.0256): an example's priority is -log(u)
    over its weight, and the smallest priorities stay. Weights that decay with age all by the same factor leave the
    order as it is (forward decay), so a priority never changes, and keeping piece by piece ends with the same examples
    as keeping all at once.
    """

    def __init__(self, seed: int, half_life_s: float | None = None, half_life_increments: float | None = None) -> None:
        self.name = f"weighted {seed} {half_life_s} {half_life_increments}"
        self._seed = seed
        self._half_life_s = half_life_s
        self._half_life_increments = half_life_increments
        self.draws_evenly = half_life_s is None and half_life_increments is None

    def keep(self, candidates: Candidates, budget_bytes: int, threshold: float, cut: int) -> Kept:
        """The smallest priorities that fit; everything from the first that does not fit on is let go for good."""
        priority_N = np.log(-np.log(uniform(candidates, self._seed))) - self._log_weight(candidates)
        return _smallest(priority_N, candidates.size_N, budget_bytes, threshold)

    def weights(self, candidates: Candidates, threshold: float) -> NDArray[np.float64]:
        """Weight over the chance of having been kept, so that draws follow the weights whatever the budget.

        Given the threshold, an example was kept with probability 1 - exp(-weight * exp(threshold)) (rank conditioning
        of bottom-k samples, arXiv 0802.3448).
        """
        log_weight_N = self._log_weight(candidates)
        if math.isinf(threshold):
            return _floats(np.exp(log_weight_N - log_weight_N.max(initial=-np.inf)))
        log_rate_N = np.clip(log_weight_N + threshold, -700.0, None)
        largest = max(0.0, float(log_rate_N.max(initial=0.0)))
        return _floats(np.exp(log_rate_N - largest) / -np.expm1(-np.exp(np.minimum(log_rate_N, 700.0))))

    def _log_weight(self, candidates: Candidates) -> NDArray[np.float64]:
        """Of each example, up to a summand: what its time adds."""
        if self._half_life_s is not None:
            return _floats(candidates.ts_N * (math.log(2.0) / (1000.0 * self._half_life_s)))
        if self._half_life_increments is not None:
            return _floats(candidates.cut_N * (math.log(2.0) / self._half_life_increments))
        return np.zeros(len(candidates))


class FrequencyQuota:
    """A quota for each item in proportion to how often it is a target among old and new (ADER, arXiv 2007.12000).

    A quota is the item's share, rounded up or down by a draw of its own. Within an item the first places stay, whatever
    their cut: ADER's herding, if the loop has said which they are. Of equal places the smallest hashes do, which is as
    good as uniform over all of its examples that were ever seen.
    """

    def __init__(self, seed: int) -> None:
        self.name = f"frequency {seed}"
        self.draws_evenly = True  # the quotas have said how much of each item there is
        self._seed = seed

    def keep(self, candidates: Candidates, budget_bytes: int, threshold: float, cut: int) -> Kept:
        """All where they fit; else every item's first examples, as many as its quota says."""
        if int(candidates.size_N.sum()) <= budget_bytes:
            return Kept(np.ones(len(candidates), dtype=bool), math.inf)
        item_I, inverse_N, count_I = np.unique(candidates.item_N, return_inverse=True, return_counts=True)
        place_N = _place_within(inverse_N, candidates.order_N + uniform(candidates, self._seed))
        offset_I = _unit(hash64_array(item_I, self._seed, "replay quota", cut, budget_bytes))
        # an item's k-th example comes at (k + u) / count: any prefix of that order holds each item's share of it
        turn_N = (place_N + offset_I[inverse_N]) / count_I[inverse_N]
        kept = _smallest(turn_N, candidates.size_N, budget_bytes, math.inf)
        return Kept(kept.keep_N, math.inf)

    def weights(self, candidates: Candidates, threshold: float) -> NDArray[np.float64]:
        """All alike."""
        return np.ones(len(candidates))


def uniform(candidates: Candidates, seed: int) -> NDArray[np.float64]:
    """A number in (0, 1) for each example, drawn by its name, independent of one another."""
    shard_N = hash64_array(candidates.shard_N, seed, "replay")
    word_N = shard_N ^ candidates.row_N.astype(np.uint64)
    return _unit(hash64_array(word_N, hash64(seed, "replay row")))


def draw(end_N: NDArray[np.float64] | None, num: int, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``size`` of ``num`` examples, ascending: one from each of ``size`` equal slices of the total weight.

    ``end_N`` is the weights' running sum; None: all weigh the same.
    Every example is drawn in exact proportion to its weight, and nearly without replacement: twice only where it lies
    across two slices, or weighs more than one. Nothing is drawn where ``num`` is 0.
    """
    if num == 0:
        return np.zeros(0, dtype=np.int64)
    at_B = (np.arange(size) + generator.random(size)) / size
    if end_N is None:
        return np.minimum((at_B * num).astype(np.int64), num - 1)
    place_B = np.searchsorted(end_N, at_B * end_N[-1], side="right")
    return np.asarray(np.minimum(place_B, num - 1), dtype=np.int64)


def _floats(values_N: NDArray[np.number]) -> NDArray[np.float64]:
    return np.asarray(values_N, dtype=np.float64)


def _unit(hash_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers strictly between 0 and 1."""
    return np.asarray(((hash_N >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def _place_within(group_N: NDArray[np.integer], order_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each one's place (0, 1, ..) within its group, by ``order_N``."""
    sorted_N = np.lexsort((order_N, group_N))
    grouped_N = group_N[sorted_N]
    place_N = np.empty(len(group_N), dtype=np.int64)
    place_N[sorted_N] = np.arange(len(group_N)) - np.searchsorted(grouped_N, grouped_N, side="left")
    return place_N


def _smallest(priority_N: NDArray[np.float64], size_N: NDArray[np.int64], budget_bytes: int, threshold: float) -> Kept:
    """The smallest priorities below the threshold, up to the first that would exceed the budget: the new threshold."""
    below_N = priority_N < threshold
    if int(size_N[below_N].sum()) <= budget_bytes:
        return Kept(below_N, threshold)
    order_N = np.argsort(priority_N, kind="stable")
    num_fit = int(np.searchsorted(np.cumsum(size_N[order_N]), budget_bytes, side="right"))
    first_out = float(priority_N[order_N[num_fit]])
    return Kept(priority_N < first_out, first_out)
