"""What the training loop asks of replay, and the buffer that answers in the loop's own process.

The calls of an increment, in this order: ``drop`` where the learner went back, ``batches`` while it trains, ``stage``
what it has trained, then ``admit`` or ``revert`` by the verdict, and ``snapshot`` for the commit. All ranks make them
alike, each with its own examples; ``restore`` comes first, once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.config.methods import ReplayBufferConfig
from headrace.errors import StoreError
from headrace.inputs.examples import Examples
from headrace.replay.buffer import INDEX, Buffer
from headrace.replay.packed import pack
from headrace.replay.policy import build_policy
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.store.store import PartRef, Store

Refs = Mapping[str, PartRef]
"""Parts of a snapshot: "0000/index", "0000/00000012", ..: rank, then the buffer's name for it."""


@dataclass(frozen=True)
class ReplaySpec:
    """One run's replay. Made by whoever starts it, read by every client and by the actor."""

    config: ReplayBufferConfig
    seed: int
    world: int
    store_uri: str
    """Absolute where it is a path: the actor has a working directory of its own."""


@dataclass(frozen=True)
class Held:
    """What one rank's buffer holds. Made by clients, read by reports."""

    num_examples: int
    """That can be drawn."""
    size_bytes: int
    """Marked and staged ones included."""


class Replay(Protocol):
    """One rank's replay, wherever it is kept. Answers depend on nothing but the calls made before."""

    waited_s: float
    """How long callers have waited for batches so far; for reports."""

    def restore(self, refs: Refs, world: int) -> None:
        """Runs before anything else: become what a commit's parts say (the manifest's folder "replay"); none: empty.

        ``world`` ranks wrote them. Where that is another number than now, all ranks' parts must be there, and this
        rank's key groups are dealt out to it. StoreError where parts are missing.
        """
        ...

    def drop(self, cuts: Collection[int]) -> None:
        """Runs when the learner goes back to an earlier commit: examples of these cuts are not drawn from now on."""
        ...

    def batches(self, increment: int, sizes: Sequence[int], first_step: int = 0) -> Iterator[Examples]:
        """Runs while training: for each size a batch of the past, step by step; without examples where there are none.

        Batch i is a pure function of what the last commit admitted and of (increment, first_step + i, rank). None of
        this increment's examples is in it. Each draw is in proportion to the policy's weight, nearly without
        replacement within a batch, and independent from batch to batch.
        """
        ...

    def stage(
        self, cut: int, examples: Examples, group_S: NDArray[np.uint8], order_S: NDArray[np.float32] | None = None
    ) -> None:
        """Runs after training: hold a cut's examples, with the key group of each, until its verdict.

        ``order_S``: which of an item's examples stand best for all of them (replay/herding.py).
        """
        ...

    def admit(self, cut: int) -> None:
        """Runs on the verdicts publish and hold, before the snapshot: the stage may be drawn from now on."""
        ...

    def revert(self) -> None:
        """Runs on the verdict reject, in place of ``admit``: drops the stage, and takes ``drop`` back."""
        ...

    def snapshot(self) -> dict[str, PartRef]:
        """Runs in the commit: this rank's parts, all of them in the store; those that did not change are not written.

        The names begin with "replay/", as they stand in a manifest.
        """
        ...

    def held(self) -> Held:
        """How much there is."""
        ...


class LocalReplay:
    """A rank's replay in its own process; also what the actor keeps of each rank."""

    def __init__(self, spec: ReplaySpec, rank: int) -> None:
        self.waited_s = 0.0
        self._spec = spec
        self._rank = rank
        self._store = Store(spec.store_uri)
        self._buffer = self._fresh()
        self._stored: dict[str, tuple[dict[str, NDArray[Any]], PartRef]] = {}

    def restore(self, refs: Refs, world: int) -> None:
        """See ``Replay``."""
        self._buffer, self._stored = self._fresh(), {}
        if not refs:
            return
        if world == self._spec.world:
            parts = self._read(refs, self._rank)
            self._buffer.load(parts)
            own = f"{self._rank:04d}"
            now = self._buffer.parts()
            self._stored = {name: (now[name], refs[f"{own}/{name}"]) for name in parts if name in now and name != INDEX}
        else:
            ranks = [self._read(refs, rank) for rank in range(world)]
            self._buffer.deal(ranks, self._rank, self._spec.world)

    def drop(self, cuts: Collection[int]) -> None:
        """See ``Replay``."""
        self._buffer.drop(cuts)

    def batches(self, increment: int, sizes: Sequence[int], first_step: int = 0) -> Iterator[Examples]:
        """See ``Replay``."""
        for step, size in enumerate(sizes, first_step):
            yield self.sample(increment, step, size)

    def sample(self, increment: int, step: int, size: int) -> Examples:
        """One batch of ``batches``."""
        return self._buffer.sample(increment, step, self._rank, size)

    def stage(
        self, cut: int, examples: Examples, group_S: NDArray[np.uint8], order_S: NDArray[np.float32] | None = None
    ) -> None:
        """See ``Replay``."""
        self._buffer.stage(pack(examples, group_S, cut, order_S), cut)

    def admit(self, cut: int) -> None:
        """See ``Replay``."""
        self._buffer.admit(cut)

    def revert(self) -> None:
        """See ``Replay``."""
        self._buffer.revert()

    def snapshot(self) -> dict[str, PartRef]:
        """See ``Replay``."""
        parts, stored = self._buffer.parts(), {}
        for name, part in parts.items():
            before = self._stored.get(name)
            unchanged = before is not None and all(before[0].get(key) is column for key, column in part.items())
            stored[name] = before if before and unchanged else (part, self._store.put_part(dump_arrays(part)))
        self._stored = stored
        return {f"replay/{self._rank:04d}/{name}": ref for name, (_, ref) in stored.items()}

    def held(self) -> Held:
        """See ``Replay``."""
        return Held(len(self._buffer), self._buffer.size_bytes)

    def _fresh(self) -> Buffer:
        config, seed = self._spec.config, self._spec.seed
        policy = build_policy(config.policy, seed)
        return Buffer(policy, config.max_bytes // self._spec.world, config.segment_bytes, seed)

    def _read(self, refs: Refs, rank: int) -> dict[str, dict[str, NDArray[Any]]]:
        own = f"{rank:04d}/"
        parts = {name.removeprefix(own): ref for name, ref in refs.items() if name.startswith(own)}
        if not parts:
            raise StoreError(f"no parts of rank {rank} among the commit's replay parts {sorted(refs)}")
        return {name: load_arrays(self._store.get_part(ref)) for name, ref in parts.items()}
