"""How the learner is, as sections of a run's page: bias, stability, and what it has forgotten."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from headrace.tracking.charts import Line, lines_chart
from headrace.tracking.heat import heat_map
from headrace.tracking.html import data_table, legend_list, section
from headrace.tracking.series import Floats, floats, kept, running_mean, window_of

_SHARES = {
    "new_item_share": ("new items shown", "e0"),
    "new_item_recall_at_20": ("new items found", "e1"),
    "coverage_at_20": ("coverage@20", "e4"),
    "churn_at_20": ("churn@20", "e2"),
}
"""What is drawn in one chart, in %."""
_FIGURES = {
    "popularity_lift": "popularity lift",
    "update_ratio": "norm of the update over that of the weights",
    "regret_at_20": "recall@20 of frozen less that of live",
    "average_forgetting_neural": "average forgetting, neural expert",
    "average_forgetting_blend": "average forgetting, blend",
    "backward_transfer_neural": "backward transfer, neural expert",
    "backward_transfer_blend": "backward transfer, blend",
}
"""What stands in a table."""
_ROWS = 20
_NONE = "—"


def vitals_sections(report: Mapping[str, Any]) -> Iterator[str]:
    """Nothing of a report that has no such figures."""
    cuts: Sequence[int] = report.get("cuts", ())
    vitals: Mapping[str, Sequence[float | None]] = report.get("vitals", {})
    if any(value is not None for values in vitals.values() for value in values):
        yield _shares(cuts, vitals, report.get("increments_a_row", 1))
        yield _table(vitals)
    if anchors := report.get("anchors", {}):
        yield _matrix(cuts, {int(cut): floats(values) for cut, values in anchors.items()})


def _shares(cuts: Sequence[int], vitals: Mapping[str, Sequence[float | None]], a_row: int) -> str:
    window, found = window_of(len(cuts)), {name: floats(vitals[name]) for name in _SHARES if name in vitals}
    lines = [
        Line(words, css, running_mean(100 * found[name], window))
        for name, (words, css) in _SHARES.items()
        if name in found
    ]
    note = (
        f"In %, running mean of {window * a_row} increments; beside the names: the newest. "
        "New: first met less than a day ago."
    )
    legend = legend_list((_SHARES[name][0], _SHARES[name][1], _newest(100 * found[name], ".1f")) for name in found)
    return section("Bias and stability", note, legend, lines_chart(cuts, lines, "%"))


def _table(vitals: Mapping[str, Sequence[float | None]]) -> str:
    rows = []
    for name, words in {**_FIGURES, **_ages(vitals)}.items():
        values = floats(vitals.get(name, ()))
        if np.isfinite(values).any():
            rows.append((words, _newest(values, ".3g"), f"{np.nanmean(values):.3g}"))
    table = data_table(("figure", "newest", "mean of the run"), rows, numbers=(1, 2)) if rows else ""
    return section("Bias and stability in figures", "Shares and ratios.", "", table)


def _ages(vitals: Mapping[str, Sequence[float | None]]) -> dict[str, str]:
    """Recall by the age of the target."""
    prefix = "recall_at_20_age_"
    words = {"hour": "younger than an hour", "day": "an hour to a day old", "week": "a day to a week old"}
    ages = [name.removeprefix(prefix) for name in vitals if name.startswith(prefix)]
    return {prefix + age: f"recall@20 of items {words.get(age, age)}" for age in ages if age != "unseen"}


def _matrix(cuts: Sequence[int], anchors: Mapping[int, Floats]) -> str:
    """What is known of each anchor at some of the increments: its newest score by then."""
    score_CJ = np.array([_carried(values) for values in anchors.values()]).T.reshape(len(cuts), -1)
    asked_C = np.flatnonzero(np.isfinite(np.array(list(anchors.values()))).any(axis=0))
    rows = asked_C[kept(len(asked_C), _ROWS)] if len(asked_C) else asked_C
    chart = heat_map(100 * score_CJ[rows], [cuts[row] for row in rows], list(anchors), "%", "cut")
    note = (
        "Recall@20 of the neural expert on held-out queries of past increments, which are never trained; the newest "
        "figure of each by then. Darker: higher."
    )
    return section("Forgetting", note, "", chart)


def _carried(value_C: Floats) -> Floats:
    """The newest known value at each place."""
    place_C = np.where(np.isfinite(value_C), np.arange(len(value_C)), -1)
    place_C = np.maximum.accumulate(place_C)
    return np.where(place_C >= 0, value_C[np.maximum(place_C, 0)], np.nan)


def _newest(value_C: Floats, form: str) -> str:
    known = value_C[np.isfinite(value_C)]
    return format(known[-1], form) if len(known) else _NONE
