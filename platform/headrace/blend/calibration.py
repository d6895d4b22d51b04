"""How sharply each expert is heard: an exponent of its probabilities (one over a temperature), moved by the stream.

An expert ranks well and still says its probabilities too boldly, or too timidly; raised to a power and normalised
again, they keep their order. The exponents descend the same log loss as the weights, once a cut, by steps of Newton's
kind: the summed slope over the summed squares of the slopes (the empirical Fisher information), both in the logarithm
of the exponent. Old information is halved every so many queries, so that the exponents can follow a stream that turns.
Shape legend: Q queries, K experts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.blend.weights import NEURAL, Weights

_PRIOR = 50.0  # information before the first query: about a hundred queries that an expert has a say in
_MEMORY = 3000  # queries after which information is halved
_LARGEST_STEP = 0.7
_LOWEST, _HIGHEST = math.log(0.05), math.log(5.0)


@dataclass(frozen=True)
class Calibration:
    """The exponents of one commit, by expert, all but uniform's. State; kept in the commit's facts."""

    exponents: Mapping[str, float]
    information: Mapping[str, float]

    @classmethod
    def plain(cls, counters: Sequence[str]) -> "Calibration":
        """Every expert as it is: exponent 1."""
        names = (NEURAL, *counters)
        return cls(dict.fromkeys(names, 1.0), dict.fromkeys(names, _PRIOR))

    @classmethod
    def from_state(cls, state: Mapping[str, Sequence[float]]) -> "Calibration":
        """The calibration whose ``state`` this was."""
        return cls({name: pair[0] for name, pair in state.items()}, {name: pair[1] for name, pair in state.items()})

    def state(self) -> dict[str, list[float]]:
        """Exponent and information by name, as JSON keeps them to the last bit."""
        return {name: [exponent, self.information[name]] for name, exponent in self.exponents.items()}


def recalibrate(
    calibration: Calibration,
    weights: Weights,
    p: Mapping[str, NDArray[np.float64]],
    slope: Mapping[str, NDArray[np.float64]],
) -> Calibration:
    """Runs in every increment, after scoring, alike on every rank: move the exponents by Q queries in ledger order.

    ``p`` and ``slope`` name each expert's (Q,) probability of the target, and its derivative by the logarithm of the
    exponent; NaN where it abstains. ``weights`` are those that the queries were answered with.
    """
    weight_of = weights.as_mapping()
    p_QK = np.stack([p[name] for name in weights.names], axis=1)
    votes_QK = np.isfinite(p_QK) & (p_QK >= 0.0)
    weight_K = np.array([weight_of[name] for name in weights.names])
    mixed_Q = np.where(votes_QK, p_QK, 0.0) @ weight_K
    told_Q = mixed_Q > 0.0
    keep = 0.5 ** (int(told_Q.sum()) / _MEMORY)
    exponents, information = dict(calibration.exponents), dict(calibration.information)
    for name in exponents:
        slope_Q = np.nan_to_num(slope[name][told_Q], posinf=0.0, neginf=0.0)
        gain_Q = weight_of[name] * slope_Q / mixed_Q[told_Q]
        information[name] = keep * information[name] + float((gain_Q * gain_Q).sum())
        step = float(gain_Q.sum()) / max(information[name], 1e-9)
        step = min(max(step, -_LARGEST_STEP), _LARGEST_STEP)
        exponents[name] = math.exp(min(max(math.log(exponents[name]) + step, _LOWEST), _HIGHEST))
    return Calibration(exponents, information)
