"""Forgetting: how what was learned of a period fares while later ones are learned.

After each cycle the learner answers a fixed sample of every past period's queries: entry (i, j) of the matrix is its
score on period j after period i was trained. The samples are of held-out rows where the recipe holds any out
(``evaluation.eval_share``), else of the rows that were trained. Figures are those of Lopez-Paz and Ranzato (arXiv
1706.08840) and of Chaudhry et al. (arXiv 1801.10112).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.bench.study.answers import NEURAL, in_order
from headrace.blend.weights import Weights
from headrace.catalogue.eligible import Eligible
from headrace.evaluation.metrics import METRICS
from headrace.evaluation.prequential import Queries
from headrace.inputs.contexts import Contexts
from headrace.models.columns import known_rows, old_models
from headrace.recommend.recommender import BLEND, Recommender
from headrace.records import hash64_array
from headrace.store.arrays import dump_arrays, load_arrays

MEASURED = ("recall@20", "mrr@20")
_VOTERS = (NEURAL, BLEND)
Matrix = NDArray[np.float64]
"""(I, I): score on period j after period i; NaN above the diagonal, and where nothing was measured."""


def sample(asked: Queries, size: int) -> Queries:
    """A period's queries with the smallest hash of their event, whatever the seed, in ledger order."""
    draw_Q = hash64_array(asked.event_Q, "forgetting")
    return in_order(asked.take(np.argsort(draw_Q, kind="stable")[:size]))


def save_sample(path: Path, asked: Queries) -> None:
    """Keep them for as long as the learner goes on."""
    arrays = {name: value for name, value in asked.__dict__.items() if name != "contexts"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dump_arrays({**arrays, **{f"contexts/{k}": v for k, v in asked.contexts.__dict__.items()}}))


def load_sample(path: Path) -> Queries:
    """What ``save_sample`` kept."""
    arrays = load_arrays(path.read_bytes())
    contexts = {name.removeprefix("contexts/"): value for name, value in arrays.items() if name.startswith("contexts/")}
    plain = {name: value for name, value in arrays.items() if not name.startswith("contexts/")}
    return Queries(contexts=Contexts(**contexts), **plain)


def measure(version: Recommender, samples: Sequence[Queries]) -> dict[str, dict[str, list[float | None]]]:
    """By "neural" and "blend", by metric: the version's score on each sample; None for one without queries."""
    found: dict[str, dict[str, list[float | None]]] = {name: {metric: [] for metric in MEASURED} for name in _VOTERS}
    for asked in samples:
        judged = version.judge(asked.contexts, asked.target_T, asked.offset_R, ranks_only=True)
        for name in _VOTERS:
            for metric in MEASURED:
                value_Q = METRICS[metric](judged.rank[name], asked.offset_R)
                found[name][metric].append(float(value_Q.mean()) if len(value_Q) else None)
    return found


def measure_columns(
    version: Recommender, slot_I: NDArray[np.int64], samples: Sequence[Queries]
) -> dict[str, list[float | None]]:
    """R@20 of each older column by itself, over the items that it knows, by the increment in which it was frozen.

    ``slot_I``: the row of each item. Nothing where the model has one column.
    """
    found: dict[str, list[float | None]] = {}
    for name, model in old_models(version.model).items():
        known_V = known_rows(model)
        has_row_I = (slot_I >= 0) & (slot_I < len(known_V))
        has_row_I[has_row_I] = known_V[slot_I[has_row_I]]
        number_E = version.eligible.number_E
        column = Recommender(
            model,
            np.where(has_row_I, slot_I, -1),
            Eligible(number_E[has_row_I[number_E]]),
            [],
            Weights.even([]),
            version.watermark_ms,
            version.max_events,
            version.seen_last,
        )
        found[name] = measure(column, samples)[NEURAL]["recall@20"]
    return found


def forgotten_by_columns(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean, over the older columns of the newest row and the periods before each, of what it has lost by itself.

    What a column once was is the whole model as it was tested just before the increment that froze it. None where there
    is none.
    """
    by_cycle = {row["cycle"]: row for row in rows}
    newest = by_cycle[max(by_cycle)] if by_cycle else {}
    lost = [
        before - now
        for name, values in newest.get("columns", {}).items()
        if (born := by_cycle.get(int(name))) is not None
        for before, now in zip(born[NEURAL]["recall@20"], values, strict=False)
        if before is not None and now is not None
    ]
    return float(np.mean(lost)) if lost else None


def matrix(rows: Sequence[Mapping[str, Any]], voter: str, metric: str) -> Matrix:
    """From the rows that were measured before tests 1, 2, .. (each after training on the periods before it)."""
    size = max((row["cycle"] for row in rows), default=0)
    score_IJ = np.full((size, size), np.nan)
    for row in rows:
        values = [np.nan if value is None else value for value in row[voter][metric]]
        score_IJ[row["cycle"] - 1, : len(values)] = values
    return score_IJ


def average_forgetting(score_IJ: Matrix) -> float | None:
    """Mean over past periods of the best score that it once had, less the newest; None where no two rows are there.

    Positive where something was lost. The best is of all rows but the newest.
    """
    if not _is_measured(score_IJ):
        return None
    best_J = np.nanmax(score_IJ[:-1, :-1], axis=0)
    return float((best_J - score_IJ[-1, :-1]).mean())


def backward_transfer(score_IJ: Matrix) -> float | None:
    """Mean over past periods of the newest score less the one just after it was trained; negative where it fell."""
    if not _is_measured(score_IJ):
        return None
    return float((score_IJ[-1, :-1] - np.diag(score_IJ)[:-1]).mean())


def _is_measured(score_IJ: Matrix) -> bool:
    """Whether every period has a score of its own time and a newest one."""
    whole = len(score_IJ) > 1 and np.isfinite(np.diag(score_IJ)[:-1]).all()
    return bool(whole and np.isfinite(score_IJ[-1, :-1]).all())
