"""A line over named steps, as one SVG file that a README can show."""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 44, 56
_TICKS = 5


def write_line(path: Path, title: str, steps: str, values: Mapping[str, float], unit: str = "%") -> Path:
    """Write ``values`` (0 and up, in ``unit``) by name, in their order, under a title; ``steps`` names the x axis."""
    highest = max(values.values())
    top = next(bound for bound in (1, 2, 5, 10, 20, 25, 50, 75, 100, 10**9) if bound >= highest)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    gap = width / max(len(values) - 1, 1)
    points = [(_LEFT + n * gap, _TOP + height * (1 - value / top)) for n, value in enumerate(values.values())]
    parts = [_text(_LEFT, 24, title, 15, "start", "600")]
    for tick in range(_TICKS + 1):
        y = _TOP + height * (1 - tick / _TICKS)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{top * tick / _TICKS:g}", 11, "end"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2.5"/>')
    for (x, y), (name, value) in zip(points, values.items(), strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2563eb"/>')
        parts.append(_text(x, y - 10, f"{value:.1f}", 12, "middle", "600"))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 20, name, 12, "middle"))
    parts.append(_text(_LEFT + width / 2, _HEIGHT - 12, steps, 12, "middle"))
    parts.append(_text(12, _TOP - 12, unit, 11, "start"))
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">'
    white = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    path.write_text("\n".join([frame, white, *parts, "</svg>"]) + "\n")
    return path


def _text(x: float, y: float, text: str, size: int, anchor: str, weight: str = "400") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="#222">{escape(text)}</text>'
