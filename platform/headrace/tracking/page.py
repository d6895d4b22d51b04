"""``report.html``: the report as a page to look at, in one file that needs neither a network nor a library.

A pure function of the report and of what was decided on each increment. Every figure is defined in docs/metrics.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from headrace.tracking.charts import Line, lines_chart, outcomes_chart, spread_chart, stack_chart
from headrace.tracking.console import ROLLED_BACK
from headrace.tracking.html import data_table, legend_list, section, whole
from headrace.tracking.increments import Outcome
from headrace.tracking.page_style import NUM_EXPERT_COLOURS
from headrace.tracking.report import replace_whole
from headrace.tracking.samples import samples_section
from headrace.tracking.series import Floats, floats, running_mean, window_of
from headrace.tracking.vitals import vitals_sections

_LANES = ("publish", ROLLED_BACK, "hold", "reject")
_REFRESH_S = 15
_MOST_TOLD = 20  # outcomes other than a publication, in words
_GOOD, _BAD, _NONE = "✓", "✗", "—"


def build_page(
    report: Mapping[str, Any], title: str, outcomes: Sequence[Outcome], *, as_of_ms: int, is_running: bool
) -> str:
    """The whole page. ``as_of_ms`` is the wall clock; the page of a run that goes on loads itself anew."""
    cuts: Sequence[int] = report.get("cuts", ())
    colour = _colours(report)
    body = [
        _head(report, title, as_of_ms, is_running),
        f'<div class="tiles">{"".join(_tiles(report))}</div>',
        _recall(cuts, report, colour),
        _weights(cuts, report, colour),
        _freshness(cuts, report),
        _outcomes(outcomes),
        *vitals_sections(report),
        samples_section(report.get("samples", ())),
        _counters(report),
    ]
    return whole(title, body, refresh_s=_REFRESH_S if is_running else None)


def write_page(path: Path, page: str) -> None:
    """Replace the page at ``path``; a browser sees the old one or the new one, whole."""
    replace_whole(path, page)


def _head(report: Mapping[str, Any], title: str, as_of_ms: int, is_running: bool) -> str:
    at = datetime.fromtimestamp(as_of_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    state = "running, as of" if is_running else "ended"
    increments = f"{report.get('increments', 0):,} increments, {report.get('events', 0):,} events"
    return (
        f"<h1>{escape(title)}</h1>\n<p>{state} {at} · {increments} in {_duration(report.get('wall_s'))} · "
        "what every figure means: docs/metrics.md</p>"
    )


def _tiles(report: Mapping[str, Any]) -> Iterator[str]:
    requests, fresh = report.get("requests", {}), report.get("freshness_s", {})
    total, recomputed = requests.get("total", 0), requests.get("recomputed", 0)
    for key, words, out_of, noun in (
        ("failed", "failed requests", total, "requests"),
        ("slow", "slower than a second", total, "requests"),
        ("mixed_version", "of mixed versions", recomputed, "recomputed answers"),
    ):
        count = requests.get(key, 0)
        state = ("bad" if count else "good") if out_of else ""
        mark = {"bad": _BAD + " ", "good": _GOOD + " "}.get(state, "")
        yield _tile(f"{mark}{count:,}", words, f"of {out_of:,} {noun}" if total else "nobody asked", state)
    yield _tile(_duration(fresh.get("p50")), "fresh, median", "from landing to every replica")
    waiting = fresh.get("events_not_served", 0)
    told = (
        f"{waiting:,} of {fresh.get('events', 0):,} events not served" if waiting else "from landing to every replica"
    )
    yield _tile(_duration(fresh.get("p99")), "fresh, 99th percentile", told)
    rate = report.get("train_events_per_s")
    yield _tile(_NONE if rate is None else f"{rate:,.0f}", "events/s in training", "warm-up left out")
    yield from _gains(report.get("live_above", {}))


def _gains(live_above: Mapping[str, Any]) -> Iterator[str]:
    """How far live lies above what was never updated, and above the expert that comes closest to it."""
    known = {name: gain for name, gain in live_above.get("experts", {}).items() if gain is not None}
    best = min(known, key=lambda name: known[name][0], default=None)
    for words, gain in (
        ("live over frozen", live_above.get("frozen")),
        (f"live over the best expert{'' if best is None else f', {best}'}", None if best is None else known[best]),
    ):
        value = _NONE if gain is None else f"{100 * gain[0]:+.2f}"
        noise = "too few increments" if gain is None else f"points of recall@20, ± {100 * gain[1]:.2f}"
        yield _tile(value, words, noise)


def _tile(value: str, words: str, note: str, state: str = "") -> str:
    return (
        f'<div class="tile {state}"><b>{escape(value)}</b>{escape(words)}'
        + (f"<br/><span>{escape(note)}</span>" if note else "")
        + "</div>"
    )


def _recall(cuts: Sequence[int], report: Mapping[str, Any], colour: Mapping[str, str]) -> str:
    recall, window, a_row = report.get("recall_at_20", {}), window_of(len(cuts)), report.get("increments_a_row", 1)
    named = [("live", "live"), ("frozen", "frozen"), ("oracle", "oracle")]
    series = [(name, css, recall[name]) for name, css in named if name in recall]
    series += [(name, colour[name], values) for name, values in recall.get("experts", {}).items()]
    lines = [Line(name, css, running_mean(100 * floats(values), window)) for name, css, values in series]
    note = (
        f"In %, each cut scored before anything learned from it. Running mean of {window * a_row} increments; the band "
        "is its 95 % (1.96 standard errors, as of independent increments). Beside the names: the newest."
    )
    legend = legend_list((line.name, line.css, _newest(line)) for line in lines)
    return section("Recall@20", note, legend, lines_chart(cuts, lines, "%"))


def _weights(cuts: Sequence[int], report: Mapping[str, Any], colour: Mapping[str, str]) -> str:
    layers = {name: floats(values) for name, values in report.get("blend_weights", {}).items()}
    chart = stack_chart(cuts, layers, colour)
    note = f"Each expert's weight in what is served, after {_each(report)}. Beside the names: the newest."
    legend = legend_list((name, colour[name], _share_of(weight_C)) for name, weight_C in layers.items())
    return section("Weights of the blend", note, legend, chart)


def _freshness(cuts: Sequence[int], report: Mapping[str, Any]) -> str:
    fresh = report.get("freshness_s", {})
    chart = spread_chart(cuts, floats(fresh.get("per_increment", ())), "live", "s")
    note = (
        "Seconds from a shard's landing to answers with it from every replica, median over the events of "
        f"{_each(report)}. "
        f"Over all events: median {_duration(fresh.get('p50'))}, 99th percentile {_duration(fresh.get('p99'))}."
    )
    return section("Freshness", note, "", chart)


def _outcomes(outcomes: Sequence[Outcome]) -> str:
    lanes: dict[str, list[Outcome]] = {lane: [] for lane in _LANES}
    for outcome in outcomes:
        went_back = outcome.verdict == "publish" and outcome.reason.startswith(ROLLED_BACK)
        lanes[ROLLED_BACK if went_back else outcome.verdict].append(outcome)
    told = sorted((one for lane in _LANES[1:] for one in lanes[lane]), key=lambda one: one.cut)[-_MOST_TOLD:]
    rows = [(f"{one.cut}", "" if one.version is None else f"{one.version}", one.verdict, one.reason) for one in told]
    table = data_table(("increment", "version", "verdict", "reason"), rows, numbers=(0, 1)) if rows else ""
    note = "What was decided on each increment; point at a tick for the reason."
    return section("Versions and verdicts", note, "", outcomes_chart(outcomes, lanes) + table)


def _counters(report: Mapping[str, Any]) -> str:
    counters: Mapping[str, int] = report.get("counters", {})
    came_in = counters.get("events_in", 0)
    terms = {name: count for name, count in counters.items() if name != "events_in"}
    rows = [(name, f"{count:,}", _share(count, came_in)) for name, count in terms.items()]
    if "events_in" in counters:
        rows.insert(0, ("events_in", f"{came_in:,}", ""))
    adds_up = sum(terms.values()) == came_in
    word = f"{_GOOD} The terms add up to events_in." if adds_up else f"{_BAD} The terms do not add up to events_in."
    state = "good-word" if adds_up else "bad-word"
    table = data_table(("rows", "", "share"), rows, numbers=(1, 2)) + f'<p class="{state}">{word}</p>' if rows else ""
    return section("Where every row went", "As of the newest commit.", "", table)


def _each(report: Mapping[str, Any]) -> str:
    """Of what a chart's values speak."""
    a_row = report.get("increments_a_row", 1)
    return "each increment" if a_row == 1 else f"every {a_row} increments"


def _newest(line: Line) -> str:
    known = np.flatnonzero(np.isfinite(line.curve.mean_C))
    if not len(known):
        return _NONE
    mean, half = line.curve.mean_C[known[-1]], line.curve.half_C[known[-1]]
    return f"{mean:.1f}" + ("" if np.isnan(half) else f" ± {half:.1f}")


def _share_of(weight_C: Floats) -> str:
    known = weight_C[np.isfinite(weight_C)]
    return f"{known[-1]:.0%}" if len(known) else _NONE


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    """The same class for an expert in every chart, whichever of them it appears in."""
    named = {*report.get("recall_at_20", {}).get("experts", {}), *report.get("blend_weights", {})}
    experts = sorted(named - {"uniform"})
    colour = {name: f"e{at % NUM_EXPERT_COLOURS}" for at, name in enumerate(experts)}
    return {**colour, "uniform": "uniform"}


def _share(count: int, total: int) -> str:
    return f"{count / total:.2%}" if total else ""


def _duration(seconds: float | None) -> str:
    if seconds is None or not np.isfinite(seconds):
        return _NONE
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
