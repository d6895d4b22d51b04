"""What was set aside, and how a person puts it back: whole files, single rows, and the cuts that the gate rejected.

Everything here goes by the number of its record in the ledger. Only the run that holds the fence writes the ledger, so
a release is asked for by an object of its own, ``releases/NUMBER.json``, which holds the record that is meant; the
keeper turns it into a *release* record at its next look, or at the run's next start. So order stays the ledger's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headrace.commit.chain import Chain
from headrace.commit.summary import Summary
from headrace.config.feed import ColumnsConfig
from headrace.errors import DataError
from headrace.feed.entries import Entry, Quarantine, Release, Shard, decode, encode
from headrace.feed.facts import in_words
from headrace.feed.landing import open_file
from headrace.feed.ledger import LedgerReader, entry_number
from headrace.feed.rows import read_range
from headrace.records import Cut, RowRange
from headrace.store.store import Store

_SHOWN_ROWS = 5
_BY_POLICY = {
    "quarantined": "their time lies further ahead than feed.max_ahead_s",
    "late_set_aside": "they came later than feed.allowed_lateness_s allows",
}


@dataclass(frozen=True)
class Aside:
    """Something that was set aside. Made by ``set_aside``, read by the command line."""

    number: int
    """Of its record in the ledger."""
    where: str
    """The file's name, or the cut."""
    after_cut: int
    """Number of the newest cut that the ledger held before; -1: none."""
    kind: Literal["file", "rows", "cut", "policy"]
    """"rows": single rows of a good file; "policy": rows of a cut that came too late, or from the future."""
    num_rows: int
    """0 where the count is unknown."""
    state: Literal["set aside", "asked for", "released"]
    reason: str


def set_aside(store: Store) -> list[Aside]:
    """All that was ever set aside, in ledger order; released ones included."""
    commits = {commit.cut: commit for commit in Chain(store).summaries()}
    asked, entries = set(requested(store)), list(LedgerReader(store).entries())
    released = {entry.of for entry in entries if isinstance(entry, Release)}
    found: list[Aside] = []
    num_cuts = 0
    for entry in entries:
        found += (
            Aside(number, where, num_cuts - 1, kind, num_rows, _state(number, released, asked), reason)
            for number, where, kind, num_rows, reason in _asides(entry, commits)
        )
        num_cuts += isinstance(entry, Cut)
    return found


def find(store: Store, number: int) -> Aside:
    """What has this number; DataError where nothing of this number is set aside."""
    for aside in set_aside(store):
        if aside.number == number:
            return aside
    raise DataError(f"nothing with number {number} is set aside in {store.uri}: headrace quarantine list shows what is")


def first_rows(store: Store, aside: Aside) -> tuple[str, ...]:
    """The first rows of it, one line each; of a cut they are read from where they landed."""
    entry = LedgerReader(store).entry(aside.number)
    match entry:
        case Quarantine():
            return entry.first
        case Shard():
            return entry.dropped.first
        case Cut() if aside.kind == "cut":
            return _first_of_cut(store, entry)
    return ()


def ask_release(store: Store, number: int) -> Aside:
    """Ask the run to put this back into the stream; DataError, in words, where that cannot be."""
    aside, reader = find(store, number), LedgerReader(store)
    if aside.state != "set aside":
        done = "has been released" if aside.state == "released" else "waits for the run to release it"
        raise DataError(f"number {number} ({aside.where}) {done} already: its rows are trained once")
    entry = reader.entry(number)
    if aside.kind == "rows":
        raise DataError(
            f"number {number} are single rows of {aside.where}, whose other rows were taken: land them, repaired, in a "
            "file of their own"
        )
    if aside.kind == "policy":
        raise DataError(
            f"number {number} are rows of {aside.where} that the recipe's policy on time set aside: change the recipe "
            "and land them in a file of their own"
        )
    if isinstance(entry, Quarantine):
        _check_there(entry.uri, "the repaired file")
    elif isinstance(entry, Cut):
        for part in entry.ranges:
            shard = reader.shard(part.shard)
            _check_there(shard.uri, "what landed", shard.size_bytes)
    store.put(_name(number), encode(entry, 0))
    return aside


def requested(store: Store) -> list[int]:
    """Numbers of the records whose release was asked for, ever."""
    return [int(name.removesuffix(".json")) for name in store.names("releases")]


def is_request_for(store: Store, entry: Entry) -> bool:
    """Whether the request under this record's number means this very record, and not one that an epoch has voided."""
    return decode(store.get(_name(entry_number(entry))))[0] == entry


def _asides(
    entry: Entry, commits: Mapping[int, Summary]
) -> Iterator[tuple[int, str, Literal["file", "rows", "cut", "policy"], int, str]]:
    """(number, where, kind, rows, reason) of what this record set aside: nothing, or one thing."""
    match entry:
        case Quarantine():
            yield entry.number, _file(entry.uri), "file", entry.num_rows, entry.reason
        case Shard() if entry.dropped.rows:
            reasons = "; ".join(f"{num_rows} rows: {reason}" for reason, num_rows in entry.dropped.reasons)
            yield entry.number, _file(entry.uri), "rows", len(entry.dropped.rows), reasons
        case Cut() if (commit := commits.get(entry.number)) is not None:
            if commit.verdict == "reject":
                yield entry.record, f"cut {entry.number}", "cut", entry.num_rows, commit.reason
            elif by_policy := {fate: rows for fate in _BY_POLICY if (rows := commit.fates.get(fate, 0))}:
                reasons = "; ".join(f"{rows} rows: {_BY_POLICY[fate]}" for fate, rows in by_policy.items())
                yield entry.record, f"cut {entry.number}", "policy", sum(by_policy.values()), reasons
        case _:
            pass


def _check_there(uri: str, what: str, size_bytes: int | None = None) -> None:
    """DataError unless the file is where it landed: a cut of rows that cannot be read would stop the run."""
    try:
        with open_file(uri) as file:
            if size_bytes in (None, file.size()):
                return
    except FileNotFoundError:
        pass
    raise DataError(f"{uri} is not there any more: put {what} there first")


def _state(number: int, released: set[int], asked: set[int]) -> Literal["set aside", "asked for", "released"]:
    if number in released:
        return "released"
    return "asked for" if number in asked else "set aside"


def _first_of_cut(store: Store, cut: Cut) -> tuple[str, ...]:
    newest = Chain(store).latest()
    assert newest is not None, "a cut that was set aside was committed"
    columns = ColumnsConfig(**newest.facts["recipe"]["columns"])  # the same for all commits of a store
    lines: list[str] = []
    reader = LedgerReader(store)
    for part in cut.ranges:
        shard, wanted = reader.shard(part.shard), _SHOWN_ROWS - len(lines)
        if wanted <= 0:
            break
        some = RowRange(part.shard, part.start, min(part.stop, part.start + wanted))
        lines += (
            f"{_file(shard.uri)} {line}"
            for line in in_words(read_range(shard, some, columns), np.arange(some.start, some.stop))
        )
    return tuple(lines)


def _file(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _name(number: int) -> str:
    return f"releases/{number:010d}.json"
