"""Whether a cut's contexts say anything about what followed them.

Were item ids dealt out anew among a cut's rows, a context would be followed by any of the cut's items alike: it would
rank its own target above that of another query half of the time, whatever has been learned, and however popular the
items are, since both come from the same rows (a two-sample rank test: Mann and Whitney, 1947). A stream that moves by
itself leaves the items that a version knows above one half; those that it does not know are not compared.
Of learner, live and trusted the best counts, so that a version that has gone wrong does not put the blame on the rows.
Shape legend: Q queries, T targets (flat), C controls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Gather = Callable[[Mapping[str, NDArray[Any]]], list[Mapping[str, NDArray[Any]]]]
_CONTROLS = 500


@dataclass(frozen=True)
class Coherence:
    """How often the contexts of a cut rank their own target above another. Made here, read by the gate."""

    mean: float
    """0.5 by chance, 1 at best."""
    error: float
    """Its standard error, as of independent queries."""
    num_queries: int


def draw_controls(target_T: NDArray[np.int64], gather: Gather) -> NDArray[np.int64]:
    """Targets ``(C,)`` that stand for the cut's, evenly drawn from all ranks' ``target_T``, alike on every rank."""
    parts = gather({"control": _evenly(target_T)})
    return _evenly(np.concatenate([part["control"] for part in parts]))


def best_coherence(above: Mapping[str, NDArray[np.float64]]) -> Coherence | None:
    """Of the version that tells most; ``above`` names each one's shares of controls below the target, ``(Q,)``.

    NaN where there is nothing to compare; None where there never is.
    """
    found = [_coherence(above_Q[np.isfinite(above_Q)]) for above_Q in above.values()]
    return max((one for one in found if one.num_queries), key=lambda one: one.mean, default=None)


def _coherence(above_Q: NDArray[np.float64]) -> Coherence:
    if not len(above_Q):
        return Coherence(0.5, 0.5, 0)
    return Coherence(float(above_Q.mean()), float(above_Q.std() / np.sqrt(len(above_Q))), len(above_Q))


def _evenly(target_T: NDArray[np.int64]) -> NDArray[np.int64]:
    return target_T[:: max(1, -(-len(target_T) // _CONTROLS))]
