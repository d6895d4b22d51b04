"""Pieces of charts as inline SVG: text, curves, bands, names at the ends of curves.

Colours are classes that a page's style sheet defines, so that light and dark differ there alone.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from headrace.tracking.series import Floats, stretches

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 100, 128, 14, 26
"""Of a chart and its margins, in its own units."""
_LABEL_GAP = 15  # between the names at the ends of curves
_LABEL_CHARS = 17


def curve(css: str, x_K: Floats, y_K: Floats) -> str:
    """A line through these places, broken where there is none; a dot where one stands alone."""
    parts = []
    for run in stretches(np.isfinite(y_K)):
        if run.stop - run.start == 1:
            parts.append(f'<circle class="{css} dot" cx="{x_K[run][0]:.1f}" cy="{y_K[run][0]:.1f}" r="3.5"/>')
        else:
            parts.append(f'<polyline class="{css}" points="{_points(x_K[run], y_K[run])}"/>')
    return "".join(parts)


def area(css: str, x_K: Floats, low_K: Floats, high_K: Floats) -> str:
    """What lies between two curves."""
    parts = []
    for run in stretches(np.isfinite(low_K) & np.isfinite(high_K)):
        around = _points(np.append(x_K[run], x_K[run][::-1]), np.append(high_K[run], low_K[run][::-1]))
        parts.append(f'<polygon class="{css}" points="{around}"/>')
    return "".join(parts)


def _points(x_K: Floats, y_K: Floats) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_K, y_K, strict=True))


def end_labels(ends: Sequence[tuple[float, float, str, str]], bottom: float) -> list[str]:
    """Names beside the ends of curves (y, x, name, class), moved apart where they would overlap."""
    ordered = sorted(ends)
    ys: list[float] = []
    for y, *_ in ordered:
        ys.append(max(y, ys[-1] + _LABEL_GAP) if ys else y)
    limit = bottom
    for at in reversed(range(len(ys))):  # back up where the last ones were pushed out of the chart
        ys[at] = min(ys[at], limit)
        limit = ys[at] - _LABEL_GAP
    parts = []
    for y, (end_y, end_x, name, css) in zip(ys, ordered, strict=True):
        short = name if len(name) <= _LABEL_CHARS else name[: _LABEL_CHARS - 1] + "…"
        x = WIDTH - RIGHT
        parts.append(f'<path class="leader {css}" d="M{end_x:.1f} {end_y:.1f}H{x}L{x + 9} {y:.1f}"/>')
        parts.append(text(x + 12, y + 4, short))
    return parts


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """Words at a place; ``anchor`` is the side of them that stands there."""
    kind = f' class="{css}"' if css else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def drawing(height: int, parts: Sequence[str]) -> str:
    """A whole chart."""
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([frame, *filter(None, parts), "</svg>"])
