"""What a study's tables are of: cycles of a protocol, or days of a stream; with the words for both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.bench.study.answers import NEURAL, RUNNING
from headrace.recommend.recommender import BLEND


@dataclass(frozen=True)
class Kind:
    """Made from what the command notes down, read by everything that sums up."""

    protocol: str
    """The command: "continual" or "stream"."""
    title: str
    unit: str
    """What one row is of: "cycle", "day", "slice"."""
    first: int
    """Number of the first that is tested."""
    tuned: int
    """Up to which number settings may have been chosen on what is shown."""
    voters: Mapping[str, str]
    """Every table is given for each of them, with these words."""
    by_query: bool
    """Whether means are over all queries, rather than plain ones over rows."""
    by_slice: bool
    """Whether intervals resample slices of event time, since what is hot moves all queries of one; else sessions."""


def cycles(tuned: int) -> Kind:
    """The ADER protocol's rows; what is served is shown with weights that move inside a cycle, since one is long."""
    words = {NEURAL: "the neural expert alone", RUNNING: "what is served: the blend, its weights moving inside a cycle"}
    return Kind(
        "continual", "Continual recall, cycle by cycle", "cycle", 1, tuned, words, by_query=False, by_slice=False
    )


def stretches(unit: str, tuned: int) -> Kind:
    """Rows of a log in event time; the first of them is the warm-up, which nobody is tested on."""
    words = {NEURAL: "the neural expert alone", BLEND: "what is served: the blend"}
    return Kind(
        "stream", f"Recall in event time, {unit} by {unit}", unit, 2, tuned, words, by_query=True, by_slice=True
    )


def kind_of(command: Mapping[str, Any]) -> Kind:
    """The kind of a study, by what was noted of a command that worked on it."""
    tuned = int(command["tuned"])
    return cycles(tuned) if command["protocol"] == "continual" else stretches(str(command["unit"]), tuned)
