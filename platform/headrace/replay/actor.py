"""Replay as one Ray actor that all ranks share, and each rank's client of it.

The actor keeps nothing that the store does not have: it is owned by whoever starts the run, and when it dies, Ray
starts it empty (``max_restarts``). A client then restores its rank from the parts of the last commit, makes the calls
since then once more, and asks again for the batches that it had in flight. They are equal to the byte, since a batch
depends on the buffer and its key alone, whatever the order in which ranks ask.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError, RayActorError

from headrace.clock import monotonic_s
from headrace.errors import HeadraceError, TrainingError
from headrace.inputs.examples import Examples
from headrace.replay.client import Held, LocalReplay, Refs, ReplaySpec
from headrace.store.store import PartRef

Call = Callable[[Any], Any]
"""From an actor's handle to the reference of its answer."""

_RETRY_S = 0.25
_GIVE_UP_S = 60.0


class UnknownRankError(HeadraceError):
    """The actor has restarted, and this rank has not been restored yet. Made by the actor, met by its client."""


class ReplayActor:
    """The actor: a ``LocalReplay`` for each rank."""

    def __init__(self, spec: ReplaySpec) -> None:
        self._spec = spec
        self._ranks: dict[int, LocalReplay] = {}

    def restore(self, rank: int, refs: Refs, world: int) -> None:
        """Begin a rank from these parts, whatever there was of it."""
        replay = LocalReplay(self._spec, rank)
        replay.restore(refs, world)
        self._ranks[rank] = replay

    def drop(self, rank: int, cuts: Collection[int]) -> None:
        """See ``Replay``; so for all that follow."""
        self._of(rank).drop(cuts)

    def sample(self, rank: int, increment: int, step: int, size: int) -> Examples:
        """One batch."""
        return self._of(rank).sample(increment, step, size)

    def stage(
        self,
        rank: int,
        cut: int,
        examples: Examples,
        group_S: NDArray[np.uint8],
        order_S: NDArray[np.float32] | None,
    ) -> None:
        """The arrays are views of Ray's memory; staging copies them."""
        self._of(rank).stage(cut, examples, group_S, order_S)

    def admit(self, rank: int, cut: int) -> None:
        """Let the stage be drawn."""
        self._of(rank).admit(cut)

    def revert(self, rank: int) -> None:
        """Drop the stage."""
        self._of(rank).revert()

    def snapshot(self, rank: int) -> dict[str, PartRef]:
        """Store what changed."""
        return self._of(rank).snapshot()

    def held(self, rank: int) -> Held:
        """How much there is."""
        return self._of(rank).held()

    def _of(self, rank: int) -> LocalReplay:
        if rank not in self._ranks:
            raise UnknownRankError(f"replay of rank {rank} was not restored since the actor started")
        return self._ranks[rank]


def start_actor(spec: ReplaySpec, max_restarts: int = 3, labels: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 (a handle of Ray's)
    """The actor of a run, on a node with these labels; it lives as long as a handle of its owner's does."""
    options = {
        "num_cpus": 0,
        "max_restarts": max_restarts,
        "max_task_retries": 0,
        "label_selector": dict(labels or {}),
    }
    return ray.remote(**options)(ReplayActor).remote(spec)


class RemoteReplay:
    """A rank's client of the actor; the same protocol, and the same answers, as ``LocalReplay``.

    TrainingError where the actor stays away for a minute, or has used up its restarts.
    """

    def __init__(self, spec: ReplaySpec, rank: int, actor: Any) -> None:  # noqa: ANN401 (a handle of Ray's)
        self.waited_s = 0.0
        self._spec = spec
        self._rank = rank
        self._actor = actor
        self._refs: Refs = {}
        self._world = spec.world
        self._since: list[Call] = []  # changes that came after ``_refs``

    def restore(self, refs: Refs, world: int) -> None:
        """See ``Replay``."""
        self._refs, self._world, self._since = dict(refs), world, []
        self._recover()

    def drop(self, cuts: Collection[int]) -> None:
        """See ``Replay``."""
        self._change(lambda actor: actor.drop.remote(self._rank, cuts))

    def batches(self, increment: int, sizes: Sequence[int], first_step: int = 0) -> Iterator[Examples]:
        """See ``Replay``; the first few are asked for at once."""
        asked: deque[Any] = deque()
        self._ask_ahead(asked, increment, sizes, first_step, 0)
        return self._answers(asked, increment, sizes, first_step)

    def stage(
        self, cut: int, examples: Examples, group_S: NDArray[np.uint8], order_S: NDArray[np.float32] | None = None
    ) -> None:
        """See ``Replay``."""
        self._change(lambda actor: actor.stage.remote(self._rank, cut, examples, group_S, order_S))

    def admit(self, cut: int) -> None:
        """See ``Replay``."""
        self._change(lambda actor: actor.admit.remote(self._rank, cut))

    def revert(self) -> None:
        """See ``Replay``."""
        self._change(lambda actor: actor.revert.remote(self._rank))

    def snapshot(self) -> dict[str, PartRef]:
        """See ``Replay``."""
        parts: dict[str, PartRef] = self._ask(lambda actor: actor.snapshot.remote(self._rank))
        self._refs, self._world = {name.removeprefix("replay/"): ref for name, ref in parts.items()}, self._spec.world
        self._since = []
        return parts

    def held(self) -> Held:
        """See ``Replay``."""
        held: Held = self._ask(lambda actor: actor.held.remote(self._rank))
        return held

    def _ask_ahead(self, asked: deque[Any], increment: int, sizes: Sequence[int], first_step: int, place: int) -> None:
        """Top up the requests in flight, of which the first is for ``place``."""
        for ahead in range(place + len(asked), min(place + self._spec.config.in_flight, len(sizes))):
            asked.append(self._actor.sample.remote(self._rank, increment, first_step + ahead, sizes[ahead]))

    def _answers(self, asked: deque[Any], increment: int, sizes: Sequence[int], first_step: int) -> Iterator[Examples]:
        place = 0
        while place < len(sizes):
            began_s = monotonic_s()
            self._ask_ahead(asked, increment, sizes, first_step, place)
            try:
                batch = ray.get(asked.popleft())
            except (RayActorError, UnknownRankError):
                asked.clear()
                self._recover()
                continue
            finally:
                self.waited_s += monotonic_s() - began_s
            place += 1
            yield batch

    def _change(self, call: Call) -> None:
        self._ask(call)
        self._since.append(call)

    def _ask(self, call: Call) -> Any:  # noqa: ANN401 (whatever the actor answers)
        while True:
            try:
                return ray.get(call(self._actor))
            except (RayActorError, UnknownRankError):
                self._recover()

    def _recover(self) -> None:
        """Bring the actor's buffer of this rank to where this client left it; waits while Ray restarts the actor."""
        began_s, deaths = monotonic_s(), 0
        while True:
            try:
                ray.get(self._actor.restore.remote(self._rank, self._refs, self._world))
                for call in self._since:
                    ray.get(call(self._actor))
                return
            except (RayActorError, UnknownRankError) as error:
                deaths = deaths + 1 if isinstance(error, ActorDiedError) else 0
                if deaths > 2 or monotonic_s() - began_s > _GIVE_UP_S:
                    raise TrainingError(
                        f"the replay actor is gone ({error}); training can start again from the newest commit. If it "
                        "ran out of memory, lower replay.max_bytes"
                    ) from error
                time.sleep(_RETRY_S)
