"""What is left of a shard once it is trained, and may go: its facts, and its file where the run itself landed it.

A shard is done when cuts with a commit have taken all of its rows; its file may go when no window reaches them either.
Those of a cut that the gate rejected stay, since a person may put them back. Nothing else reads a committed cut again:
a start begins after the newest commit, and a roll back goes back in state, not in the stream. Facts of a file that is
still there can be found again in it.
"""

from dataclasses import dataclass

from headrace.feed.entries import Entry, Shard
from headrace.feed.landing import Landing
from headrace.records import Cut, RowRange
from headrace.store.store import PartRef, Store, part_name


@dataclass
class _Waiting:
    """A shard that is not done."""

    name: str
    facts: PartRef
    rows_left: int


class Sweeper:
    """Owned by the driver's ledger thread. ``landing`` is the run's own folder; None where files are to stay."""

    def __init__(self, store: Store, landing: Landing | None) -> None:
        self._store = store
        self._landing = landing
        self._shards: dict[int, _Waiting] = {}
        self._ranges: dict[int, tuple[RowRange, ...]] = {}
        """By cut, until it is committed."""
        self._done: list[tuple[int, str]] = []
        """Files that may go once no window reaches the cut; the newest stays, since it tells how many have landed."""
        self._first: dict[int, int] = {}
        """By cut, until it is committed: the oldest that its window reaches."""
        self._newest = ""

    def note(self, entry: Entry) -> None:
        """A record of the ledger; they come in order."""
        match entry:
            case Shard():
                name = entry.uri.rsplit("/", 1)[-1]
                self._newest = max(self._newest, name)
                if entry.duplicate_of is None and entry.num_rows:
                    self._shards[entry.number] = _Waiting(name, entry.facts, entry.num_rows)
            case Cut():
                self._ranges[entry.number] = entry.ranges
                self._first[entry.number] = entry.number + 1 if entry.window is None else entry.window.first
            case _:
                pass

    def committed(self, cut: int, rejected: bool) -> None:
        """This cut has a commit; what is done now is removed."""
        for part in self._ranges.pop(cut, ()):
            shard = self._shards.get(part.shard)
            if shard is None or rejected:
                self._shards.pop(part.shard, None)
                continue
            shard.rows_left -= part.stop - part.start
            if not shard.rows_left:
                del self._shards[part.shard]
                self._store.delete(part_name(shard.facts.sha256))
                self._done.append((cut, shard.name))
        self._remove_files(self._first.pop(cut, 0))

    def _remove_files(self, first: int) -> None:
        """Those of cuts before ``first``."""
        if self._landing is None:
            self._done.clear()
            return
        for cut, name in list(self._done):
            if cut < first and name != self._newest:
                self._landing.remove(name)
                self._done.remove((cut, name))
