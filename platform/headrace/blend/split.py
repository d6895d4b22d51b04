"""Repeat or explore: one mixture over the items of a query's own context, another over all others.

What the context holds is answered with r times its probability among these items, anything else with 1 - r times its
probability among the others. Each expert is normalised on either side, and has a weight on each, so that one that is
good at saying what comes again need not be believed about what is new (RepeatNet, arXiv 1812.02646, decides by a
network; here r is counted). The weights of the others are the blend's own; those of repeats are kept here, with how
often the stream's targets came again, by length of context.
Shape legend: Q queries, R = Q + 1 offsets, T targets (flat), B buckets of length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.blend.calibration import Calibration, recalibrate
from headrace.blend.weights import Weights, per_query, update
from headrace.config.answers import BlendConfig

_SHORTEST = np.array([1, 2, 3, 5, 10])  # of each bucket, in events
_PRIOR_ASKED, _PRIOR_REPEATED = 20.0, 2.0  # targets that count as met before the first
_MEMORY = 20_000.0  # targets of a bucket after which its counts are halved, so that they follow the stream


@dataclass(frozen=True)
class OnRepeats:
    """What targets, (T,), or queries, (Q,), say of the side of repeats. Made by the recommender, filled block by block.

    Probabilities and slopes by "neural", each counter and "uniform" (which has no slope): of a target among the items
    of its own context; nan where it is none of them, or the expert abstains.
    """

    probability: Mapping[str, NDArray[np.float64]]
    slope: Mapping[str, NDArray[np.float64]]
    """By the logarithm of the expert's exponent."""
    asked_B: NDArray[np.int64]
    """Targets that may be answered, of contexts with an item that may be."""
    repeated_B: NDArray[np.int64]
    """Those of them that are in their own context."""

    @classmethod
    def nothing(cls, names: Sequence[str], num_targets: int) -> "OnRepeats":
        """Of targets that nobody has been asked about; ``names`` in the order of weights."""
        probability = {name: np.full(num_targets, np.nan) for name in names}
        slope = {name: np.full(num_targets, np.nan) for name in names[:-1]}
        counts_2B = np.zeros((2, len(_SHORTEST)), dtype=np.int64)
        return cls(probability, slope, counts_2B[0], counts_2B[1])

    @classmethod
    def joined(cls, parts: Sequence["OnRepeats"]) -> "OnRepeats":
        """One after the other; at least one."""
        return cls(
            {name: np.concatenate([part.probability[name] for part in parts]) for name in parts[0].probability},
            {name: np.concatenate([part.slope[name] for part in parts]) for name in parts[0].slope},
            np.sum([part.asked_B for part in parts], axis=0),
            np.sum([part.repeated_B for part in parts], axis=0),
        )

    def per_query(self, offset_R: NDArray[np.int64]) -> "OnRepeats":
        """From targets to queries: the means over those that say something."""
        p, slope = per_query(self.probability, offset_R), per_query(self.slope, offset_R)
        return OnRepeats(p, slope, self.asked_B, self.repeated_B)

    def take(self, index_Q: NDArray[np.integer]) -> "OnRepeats":
        """The same queries in another order."""
        p = {name: p_Q[index_Q] for name, p_Q in self.probability.items()}
        slope = {name: slope_Q[index_Q] for name, slope_Q in self.slope.items()}
        return OnRepeats(p, slope, self.asked_B, self.repeated_B)


@dataclass(frozen=True)
class Split:
    """The side of repeats of one commit's blend. State; kept in the commit's facts, and in bundles."""

    weights: Weights
    """Of the experts among the items of the context."""
    asked_B: tuple[float, ...]
    repeated_B: tuple[float, ...]

    @classmethod
    def even(cls, counters: Sequence[str]) -> "Split":
        """An even start, and no target seen."""
        nothing = (0.0,) * len(_SHORTEST)
        return cls(Weights.even(counters), nothing, nothing)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Split":
        """What ``state`` gave."""
        return cls(Weights.from_mapping(state["weights"]), tuple(state["asked"]), tuple(state["repeated"]))

    def state(self) -> dict[str, Any]:
        """Plain JSON, to the last bit."""
        return {"weights": self.weights.as_mapping(), "asked": list(self.asked_B), "repeated": list(self.repeated_B)}

    def share(self, length_Q: NDArray[np.int64]) -> NDArray[np.float64]:
        """The part of the score that is for repeats, for contexts of so many events, ``(Q,)``; 0 for empty ones."""
        repeated_B, asked_B = np.array(self.repeated_B), np.array(self.asked_B)
        share_B = (repeated_B + _PRIOR_REPEATED) / (asked_B + _PRIOR_ASKED)
        return np.where(length_Q > 0, share_B[bucket(np.maximum(length_Q, 1))], 0.0)

    def moved(self, calibration: Calibration, told: OnRepeats, config: BlendConfig) -> tuple["Split", Calibration]:
        """Runs in every increment, alike on every rank: after these queries, (Q,) in ledger order.

        ``calibration`` is shared with the other side, whose queries have moved it already.
        """
        if config.calibrate:
            calibration = recalibrate(calibration, self.weights, told.probability, told.slope)
        weights = update(self.weights, told.probability, config.eta, config.share).weights
        asked_B = np.array(self.asked_B) + told.asked_B
        keep_B = np.where(asked_B > _MEMORY, 0.5, 1.0)
        repeated_B = (np.array(self.repeated_B) + told.repeated_B) * keep_B
        return Split(weights, tuple((asked_B * keep_B).tolist()), tuple(repeated_B.tolist())), calibration


def bucket(length_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of contexts of so many events, at least one, ``(Q,)``."""
    return np.searchsorted(_SHORTEST, length_Q, side="right") - 1


def split_of(config: BlendConfig, counters: Sequence[str]) -> Split | None:
    """A fresh one where the recipe splits."""
    match config.split:
        case "none":
            return None
        case "repeat":
            return Split.even(counters)
