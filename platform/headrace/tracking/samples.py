"""Sample recommendations: what the newest version answers to those who came last, for people who look on.

They stand in the report; the terminal, the page and W&B show them from there, by name where the side feed has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from headrace.tracking.html import section

_IN_TERMINAL = 3  # samples


@dataclass(frozen=True)
class Shown:
    """An item as people see it."""

    item_id: int | str
    name: str | None
    """None where the side feed has not said."""
    score: float | None = None
    """Probability of being next; None for an item of the past."""


@dataclass(frozen=True)
class Sample:
    """A past and what is recommended after it. Made by serving/samples.py, read by the report."""

    past: tuple[Shown, ...]
    """The newest items, oldest first."""
    num_before: int
    """Items of the past before those."""
    answers: tuple[Shown, ...]
    """Best first."""


def told(samples: Sequence[Mapping[str, Any]], version: int | None) -> list[str]:
    """The first few samples of a report, to be printed."""
    lines = [f"what version {version} answers to those who came last:"] if samples else []
    for sample in samples[:_IN_TERMINAL]:
        before = f"{sample['num_before']} more, then " if sample["num_before"] else ""
        lines.append(f"  had:   {before}{'; '.join(map(_word, sample['past']))}")
        for place, answer in enumerate(sample["answers"], 1):
            lines.append(f"  {'next:' if place == 1 else '':<6} {place}. {_word(answer)}  {answer['score']:.1%}")
    return lines


def samples_section(samples: Sequence[Mapping[str, Any]]) -> str:
    """A part of the page: a card for each sample; nothing where there are none."""
    if not samples:
        return ""
    note = (
        "What the newest version answers to those who came last, asked when the run ended. Above the line: what they "
        "had, newest last. Below it: what is recommended, best first, with its probability."
    )
    cards = "".join(_card(sample) for sample in samples)
    return section("Sample recommendations", note, "", f'<div class="samples">{cards}</div>')


def label(item: Mapping[str, Any]) -> str:
    """Name and id, or the id alone."""
    return f"{item['item_id']}" if item["name"] is None else f"{item['name']} ({item['item_id']})"


def _card(sample: Mapping[str, Any]) -> str:
    before = f"<li>{sample['num_before']:,} more, then</li>" if sample["num_before"] else ""
    past = "".join(f"<li>{_named(item)}</li>" for item in sample["past"])
    answers = "".join(f"<li>{_named(item)} <b>{item['score']:.1%}</b></li>" for item in sample["answers"])
    return f'<div class="sample"><ul>{before}{past}</ul><ol>{answers}</ol></div>'


def _named(item: Mapping[str, Any]) -> str:
    """The name, with the id to be pointed at; or the id."""
    return f'<span title="{escape(str(item["item_id"]))}">{escape(_word(item))}</span>'


def _word(item: Mapping[str, Any]) -> str:
    return str(item["item_id"] if item["name"] is None else item["name"])
