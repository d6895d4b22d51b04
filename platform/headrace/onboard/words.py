"""Figures as people say them: counts, shares, spans of time."""

from collections.abc import Sequence

_UNITS = ((7 * 86400, "week"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def count(number: int) -> str:
    """An integer with thousands separated."""
    return f"{number:,}"


def share(value: float) -> str:
    """A share as a percentage, with a decimal where it is small."""
    return f"{100 * value:.0f} %" if value >= 0.1 or value == 0 else f"{100 * value:.1f} %"


def span(seconds: float) -> str:
    """A length of time in its natural unit."""
    if seconds >= 2 * 365 * 86400:
        return f"{seconds / (365.25 * 86400):.1f} years"
    for size, unit in _UNITS:
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0) or size == 1:
            text = f"{seconds / size:.1f}".removesuffix(".0")
            return f"{text} {unit}{'' if text == '1' else 's'}"
    raise AssertionError("the last unit takes everything")


def listing(names: Sequence[str], most: int = 8) -> str:
    """Names separated by commas; the rest of a long list is counted."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
