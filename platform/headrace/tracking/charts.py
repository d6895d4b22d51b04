"""Charts of a run's page as inline SVG. Each is a pure function and shares the x axis: one column per increment.

Colours are classes that the page's style sheet defines, so that light and dark differ there alone. Shape legend as in
tracking/series.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from headrace.tracking.increments import Outcome
from headrace.tracking.series import Curve, Floats, kept, log_ticks, round_ticks, spread
from headrace.tracking.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, area, curve, drawing, end_labels, text

_MOST_POINTS = 400  # of a curve
_MOST_COLUMNS = 240  # that tell their values when pointed at
_LANE = 30
_MOST_WORDS = 4  # outcomes that one tick tells of
_LOG_FROM = 20  # greatest over median from which an axis is logarithmic


@dataclass(frozen=True)
class Line:
    """One curve. Made by tracking/page.py, read here."""

    name: str
    css: str
    curve: Curve


class _Frame:
    """Axes of one chart, and where a value lies in it."""

    def __init__(
        self,
        cuts: Sequence[int],
        ticks: Sequence[float],
        height: int,
        is_log: bool = False,
        axis: str = "increment",
    ) -> None:
        self.axis = axis
        self.cuts = cuts
        self.ticks = ticks
        self.height = height
        self.is_log = is_log
        self.column = (WIDTH - LEFT - RIGHT) / max(len(cuts), 1)

    def x(self, index_K: NDArray[np.int64]) -> Floats:
        """Middles of the columns of these increments."""
        return np.asarray(LEFT + (index_K + 0.5) * self.column)

    def y(self, value_K: Floats) -> Floats:
        """Heights of these values."""
        low, high = self.ticks[0], self.ticks[-1]
        share_K = np.log(value_K / low) / np.log(high / low) if self.is_log else (value_K - low) / (high - low)
        return np.asarray(TOP + (self.height - TOP - BOTTOM) * (1 - share_K))

    def axes(self, unit: str) -> list[str]:
        """Grid, figures beside it, numbers of the increments below."""
        parts = [text(0, TOP + 4, unit)]
        for tick, y in zip(self.ticks, self.y(np.array(self.ticks)), strict=True):
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(text(LEFT - 10, y + 4, f"{tick:.6g}", "end"))
        return [*parts, *self.numbers()]

    def numbers(self) -> list[str]:
        """Cuts along the x axis, round ones."""
        base = self.height - BOTTOM + 18
        parts = [text(WIDTH - RIGHT + 30, base, self.axis)]
        if self.cuts:
            ticks = [round(tick) for tick in round_ticks(self.cuts[0], max(self.cuts[-1], self.cuts[0] + 5), 8)]
            shown = [tick for tick in dict.fromkeys(ticks) if self.cuts[0] <= tick <= self.cuts[-1]]
            found = np.searchsorted(np.array(self.cuts), np.array(shown, dtype=np.int64))  # the column that it is in
            parts += [text(x, base, f"{tick}", "middle") for tick, x in zip(shown, self.x(found), strict=True)]
        return parts

    def hovers(self, words: Mapping[int, str]) -> list[str]:
        """Columns that tell their values when pointed at; by index of the increment."""
        shown = list(words)
        ends = [0, *((one + other + 1) / 2 for one, other in pairwise(shown)), len(self.cuts)]
        height = self.height - TOP - BOTTOM
        return [
            f'<rect class="hover" x="{LEFT + first * self.column:.1f}" y="{TOP}" '
            f'width="{(end - first) * self.column:.1f}" height="{height}"><title>{escape(words[at])}</title></rect>'
            for at, first, end in zip(shown, ends, ends[1:], strict=False)
        ]


def lines_chart(cuts: Sequence[int], lines: Sequence[Line], unit: str, axis: str = "increment") -> str:
    """Curves with their bands, each named at its end; "" where there is nothing to draw. ``axis``: what a cut is."""
    drawn = [line for line in lines if np.isfinite(line.curve.mean_C).any()]
    if not drawn:
        return ""
    low, high = (
        [bound(line.curve.mean_C + sign * np.nan_to_num(line.curve.half_C)) for line in drawn]
        for bound, sign in ((np.nanmin, -1), (np.nanmax, 1))
    )
    frame = _Frame(cuts, round_ticks(max(float(min(low)), 0.0), float(max(high))), 340, axis=axis)
    shown = kept(len(cuts), _MOST_POINTS)
    parts, ends = frame.axes(unit), []
    for line in reversed(drawn):  # the first one on top
        mean_K, half_K = line.curve.mean_C[shown], line.curve.half_C[shown]
        x_K, y_K = frame.x(shown), frame.y(mean_K)
        low_K, high_K = frame.y(np.maximum(mean_K - half_K, frame.ticks[0])), frame.y(mean_K + half_K)
        parts += [area("band " + line.css, x_K, low_K, high_K), curve("line " + line.css, x_K, y_K)]
        last = int(np.flatnonzero(np.isfinite(y_K))[-1])
        ends.append((float(y_K[last]), float(x_K[last]), line.name, line.css))
    words = {
        at: "\n".join([f"{axis} {cuts[at]}", *(_value(line, at, unit) for line in drawn)])
        for at in kept(len(cuts), _MOST_COLUMNS).tolist()
    }
    return drawing(340, [*parts, *end_labels(ends, 340 - BOTTOM), *frame.hovers(words)])


def stack_chart(cuts: Sequence[int], layers: Mapping[str, Floats], css: Mapping[str, str]) -> str:
    """Shares stacked from the bottom in the order given, in %; increments without any are left out."""
    shown = kept(len(cuts), _MOST_POINTS) if cuts else np.array([], dtype=np.int64)
    known_K = np.zeros(len(shown), dtype=np.bool_)
    for value_C in layers.values():
        known_K |= np.isfinite(value_C[shown])
    if not known_K.any():
        return ""
    frame = _Frame(cuts, [0, 25, 50, 75, 100], 260)
    parts, ends = frame.axes("%"), []
    x_K, base_K = frame.x(shown), np.where(known_K, 0.0, np.nan)
    if len(shown) == 1:  # an area needs a width
        x_K, base_K = np.array([LEFT, WIDTH - RIGHT], dtype=np.float64), np.repeat(base_K, 2)
    for name, value_C in layers.items():
        top_K = base_K + 100 * np.nan_to_num(np.resize(value_C[shown], len(x_K)))
        parts.append(area("layer " + css[name], x_K, frame.y(base_K), frame.y(top_K)))
        last = int(np.flatnonzero(np.isfinite(top_K))[-1])
        ends.append((float(frame.y((base_K + top_K) / 2)[last]), float(x_K[last]), name, css[name]))
        base_K = top_K
    words = {
        at: "\n".join(
            [f"increment {cuts[at]}", *(f"{name}: {_percent(value_C[at])}" for name, value_C in layers.items())]
        )
        for at in kept(len(cuts), _MOST_COLUMNS).tolist()
    }
    return drawing(260, [*parts, *end_labels(ends, 260 - BOTTOM), *frame.hovers(words)])


def spread_chart(cuts: Sequence[int], value_C: Floats, css: str, unit: str) -> str:
    """One series as it is; of a long one the median of neighbours, with the least and the greatest as a band."""
    known = value_C[np.isfinite(value_C)]
    if not len(known):
        return ""
    is_log = bool(known.min() > 0 and known.max() > _LOG_FROM * np.median(known))
    low, high = (float(known.min()), float(known.max())) if is_log else (0.0, float(known.max()))
    frame = _Frame(cuts, log_ticks(low, high) if is_log else round_ticks(low, max(high, 1e-3), 4), 230, is_log)
    at_K, least_K, median_K, most_K = spread(value_C, _MOST_COLUMNS)
    x_K = frame.x(at_K)
    parts = [
        *frame.axes(unit + (", log" if is_log else "")),
        area("band " + css, x_K, frame.y(least_K), frame.y(most_K)),
        curve("line " + css, x_K, frame.y(median_K)),
    ]
    words = {
        int(at): f"increment {cuts[at]}\n" + ("nothing" if np.isnan(median) else f"{median:.3g} {unit}")
        for at, median in zip(at_K, median_K, strict=True)
    }
    return drawing(230, [*parts, *frame.hovers(words)])


def outcomes_chart(outcomes: Sequence[Outcome], lanes: Mapping[str, Sequence[Outcome]]) -> str:
    """A lane per kind of outcome, a tick per increment that says why when it is pointed at."""
    if not outcomes:
        return ""
    height = TOP + _LANE * len(lanes) + BOTTOM
    frame = _Frame([outcome.cut for outcome in outcomes], [0, 1], height)
    place = {outcome.cut: at for at, outcome in enumerate(outcomes)}
    parts = frame.numbers()
    for row, (lane, found) in enumerate(lanes.items()):
        top = TOP + row * _LANE
        middle = top + _LANE / 2
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{middle}" y2="{middle}"/>')
        parts.append(text(LEFT - 10, middle + 4, lane, "end", "lane"))
        parts.append(text(WIDTH - RIGHT + 12, middle + 4, f"{len(found):,}"))
        parts += _ticks(frame, "tick " + lane.replace(" ", "-"), top + 5, found, place)
    return drawing(height, parts)


def _ticks(frame: _Frame, css: str, top: float, found: Sequence[Outcome], place: Mapping[int, int]) -> list[str]:
    width = min(max(frame.column * 0.6, 2.0), 8.0)
    together_in: dict[int, list[Outcome]] = {}
    for outcome in found:  # where columns are narrower than a tick, one tick tells of several
        together_in.setdefault(int(place[outcome.cut] * min(frame.column / width, 1.0)), []).append(outcome)
    parts = []
    for together in together_in.values():
        x = float(frame.x(np.array([place[together[0].cut]]))[0]) - width / 2
        words = [_words(outcome) for outcome in together[:_MOST_WORDS]]
        if len(together) > _MOST_WORDS:
            words.append(f"and {len(together) - _MOST_WORDS} more")
        title = escape("\n".join(words))
        parts.append(
            f'<rect class="{css}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_LANE - 10}">'
            f"<title>{title}</title></rect>"
        )
    return parts


def _words(outcome: Outcome) -> str:
    version = "" if outcome.version is None else f", version {outcome.version}"
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"increment {outcome.cut}{version}, {outcome.verdict}{reason}"


def _value(line: Line, at: int, unit: str) -> str:
    mean, half = line.curve.mean_C[at], line.curve.half_C[at]
    if np.isnan(mean):
        return f"{line.name}: nothing"
    return f"{line.name}: {mean:.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}") + f" {unit}"


def _percent(share: float) -> str:
    return "nothing" if np.isnan(share) else f"{share:.1%}"
