"""What stays of commits that retention has removed: one line each, in objects of 64 cuts.

A line is written before anything of its commit is deleted, and says from then on that it is leaving. Only rank 0 of the
newest epoch writes; reading is safe anywhere.
"""

from headrace.commit.summary import Summary
from headrace.store.store import Store

_FOLDER = "journal"
_CUTS = 64


class Journal:
    """The summaries of commits that are gone, or about to go, in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunk: tuple[int, dict[int, str]] | None = None
        """The chunk written last, and its lines by cut: cuts leave in order, nearly."""

    def add(self, summary: Summary) -> None:
        """Write the line of a commit, whole or not at all; writing it again changes nothing."""
        chunk = summary.cut // _CUTS
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = chunk, {line.cut: line.to_json() for line in self._read(_name(chunk))}
        lines, line = self._chunk[1], summary.to_json()
        if lines.get(summary.cut) == line:
            return
        lines[summary.cut] = line
        content = "".join(f"{lines[cut]}\n" for cut in sorted(lines))
        self._store.put(f"{_FOLDER}/{_name(chunk)}", content.encode())

    def has(self, cut: int) -> bool:
        """Whether this commit has a line, as stored now."""
        return any(summary.cut == cut for summary in self._read(_name(cut // _CUTS)))

    def summaries(self, after_cut: int = -1) -> list[Summary]:
        """All lines of cuts beyond this one, by cut."""
        names = [name for name in self._store.names(_FOLDER) if name >= _name((after_cut + 1) // _CUTS)]
        return [summary for name in names for summary in self._read(name) if summary.cut > after_cut]

    def _read(self, name: str) -> list[Summary]:
        try:
            content = self._store.get(f"{_FOLDER}/{name}")
        except FileNotFoundError:
            return []
        return [Summary.from_json(line) for line in content.decode().splitlines()]


def _name(chunk: int) -> str:
    return f"{chunk:010d}.jsonl"
