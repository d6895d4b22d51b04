"""What a run prints: the phases of its start, then one aligned row per increment, in a terminal and in a pipe alike.

A row is a line that is printed once and never redrawn, so that a log file reads as the terminal did.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from headrace.clock import monotonic_s

if TYPE_CHECKING:  # the manifest brings the store with it, which a first line need not wait for
    from headrace.commit.manifest import Verdict

_HEADER_EVERY = 20
_NOT_SHOWN = {"uniform"}  # always in the blend, never worth a column
ROLLED_BACK = "rolled back"
"""How the reason of a published roll back begins."""
_VERDICT_STYLE = {"publish": "", "hold": "yellow", "reject": "red"}
_LEGEND = (
    "Recall@20 in %, scored before training; * best expert so far; fresh: seconds from landing to every replica; "
    "behind: shards waiting"
)


@dataclass(frozen=True)
class IncrementRow:
    """One increment as people see it. Made by train/follower.py, read by ``Observer.increment``."""

    cut: int
    events: int
    queries: int
    """Scored before training, over all ranks."""
    recall_live: float | None
    """Recall@20; None where nothing was scored."""
    recall_frozen: float | None
    recall_experts: Mapping[str, float | None]
    """Each expert of the learner alone, the neural model among them."""
    freshness_s: float | None
    """Event-weighted median of the shards of this cut; None until every replica has answered with it."""
    version: int | None
    """Published by this increment; None where it was not."""
    verdict: "Verdict"
    reason: str
    failed_requests: int
    """So far."""
    backlog_shards: int
    train_s: float
    increment_s: float
    faults: Mapping[str, int] = field(default_factory=dict)
    """By expert: queries on which it failed, and was left out."""


class Observer:
    """Prints what the driver tells it. Safe to call from several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._lock = threading.RLock()
        self._began_s = monotonic_s()
        self._experts: tuple[str, ...] = ()
        self._recall_sum: dict[str, float] = {}
        self._rows_since_header = _HEADER_EVERY
        self._legend_printed = False

    def phase(self, name: str, seconds: float) -> None:
        """A phase of the start has ended, after ``seconds``."""
        self._print(f"{monotonic_s() - self._began_s:7.1f} s  {name} ({seconds:.1f} s)", "dim")

    def notice(self, text: str) -> None:
        """Something that is worth a line of its own."""
        self._print(text)

    def increment(self, row: IncrementRow) -> None:
        """An increment has been committed."""
        with self._lock:
            self._note(row)
            if self._rows_since_header >= _HEADER_EVERY:
                self._header()
            self._rows_since_header += 1
            self._print(self._line(row), _VERDICT_STYLE[row.verdict])
            for name, count in row.faults.items():
                left_out = f"expert {name} was left out of {count} queries: it failed, or its vote is no probability"
                self._print(f"{'':>5}  {left_out}", "yellow")
            if row.verdict != "publish" or row.reason.startswith(ROLLED_BACK):
                self._print(f"{'':>5}  {row.verdict}: {row.reason}", _VERDICT_STYLE[row.verdict] or "yellow")

    def finished(self, summary: str) -> None:
        """The run has ended."""
        self._print(summary, "bold")

    def _note(self, row: IncrementRow) -> None:
        shown = {name: recall for name, recall in row.recall_experts.items() if name not in _NOT_SHOWN}
        experts = tuple(sorted(shown, key=lambda name: (name != "neural", name)))
        if experts and experts != self._experts:
            self._experts = experts
            self._rows_since_header = _HEADER_EVERY
        for name, recall in shown.items():
            if recall is not None:
                self._recall_sum[name] = self._recall_sum.get(name, 0.0) + recall

    def _header(self) -> None:
        experts = "".join(f" {name:>{_width(name)}} " for name in self._experts)
        scores = f"{'cut':>5} {'events':>8} {'queries':>7} {'live':>6} {'frozen':>6}{experts} {'fresh':>6}"
        if not self._legend_printed:
            self._print(_LEGEND, "dim")
            self._legend_printed = True
        rest = f"{'version':>7} {'verdict':<7} {'failed':>6} {'behind':>6} {'train':>6} {'all':>6}"
        self._print(f"{scores} {rest}", "bold")
        self._rows_since_header = 0

    def _line(self, row: IncrementRow) -> str:
        best = max(self._recall_sum, key=self._recall_sum.__getitem__, default=None)
        experts = "".join(
            f" {percent(row.recall_experts.get(name)):>{_width(name)}}{'*' if name == best else ' '}"
            for name in self._experts
        )
        version = "-" if row.version is None else str(row.version)
        return (
            f"{row.cut:>5} {row.events:>8} {row.queries:>7} {percent(row.recall_live):>6} "
            f"{percent(row.recall_frozen):>6}{experts} {seconds(row.freshness_s):>6} {version:>7} {row.verdict:<7} "
            f"{row.failed_requests:>6} {row.backlog_shards:>6} {seconds(row.train_s):>6} {seconds(row.increment_s):>6}"
        )

    def _print(self, line: str, style: str = "") -> None:
        with self._lock:
            self._console.print(Text(line, style=style))
            self._console.file.flush()


def _width(name: str) -> int:
    return max(6, len(name))


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def seconds(value: float | None) -> str:
    """Seconds to two significant places or so; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def align(header: Sequence[str], rows: Sequence[Sequence[str]], left: frozenset[int] = frozenset()) -> list[str]:
    """A table as lines, the header first; columns are right-aligned, but for those in ``left``."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
