"""The popular expert: counts of every item, faded by event time.

Counts are float64, as seen from a reference time. A rank's delta carries a reference of its own, so that ``reduce``
needs to know nothing of the state; ``apply`` brings state and deltas to the watermark, in rank order, so that every
rank ends with the same bytes. Fading divides all counts alike and changes no probability, so it happens only when
counts arrive. Shape legend: I items by number, U distinct numbers of a delta, N rows, Q queries, E eligible, D width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.experts.base import Arrays, Counted, Shared
from headrace.inputs.contexts import Contexts


class Popular:
    """How often each item was met, each event worth half as much after every half-life."""

    def __init__(self, name: str, half_life_s: float | None) -> None:
        self.name = name
        self.half_life_s = half_life_s
        """None: counts never fade."""
        self._count_I = np.zeros(0, dtype=np.float64)
        self._reference_ms = 0
        self._memo: tuple[Eligible, Shared | None] | None = None

    def reduce(self, counted: Counted) -> Arrays:
        """One rank's distinct numbers, ascending, with their weights as seen from its newest row's time."""
        number_U, inverse_N = np.unique(counted.number_N, return_inverse=True)
        reference_ms = int(counted.ts_N.max(initial=0))
        weight_N = counted.weight_N.astype(np.float64) * self._fade(counted.ts_N, reference_ms)
        count_U = np.bincount(inverse_N, weights=weight_N, minlength=len(number_U))
        return {
            "number": number_U.astype(np.int64),
            "count": count_U.astype(np.float64),
            "reference_ms": np.array([reference_ms], dtype=np.int64),
        }

    def apply(self, deltas: Sequence[Arrays], watermark_ms: int) -> None:
        """Fade what is there to the watermark and add the deltas, in the order given."""
        filled = [delta for delta in deltas if len(delta["number"])]
        if not filled:
            return
        reference_ms = max(watermark_ms, self._reference_ms)
        size = max(len(self._count_I), 1 + max(int(delta["number"].max()) for delta in filled))
        count_I = np.zeros(size, dtype=np.float64)
        kept = self._fade(np.array([self._reference_ms], dtype=np.int64), reference_ms)
        count_I[: len(self._count_I)] = self._count_I * kept
        for delta in filled:
            count_I[delta["number"]] += delta["count"] * self._fade(delta["reference_ms"], reference_ms)
        self._count_I, self._reference_ms, self._memo = count_I, reference_ms, None

    def probabilities(
        self, contexts: Contexts, query_QD: NDArray[np.float32] | None, eligible: Eligible
    ) -> Shared | None:
        """The eligible items' shares of all counts; None while none of them has been counted."""
        if self._memo is None or self._memo[0] is not eligible:
            self._memo = (eligible, self._shares(eligible))
        return self._memo[1]

    def state(self) -> Arrays:
        """The counts and the time they are seen from."""
        return {"count": self._count_I, "reference_ms": np.array([self._reference_ms], dtype=np.int64)}

    def load(self, state: Arrays) -> None:
        """Take over what ``state`` gave."""
        self._count_I = state["count"].astype(np.float64)
        self._reference_ms = int(state["reference_ms"][0])
        self._memo = None

    @property
    def size_bytes(self) -> int:
        """Memory of the counts."""
        return int(self._count_I.nbytes)

    def _fade(self, ts_N: NDArray[np.int64], reference_ms: int) -> NDArray[np.float64]:
        if self.half_life_s is None:
            return np.ones(len(ts_N), dtype=np.float64)
        return np.exp2((ts_N - reference_ms) / (1000.0 * self.half_life_s))

    def _shares(self, eligible: Eligible) -> Shared | None:
        count_E = np.zeros(len(eligible), dtype=np.float64)
        counted_E = eligible.number_E < len(self._count_I)
        count_E[counted_E] = self._count_I[eligible.number_E[counted_E]]
        total = float(count_E.sum())
        return Shared((count_E / total).astype(np.float32)) if total > 0.0 else None
