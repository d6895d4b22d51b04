"""How far one method lies above another on the same queries, with an interval.

Resampled are the sessions of each row (or the slices of event time, where what is hot moves all queries of one), and
the seeds: a session's queries stand and fall together, and so do all rows of one seed. A row's difference is a mean
over its queries; the whole is a plain mean over rows, or one over all queries, as in the tables.
Shape legend: Q queries, U sessions or slices, S seeds, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.bench.study.answers import Answers
from headrace.evaluation.metrics import METRICS
from headrace.records import generator

_RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """Made by ``above``; shares, not per cent."""

    mean: float
    low: float
    high: float
    cycles: tuple[int, ...]
    seeds: int
    queries: int
    """Of all cycles, once each."""

    @property
    def is_above(self) -> bool:
        """Whether all of it lies above 0."""
        return self.low > 0.0

    def words(self) -> str:
        """In points."""
        return f"{100 * self.mean:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


Tests = Mapping[int, Sequence[Answers]]
"""By cycle: one for each seed, in the same order for both methods."""
Figure = tuple[str, str]
"""A voter ("neural", "blend_running", a counter) and a metric."""


def above(
    ours: Tests, theirs: Tests, figures: Sequence[Figure], *, by_query: bool = False, by_slice: bool = False
) -> dict[Figure, Interval]:
    """How far ours lies above theirs, 95 %, over the cycles that both have; nothing where there are none.

    See ``Kind`` for ``by_query`` and ``by_slice``.
    """
    cycles = sorted(cycle for cycle in ours if cycle in theirs)
    if not cycles:
        return {}
    num_seeds = len(ours[cycles[0]])
    draw = generator("paired")
    share_BS = draw.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=_RESAMPLES) / num_seeds
    total, total_B = dict.fromkeys(figures, 0.0), {name: np.zeros(_RESAMPLES) for name in figures}
    num_queries, weight, weight_B = 0, 0.0, np.zeros(_RESAMPLES)
    for cycle in cycles:
        gains, size_U = _by_cluster(ours[cycle], theirs[cycle], figures, by_slice)
        size, times_BU = int(size_U.sum()), draw.poisson(1.0, (_RESAMPLES, len(size_U))).astype(np.float32)
        size_B = np.maximum(times_BU @ size_U.astype(np.float32), 1)
        part, part_B = (1.0, np.ones(_RESAMPLES)) if by_query else (1.0 / size, 1.0 / size_B)
        num_queries, weight, weight_B = num_queries + size, weight + part * size, weight_B + part_B * size_B
        for name, gain_SU in gains.items():
            total[name] += float(gain_SU.mean(axis=0).sum()) * part
            total_B[name] += ((times_BU @ gain_SU.T.astype(np.float32)) * share_BS).sum(axis=1) * part_B
    found = {}
    for name in figures:
        low, high = np.percentile(total_B[name] / weight_B, [2.5, 97.5]).tolist()
        found[name] = Interval(total[name] / weight, low, high, tuple(cycles), num_seeds, num_queries)
    return found


def _by_cluster(
    ours: Sequence[Answers], theirs: Sequence[Answers], figures: Sequence[Figure], by_slice: bool
) -> tuple[dict[Figure, NDArray[np.float64]], NDArray[np.int64]]:
    """By figure, what ours gained in each session's queries that all have, (S, U), and how many these are, (U,)."""
    common = ours[0].key_Q
    for answers in (*ours, *theirs):
        common = np.intersect1d(common, answers.key_Q, assume_unique=True)
    first = ours[0]
    together_Q = first.slice_Q if by_slice else first.session_Q
    together_Q = together_Q[np.isin(first.key_Q, common, assume_unique=True)]
    _, place_Q, size_U = np.unique(together_Q, return_inverse=True, return_counts=True)

    def gained(figure: Figure) -> NDArray[np.float64]:
        pairs = zip(ours, theirs, strict=True)
        gains = [_values(mine, common, figure) - _values(other, common, figure) for mine, other in pairs]
        return np.array([np.bincount(place_Q, weights=gain_Q, minlength=len(size_U)) for gain_Q in gains])

    return {figure: gained(figure) for figure in figures}, size_U


def _values(answers: Answers, key_Q: NDArray[np.int64], figure: Figure) -> NDArray[np.float64]:
    """The figure of these queries, by key."""
    voter, metric = figure
    value_Q = METRICS[metric](answers.ranks[voter], answers.offset_R)
    return value_Q[np.isin(answers.key_Q, key_Q, assume_unique=True)]
