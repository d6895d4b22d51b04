"""What a study's tables are of: cycles of a protocol, or days of a stream, or its sessions; with the words for each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace.bench.study.answers import NEURAL, RUNNING
from headrace.recommend.recommender import BLEND

WORDS = {"recall@20": "R@20", "recall@100": "R@100", "recall@500": "R@500", "mrr@20": "MRR@20"}
"""Of the metrics that tables show."""
_NEXT_ITEM = ("recall@20", "mrr@20")
_NEXT_SESSION = ("recall@20", "recall@100", "recall@500")


@dataclass(frozen=True)
class Kind:
    """Made from what the command notes down, read by everything that sums up."""

    protocol: str
    """The command: "continual", "stream" or "sessions"."""
    title: str
    unit: str
    """What one row is of: "cycle", "day", "slice"."""
    first: int
    """Number of the first that is tested."""
    tuned: int
    """Up to which number settings may have been chosen on what is shown."""
    voters: Mapping[str, str]
    """Every table is given for each of them, with these words."""
    shown: tuple[str, ...]
    """The metrics of its tables; the first is also drawn."""
    by_query: bool
    """Whether means are over all queries, rather than plain ones over rows."""
    by_slice: bool
    """Whether intervals resample slices of event time, since what is hot moves all queries of one; else sessions."""
    repeats_apart: bool = False
    """Whether targets that lie in their query's context are told apart from the others."""


def cycles(tuned: int) -> Kind:
    """The ADER protocol's rows; what is served is shown with weights that move inside a cycle, since one is long."""
    words = {NEURAL: "the neural expert alone", RUNNING: "what is served: the blend, its weights moving inside a cycle"}
    title = "Continual recall, cycle by cycle"
    return Kind("continual", title, "cycle", 1, tuned, words, _NEXT_ITEM, by_query=False, by_slice=False)


def stretches(unit: str, tuned: int) -> Kind:
    """Rows of a log in event time; the first of them is the warm-up, which nobody is tested on."""
    words = {NEURAL: "the neural expert alone", BLEND: "what is served: the blend"}
    title = f"Recall in event time, {unit} by {unit}"
    return Kind("stream", title, unit, 2, tuned, words, _NEXT_ITEM, by_query=True, by_slice=True)


def sessions(unit: str, tuned: int) -> Kind:
    """The same where a whole session is asked for at its start: its items are the targets."""
    title = f"The next session in event time, {unit} by {unit}"
    return replace(
        stretches(unit, tuned),
        protocol="sessions",
        title=title,
        shown=_NEXT_SESSION,
        by_slice=False,
        repeats_apart=True,
    )


def kind_of(command: Mapping[str, Any]) -> Kind:
    """The kind of a study, by what was noted of a command that worked on it."""
    tuned, unit = int(command["tuned"]), str(command["unit"])
    match command["protocol"]:
        case "continual":
            return cycles(tuned)
        case "sessions":
            return sessions(unit, tuned)
        case _:
            return stretches(unit, tuned)
