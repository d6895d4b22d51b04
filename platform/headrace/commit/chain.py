"""The chain of commits in a store: read, extend, and forget what is no longer needed.

A commit is the put of its manifest, after all of its parts and after a look at the fence. Its name holds the cut and
the writer's epoch; of two commits of one cut the one of the newer epoch counts.
"""

from collections import Counter
from dataclasses import dataclass

from headrace.commit.manifest import Manifest
from headrace.store.fence import Epoch, check_epoch
from headrace.store.store import Store, part_name


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
        """(cut, epoch) of the commit that counts for each cut, by cut."""
        newest: dict[int, int] = {}
        for name in self._store.names("commits"):
            cut, epoch = (int(word) for word in name.removesuffix(".json").split("."))
            newest[cut] = max(epoch, newest.get(cut, 0))
        return sorted(newest.items())

    def read(self, cut: int, epoch: int) -> Manifest:
        """The manifest of this commit; FileNotFoundError where there is none."""
        return Manifest.from_json(self._store.get(_name(cut, epoch)))

    def manifests(self) -> list[Manifest]:
        """All of them, oldest first."""
        return [self.read(cut, epoch) for cut, epoch in self.names()]

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


class Retention:
    """Removes parts that no kept commit names. Kept: the last ``keep`` commits, the warm-up, live and trusted.

    Manifests themselves stay: they are small, and the report is made from them. Parts of an increment that was killed
    before its commit need no collecting: done again, it makes the same parts and names them. Owned by rank 0.
    """

    def __init__(self, store: Store, keep: int) -> None:
        self._store = store
        self._keep = keep
        self._kept: dict[int, Manifest] = {}
        self._names: Counter[str] = Counter()

    def start(self, manifests: list[Manifest], pinned: set[int]) -> None:
        """Take stock at the start of a run; what older runs left behind is removed."""
        self._kept = {manifest.cut: manifest for manifest in manifests}
        self._names = Counter(ref.sha256 for manifest in manifests for ref in manifest.parts.values())
        self._drop(pinned)

    def add(self, manifest: Manifest, pinned: set[int]) -> None:
        """Note a new commit and drop what falls out; ``pinned`` cuts stay whatever their age."""
        self._kept[manifest.cut] = manifest
        self._names.update(ref.sha256 for ref in manifest.parts.values())
        self._drop(pinned)

    def _drop(self, pinned: set[int]) -> None:
        newest = max(self._kept, default=0)
        for cut in [cut for cut in self._kept if cut <= newest - self._keep and cut not in pinned and cut != 0]:
            for ref in self._kept.pop(cut).parts.values():
                self._names[ref.sha256] -= 1
                if not self._names[ref.sha256]:
                    del self._names[ref.sha256]
                    self._store.delete(part_name(ref.sha256))


def _name(cut: int, epoch: int) -> str:
    return f"commits/{cut:010d}.{epoch:06d}.json"
