"""A matrix of scores as a heat map, inline SVG: what is known of each past, row by row as time goes on.

Shape legend: I rows, J columns.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from headrace.tracking.series import Floats
from headrace.tracking.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, drawing, text

_CELL_HEIGHT = 26
_FAINTEST = 0.08
_LABEL_WIDTH = 46  # of the numbers below columns


def heat_map(score_IJ: Floats, rows: Sequence[int], columns: Sequence[int], unit: str, word: str) -> str:
    """Row by row, "after ``word`` so-and-so", the score on each column's; the darker the higher.

    NaN: nothing to tell. "" where there is nothing at all.
    """
    known = score_IJ[np.isfinite(score_IJ)]
    if not len(known):
        return ""
    low, high = float(known.min()), float(known.max())
    width, height = (WIDTH - LEFT - RIGHT) / len(columns), TOP + len(rows) * _CELL_HEIGHT + BOTTOM
    every, base = max(1, int(np.ceil(_LABEL_WIDTH / width))), height - BOTTOM + 18
    parts = [text(0, TOP + 4, "after"), text(WIDTH - RIGHT + 12, base, f"of {word}, {unit}")]
    parts += [text(LEFT + (j + 0.5) * width, base, f"{columns[j]}", "middle") for j in range(0, len(columns), every)]
    for i, row in enumerate(rows):
        y = TOP + i * _CELL_HEIGHT
        parts.append(text(LEFT - 10, y + _CELL_HEIGHT / 2 + 4, f"{word} {row}", "end"))
        for j in np.flatnonzero(np.isfinite(score_IJ[i])).tolist():
            value = float(score_IJ[i, j])
            share = _FAINTEST + (1 - _FAINTEST) * (value - low) / max(high - low, 1e-9)
            place = f'x="{LEFT + j * width:.1f}" y="{y}" width="{width - 1:.1f}" height="{_CELL_HEIGHT - 1}"'
            title = escape(f"after {word} {row}, of {word} {columns[j]}: {value:.2f} {unit}")
            parts.append(f'<rect class="heat" {place} fill-opacity="{share:.3f}"><title>{title}</title></rect>')
    return drawing(height, parts)
