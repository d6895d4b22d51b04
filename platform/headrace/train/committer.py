"""Steps 6 and 7 of an increment: bind everything into one commit, publish it where the gate allows, forget the oldest.

Every rank stores its own parts, rank 0 those that all share; the names are gathered, and rank 0 puts the marker last.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.bundles.bundle import bundle_of
from headrace.bundles.publish import publish, withdraw
from headrace.clock import Stopwatch, monotonic_s, wall_ms
from headrace.commit.chain import Chain
from headrace.commit.manifest import Envelope, Manifest
from headrace.commit.retention import Retention
from headrace.config.run import StoreConfig
from headrace.errors import TrainingError
from headrace.evaluation.gate import Decision
from headrace.memory import TRIM_EVERY, trim
from headrace.records import Cut
from headrace.store.arrays import dump_arrays
from headrace.store.fence import Epoch
from headrace.store.store import PartRef, Store
from headrace.train.group import Group
from headrace.train.state import LearnerState


class Committer:
    """Commits for one epoch. Every rank has one; only rank 0's writes markers, bundles and deletions."""

    def __init__(self, store: Store, epoch: Epoch, group: Group, config: StoreConfig) -> None:
        self.store = store
        self._epoch = epoch
        self._group = group
        self._chain = Chain(store)
        self._retention = Retention(store, config, partial(withdraw, store))
        self._segments: dict[str, tuple[dict[str, NDArray[Any]], PartRef]] = {}

    def start(self, state: LearnerState) -> None:
        """Runs once, after resuming: what a killed run had committed is published, what it left behind collected."""
        if self._group.rank != 0 or state.commit is None:
            return
        if state.published is not None:
            publish(self.store, bundle_of(state.published), self._epoch)
        self._retention.start(_needed(state.published, state), wall_ms())

    def commit(
        self,
        state: LearnerState,
        decision: Decision,
        figures: Mapping[str, Any],
        cut: Cut,
        watch: Stopwatch,
    ) -> Manifest:
        """Make ``state`` the newest commit; FencedError when a newer run has taken the store.

        ``watch`` books the time up to the marker under "commit".
        """
        if decision.verdict == "publish":
            state.version += 1
        counters = conserve(state.rows, cut)
        refs = self._store_parts(state)
        watch.lap("commit")
        spent = dict(watch.seconds), dict(watch.cpu_s)
        envelope = Envelope(self._epoch.number, self._epoch.token, wall_ms(), monotonic_s(), *spent)
        manifest = Manifest(
            cut.number,
            state.commit.state_digest if state.commit else None,
            decision.verdict,
            decision.reason,
            state.version if decision.verdict == "publish" else None,
            refs,
            {**state.facts(), **figures, "counters": counters, "world": self._group.world},
            envelope,
        )
        if self._group.rank == 0:
            self._chain.commit(manifest, self._epoch).result()
            if manifest.version is not None:
                publish(self.store, bundle_of(manifest), self._epoch)
            live = manifest if manifest.version is not None else state.published
            self._retention.add(manifest, _needed(live, state))
        state.commit = manifest
        if cut.number % TRIM_EVERY == 0:
            trim()
        return manifest

    def _store_parts(self, state: LearnerState) -> dict[str, PartRef]:
        own = state.own_parts(self._group.rank)
        mine = {name: self._store_segment(name, part) for name, part in own.items()}
        self._segments = {name: self._segments[name] for name in own}
        if state.replay is not None:
            mine |= state.replay.snapshot()
        if self._group.rank == 0:
            shared = state.shared_parts()
            mine |= {name: self.store.put_part(dump_arrays(part)) for name, part in shared.items()}
        gathered = self._group.gather(
            {
                "name": np.array(list(mine), dtype=object),
                "sha256": np.array([ref.sha256 for ref in mine.values()], dtype=object),
                "size": np.array([ref.size_bytes for ref in mine.values()], dtype=np.int64),
            }
        )
        refs: dict[str, PartRef] = {}
        for rank in gathered:
            for name, sha256, size in zip(rank["name"], rank["sha256"], rank["size"].tolist(), strict=True):
                refs[name] = PartRef(sha256, size)
        return refs

    def _store_segment(self, name: str, part: dict[str, NDArray[Any]]) -> PartRef:
        """Segments never change once they are handed out, so the same arrays are the same part."""
        before = self._segments.get(name)
        if before is None or any(before[0].get(key) is not column for key, column in part.items()):
            before = (part, self.store.put_part(dump_arrays(part)))
        self._segments[name] = before
        return before[1]


def _needed(live: Manifest | None, state: LearnerState) -> set[int]:
    """Commits that stay whatever their age: live, trusted, and the one that may be trusted next."""
    return state.trial.needed | ({live.cut} if live else set())


def conserve(rows: Mapping[str, int], cut: Cut) -> dict[str, int]:
    """The terms of the conservation law as of this cut; TrainingError where they do not add up.

    ``rows`` counts, by fate, the rows of all cuts so far.
    """
    counters = {
        "events_in": cut.events_in,
        "trained_once": rows["trained"],
        "held_out": rows["held_out"],
        "duplicate": rows["duplicate"] + cut.duplicate,
        "quarantined": rows["quarantined"] + cut.quarantined - cut.released,
        "late_set_aside": rows["late_set_aside"],
        "capped": rows["capped"],
        "reverted": rows["reverted"],
        "deferred": rows["deferred"],
        "pending": cut.pending,
    }
    accounted = sum(counters.values()) - counters["events_in"]
    if accounted != counters["events_in"]:
        raise TrainingError(
            f"cut {cut.number} does not add up: {counters['events_in']} events came in, {accounted} are accounted for "
            f"({counters}). Nothing was committed; the store is as it was"
        )
    return counters
