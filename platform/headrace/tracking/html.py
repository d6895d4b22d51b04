"""Pieces of pages that need neither a network nor a library: the frame, sections, legends, tables."""

from collections.abc import Iterable, Sequence
from html import escape

from headrace.tracking.page_style import STYLE


def whole(title: str, body: Sequence[str], refresh_s: int | None = None, style: str = "") -> str:
    """One file; with ``refresh_s`` it loads itself anew. ``style`` is added to the common one."""
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}"/>'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>{refresh}'
        f"<title>{escape(title)} - Headrace</title><style>{STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(heading: str, note: str, legend: str, content: str) -> str:
    """A heading, what one sees, and the chart or table; words where there is none."""
    shown = f'{legend}<div class="chart">{content}</div>' if content else "<p>Nothing yet.</p>"
    return f"<section><h2>{escape(heading)}</h2><p>{escape(note)}</p>{shown}</section>"


def legend_list(entries: Iterable[tuple[str, str, str]]) -> str:
    """Names, classes, and newest values."""
    items = [f'<li><i class="{css}"></i>{escape(name)} <b>{escape(value)}</b></li>' for name, css, value in entries]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def data_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    """Plain text in rows; ``numbers`` are the columns that are set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="num"' if column in numbers else "" for column in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"
