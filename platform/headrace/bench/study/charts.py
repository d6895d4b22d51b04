"""The chart that only a study needs: curves over a logarithmic axis. Inline SVG, see tracking/.

Shape legend: K points of a curve.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from headrace.tracking.series import Floats, log_ticks, round_ticks
from headrace.tracking.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, curve, drawing, end_labels, text

STYLE = """
td.num { white-space: nowrap; padding-right: 16px; }
.line.published { stroke-dasharray: 2 5; } .published { color: var(--soft); }
"""
_HEIGHT = 340


def cost_chart(paths: Mapping[str, tuple[Floats, Floats]], css: Mapping[str, str], x_unit: str, y_unit: str) -> str:
    """Curves by name, (K,) costs above 0 and (K,) values; costs are on a logarithmic axis."""
    drawn = {name: path for name, path in paths.items() if len(path[0])}
    if not drawn:
        return ""
    costs, values = (np.concatenate([path[part] for path in drawn.values()]) for part in (0, 1))
    x_ticks, y_ticks = log_ticks(float(costs.min()), float(costs.max())), round_ticks(values.min(), values.max())
    wide, high = WIDTH - LEFT - RIGHT, _HEIGHT - TOP - BOTTOM

    decades = np.log(x_ticks[-1] / x_ticks[0]) or 1.0  # one tick: all cost the same

    def x(cost_K: Floats) -> Floats:
        return np.asarray(LEFT + wide * np.log(cost_K / x_ticks[0]) / decades)

    def y(value_K: Floats) -> Floats:
        return np.asarray(TOP + high * (1 - (value_K - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])))

    parts = [text(0, TOP + 4, y_unit), text(WIDTH - RIGHT + 12, _HEIGHT - BOTTOM + 18, x_unit)]
    parts += _grid(x(np.array(x_ticks)), x_ticks, y(np.array(y_ticks)), y_ticks)
    ends = []
    for name, (cost_K, value_K) in drawn.items():
        x_K, y_K = x(cost_K), y(value_K)
        parts.append(curve("line " + css[name], x_K, y_K))
        parts += [_dot(css[name], *place) for place in zip(x_K, y_K, _words(name, cost_K, value_K), strict=True)]
        ends.append((float(y_K[-1]), float(x_K[-1]), name, css[name]))
    return drawing(_HEIGHT, [*parts, *end_labels(ends, _HEIGHT - BOTTOM)])


def _grid(x_K: Floats, x_ticks: Sequence[float], y_K: Floats, y_ticks: Sequence[float]) -> list[str]:
    bottom = _HEIGHT - BOTTOM
    parts = [text(place, bottom + 18, f"{tick:g}", "middle") for place, tick in zip(x_K, x_ticks, strict=True)]
    for place, tick in zip(y_K, y_ticks, strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(text(LEFT - 10, place + 4, f"{tick:.6g}", "end"))
    return parts


def _words(name: str, cost_K: Floats, value_K: Floats) -> list[str]:
    return [f"{name}: {value:.2f} for {cost:.0f}" for cost, value in zip(cost_K, value_K, strict=True)]


def _dot(css: str, x: float, y: float, words: str) -> str:
    title = f"<title>{escape(words)}</title>"
    return f'<circle class="line dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'
