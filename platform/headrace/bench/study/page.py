"""``report.html`` of a study: curves by cycle with the published ones, what they cost, what was forgotten, and why.

One file that needs neither a network nor a library, drawn by what draws a run's page (tracking/).
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from headrace.bench.study.answers import NEURAL
from headrace.bench.study.charts import STYLE, cost_chart
from headrace.bench.study.kinds import WORDS
from headrace.bench.study.published import Published
from headrace.bench.study.summary import Summary
from headrace.tracking.charts import Line, lines_chart
from headrace.tracking.heat import heat_map
from headrace.tracking.html import data_table, legend_list, section, whole
from headrace.tracking.page_style import NUM_EXPERT_COLOURS
from headrace.tracking.series import Curve, Floats, floats

_NOT_RUN = "not run"
_NOTE = "In %, mean over seeds; the band is as wide as the range of seeds. Dotted: published."


def build_page(summary: Summary, published: Sequence[Published], about: Sequence[str]) -> str:
    """The whole page; ``about`` are lines that say how it was made."""
    css = _colours(summary.methods)
    body = [f"<h1>{escape(summary.kind.title)}</h1>", *(f"<p>{escape(line)}</p>" for line in about)]
    for voter, words in summary.kind.voters.items():
        body.append(_means(summary, voter, f"{words[0].upper()}{words[1:]}"))
        body += [_curves(summary, voter, metric, words, published, css) for metric in summary.kind.shown]
        body.append(_costs(summary, voter, words, css))
    body += _matrices(summary)
    return whole(summary.kind.title, body, style=STYLE)


def _means(summary: Summary, voter: str, heading: str) -> str:
    spans = summary.spans
    header = [
        "method",
        "seeds",
        *(f"{WORDS[metric]}, {span}" for span in spans for metric in summary.kind.shown),
        "training, s",
    ]
    header += [f"{WORDS[metric]} over online" for metric in summary.kind.shown]
    rows = []
    for method in summary.methods:
        means = [summary.mean(method, span, voter, metric) for span in spans for metric in summary.kind.shown]
        seconds, above = summary.seconds(method, summary.last), summary.above_baseline(method)
        figures = [_NOT_RUN if value is None else f"{100 * value:.2f}" for value in means]
        intervals = [above[voter, metric].words() if above else "" for metric in summary.kind.shown]
        spent = _NOT_RUN if seconds is None else f"{seconds:,.0f}"
        rows.append([method, f"{len(summary.seeds(method))}", *figures, spent, *intervals])
    kind = summary.kind
    over, resampled = ("all queries", "slices") if kind.by_query else (f"{kind.unit}s", "sessions")
    note = (
        f"In %, means over seeds, then over {over} ({kind.unit}s {', '.join(map(str, spans))}); settings were chosen "
        f"on the first of these. The last columns: points above online on {kind.unit}s {summary.reported}, on the same "
        f"queries, with a 95 % interval over {resampled} and seeds."
    )
    return section(heading, note, "", data_table(header, rows, numbers=range(1, len(header))))


def _curves(
    summary: Summary, voter: str, metric: str, words: str, published: Sequence[Published], css: Mapping[str, str]
) -> str:
    unit = summary.kind.unit
    lines = [Line(method, css[method], _curve(summary, method, voter, metric)) for method in summary.methods]
    if metric == "recall@20":
        lines += [
            Line(f"{row.name} *", "published", _plain(floats(row.by_cycle[: summary.last])))
            for row in published
            if len(row.by_cycle) >= summary.last > 0
        ]
    legend = legend_list((line.name, line.css, _last(line.curve.mean_C)) for line in lines)
    heading = f"{WORDS[metric]} by {unit}: {words}"
    return section(heading, _NOTE, legend, lines_chart(list(summary.cycles), lines, "%", axis=unit))


def _curve(summary: Summary, method: str, voter: str, metric: str) -> Curve:
    low_C, high_C = (floats(bound) for bound in zip(*summary.ranges(method, voter, metric), strict=True))
    mean_C = floats([summary.at(method, cycle, voter, metric) for cycle in summary.cycles])
    return Curve(100 * mean_C, 50 * (high_C - low_C))


def _costs(summary: Summary, voter: str, words: str, css: Mapping[str, str]) -> str:
    paths = {}
    for method in summary.methods:
        points = [
            (summary.seconds(method, cycle), summary.at(method, cycle, voter, "recall@20")) for cycle in summary.cycles
        ]
        known = np.array([point for point in points if None not in point], dtype=np.float64).reshape(-1, 2)
        value_K = 100 * np.cumsum(known[:, 1]) / np.arange(1, len(known) + 1)
        paths[method] = (np.maximum(known[:, 0], 0.1), value_K)
    note = f"Mean of the {summary.kind.unit}s so far, in %, against the seconds of training that they took together."
    chart = cost_chart(paths, css, "s, log", "%")
    return section(f"Recall@20 against training time: {words}", note, "", chart)


def _matrices(summary: Summary) -> Iterator[str]:
    kind = (
        "held out and never trained" if summary.is_held_out else "that were trained themselves, as nothing is held out"
    )
    for method, by_voter in summary.matrices.items():
        for voter, found in by_voter.items():
            score_IJ = 100 * found["recall@20"]
            if not np.isfinite(score_IJ).any():
                continue
            low, high = float(np.nanmin(score_IJ)), float(np.nanmax(score_IJ))
            figures = [found["average_forgetting"], found["backward_transfer"]]
            told = ["—" if value is None else f"{100 * value:+.2f}" for value in figures]
            note = (
                f"R@20 on a fixed sample of each past period's queries, {kind}; from {low:.1f} (pale) to {high:.1f} %. "
                f"Average forgetting {told[0]} points, backward transfer {told[1]}."
            )
            name = "neural expert" if voter == NEURAL else voter
            periods = range(len(score_IJ))
            yield section(
                f"Forgetting: {method}, {name}", note, "", heat_map(score_IJ, periods, periods, "%", "period")
            )


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """The same class for a method in every chart; online in the colour of what lives."""
    others = [method for method in methods if method != "online"]
    colour = {method: f"e{at % NUM_EXPERT_COLOURS}" for at, method in enumerate(others)}
    return {**colour, "online": "live"}


def _plain(mean_C: Floats) -> Curve:
    return Curve(mean_C, np.full(len(mean_C), np.nan))


def _last(mean_C: Floats) -> str:
    known = mean_C[np.isfinite(mean_C)]
    return f"{known[-1]:.1f}" if len(known) else _NOT_RUN
