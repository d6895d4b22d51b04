"""The chain of commits in a store: read and extend it.

A commit is the put of its manifest, after all of its parts and after a look at the fence. Its name holds the cut and
the writer's epoch; of two commits of one cut the one of the newer epoch counts. Old ones leave (commit/retention.py);
what stays of them for good is a line in the journal.
"""

from dataclasses import dataclass

from headrace.commit.journal import Journal
from headrace.commit.manifest import Manifest
from headrace.commit.summary import Summary, summary_of
from headrace.store.fence import Epoch, check_epoch
from headrace.store.store import Store


@dataclass(frozen=True)
class Commit:
    """A handle on a commit that has been asked for; a store that uploads in the background returns at once."""

    manifest: Manifest

    def result(self) -> Manifest:
        """The manifest, once the marker is stored."""
        return self.manifest


class Chain:
    """The commits of one store. Reading is safe anywhere; only rank 0 of the newest epoch extends it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> list[tuple[int, int]]:
        """(cut, epoch) of the commit that counts for each cut, by cut; of those that are still there."""
        return sorted(dict(self._listed()).items())

    def superseded(self) -> list[tuple[int, int]]:
        """(cut, epoch) of commits that do not count, since a newer epoch has made the same cut again."""
        return sorted(set(self._listed()) - set(self.names()))

    def _listed(self) -> list[tuple[int, int]]:
        """All that are there, by cut, then epoch."""
        words = (name.removesuffix(".json").split(".") for name in self._store.names("commits"))
        return sorted((int(cut), int(epoch)) for cut, epoch in words)

    def read(self, cut: int, epoch: int) -> Manifest:
        """The manifest of this commit; FileNotFoundError where there is none."""
        return Manifest.from_json(self._store.get(_name(cut, epoch)))

    def find(self, cut: int) -> Manifest | None:
        """The commit that counts for this cut; None where it is not there (any more)."""
        epoch = dict(self._listed()).get(cut)
        return None if epoch is None else self._read_if_there(cut, epoch)

    def manifests(self) -> list[Manifest]:
        """All that are still there, oldest first."""
        return [manifest for cut, epoch in self.names() if (manifest := self._read_if_there(cut, epoch)) is not None]

    def summaries(self, after_cut: int = -1) -> list[Summary]:
        """What is known of every commit that was ever made beyond this cut, oldest first."""
        there = [
            summary_of(manifest)
            for cut, epoch in self.names()
            if cut > after_cut and (manifest := self._read_if_there(cut, epoch)) is not None
        ]
        gone = Journal(self._store).summaries(after_cut)  # after the listing: a line is written before its commit goes
        known = {summary.cut: summary for summary in [*gone, *there]}
        return [known[cut] for cut in sorted(known)]

    def _read_if_there(self, cut: int, epoch: int) -> Manifest | None:
        """None where retention has removed it since it was listed."""
        try:
            return self.read(cut, epoch)
        except FileNotFoundError:
            return None

    def latest(self) -> Manifest | None:
        """The newest commit, where training begins again."""
        names = self.names()
        return self.read(*names[-1]) if names else None

    def has(self, cut: int, epoch: int) -> bool:
        """Whether this epoch has committed this cut; one look, no listing."""
        return self._store.exists(_name(cut, epoch))

    def commit(self, manifest: Manifest, epoch: Epoch) -> Commit:
        """Store the marker; FencedError if a newer run has taken the store. Every part must have been stored before."""
        check_epoch(self._store, epoch)
        self._store.put(_name(manifest.cut, epoch.number), manifest.to_json())
        return Commit(manifest)

    def remove(self, cut: int, epoch: int) -> None:
        """Delete the marker; whatever it alone names must be gone before."""
        self._store.delete(_name(cut, epoch))


def _name(cut: int, epoch: int) -> str:
    return f"commits/{cut:010d}.{epoch:06d}.json"
