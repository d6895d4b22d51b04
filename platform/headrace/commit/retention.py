"""Which commits a store keeps, and how the others leave it, so that what lies in it does not grow with the stream.

Kept are the newest ones, by number; those that were replaced a short while ago, by the wall clock, since a replica may
still be reading them; the warm-up, live, trusted and what may become trusted; and what a person has pinned, or wants
to be served again and no commit has gone back to yet. A replica that needs longer than that grace to load a version
finds a part gone, goes on with what it has, and takes the newest. So it writes nothing and needs no right to write, and
one that died holds nothing back. None of this is state: no commit depends on what older ones have left behind.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.commit.chain import Chain
from headrace.commit.journal import Journal
from headrace.commit.manifest import Manifest
from headrace.commit.pins import pinned
from headrace.commit.rollbacks import Request, requests
from headrace.commit.summary import Summary, summary_of
from headrace.config.run import StoreConfig
from headrace.store.store import Store, part_name


@dataclass
class _Kept:
    """What is remembered of a commit that is there."""

    summary: Summary
    parts: frozenset[str]
    """Digests."""
    replaced_ms: int | None = None
    """Wall time at which the next version was published (of an unpublished commit: at which the next one was made)."""


class Retention:
    """Removes commits that are not kept: bundle, parts that no kept commit names, manifest, in this order.

    One that a crash interrupts is removed at the next start, for its manifest goes last. Owned by rank 0; ``withdraw``
    takes a bundle away.
    """

    def __init__(self, store: Store, config: StoreConfig, withdraw: Callable[[int], None]) -> None:
        self._store = store
        self._config = config
        self._withdraw = withdraw
        self._chain = Chain(store)
        self._journal = Journal(store)
        self._kept: dict[int, _Kept] = {}
        self._names: Counter[str] = Counter()
        self._obeyed = 0
        """The newest request for a roll back that a commit has obeyed; later ones hold their versions."""

    def start(self, needed: set[int], now_ms: int) -> None:
        """Take stock at a run's start, and remove what older ones left; ``needed`` cuts stay whatever their age."""
        self._kept, self._names = {}, Counter()
        for cut, epoch in self._chain.names():
            self._note(self._chain.read(cut, epoch))
        for cut, epoch in self._chain.superseded():
            self._forget(frozenset(ref.sha256 for ref in self._chain.read(cut, epoch).parts.values()), cut, epoch)
        self._drop(needed, now_ms)

    def add(self, manifest: Manifest, needed: set[int]) -> None:
        """Note a new commit and remove what falls out."""
        self._note(manifest)
        self._drop(needed, manifest.envelope.wall_ms)

    def _note(self, manifest: Manifest) -> None:
        made_ms = manifest.envelope.wall_ms
        for kept in self._kept.values():
            if kept.replaced_ms is None and (manifest.version is not None or kept.summary.version is None):
                kept.replaced_ms = made_ms
        parts = frozenset(ref.sha256 for ref in manifest.parts.values())
        self._kept[manifest.cut] = _Kept(summary_of(manifest), parts)
        self._names.update(parts)
        if (back := manifest.facts.get("rollback")) is None:
            return
        self._obeyed = back["request"]
        if manifest.version == back["version"] + 1 and back["cut"] in self._kept:
            self._kept[back["cut"]].replaced_ms = made_ms  # it was served until now

    def _drop(self, needed: set[int], now_ms: int) -> None:
        newest = max(self._kept, default=0)
        old = [
            kept
            for cut, kept in self._kept.items()
            if 0 < cut <= newest - self._config.keep and cut not in needed and self._is_old(kept, now_ms)
        ]
        if old and (versions := self._held(requests(self._store))):
            old = [kept for kept in old if kept.summary.version not in versions]
        for kept in old:
            self._journal.add(kept.summary)
        asked = requests(self._store) if old else []  # after the journal: see commit/pins.py
        held = self._held(asked) if old else set()
        for kept in old:
            if kept.summary.version not in held:
                self._remove(kept, [one.served_as for one in asked if one.cut == kept.summary.cut])

    def _held(self, asked: Sequence[Request]) -> set[int]:
        """The versions that persons hold: pinned, or to be served again."""
        return pinned(self._store) | {one.version for one in asked if one.number > self._obeyed}

    def _is_old(self, kept: _Kept, now_ms: int) -> bool:
        return kept.replaced_ms is not None and now_ms - kept.replaced_ms >= self._config.keep_s * 1000

    def _remove(self, kept: _Kept, served_as: Sequence[int | None]) -> None:
        """``served_as``: versions that were this one again."""
        summary = kept.summary
        for version in (summary.version, *served_as):
            if version is not None:
                self._withdraw(version)
        del self._kept[summary.cut]
        self._names.subtract(kept.parts)
        self._forget(kept.parts, summary.cut, summary.epoch)

    def _forget(self, parts: frozenset[str], cut: int, epoch: int) -> None:
        """Delete those of these parts that no kept commit names, then the manifest."""
        for sha256 in parts:
            if self._names[sha256] <= 0:
                del self._names[sha256]
                self._store.delete(part_name(sha256))
        self._chain.remove(cut, epoch)
