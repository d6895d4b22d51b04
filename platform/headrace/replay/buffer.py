"""One rank's examples of earlier increments: staged by an increment, admitted by its commit, drawn by later ones.

Examples lie in segments that never change; what leaves is only marked, until the segment is rewritten without it. So a
snapshot is the segments, which are stored once, and one small index of who is alive. Small segments merge like a binary
counter. Segments are rewritten when less than half of one is alive, or when room is needed: live examples take at most
three quarters of the budget, so that there is always something to gain. Everything is a pure function of the calls.
Shape legend: N examples of a segment, A alive examples of all segments, B drawn, G segments.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.inputs.examples import Examples
from headrace.records import generator
from headrace.replay.packed import Packed, concatenate, gather
from headrace.replay.policy import Candidates, Policy, draw

Parts = dict[str, dict[str, NDArray[Any]]]

INDEX = "index"
"""The part that says which segments there are, and who is alive in them."""


@dataclass(frozen=True)
class Segment:
    """Examples that were admitted together, or rewritten together."""

    serial: int
    """Its name in snapshots; never used again."""
    packed: Packed
    alive_N: NDArray[np.bool_]
    num_bytes: int
    alive_bytes: int

    def marked(self, alive_N: NDArray[np.bool_]) -> "Segment":
        """With these alive; itself where that is what it has."""
        if np.array_equal(alive_N, self.alive_N):
            return self
        return replace(self, alive_N=alive_N, alive_bytes=int(self.packed.size_N[alive_N].sum()))


@dataclass(frozen=True)
class Stage:
    """Examples of a cut that is not committed yet."""

    cut: int
    packed: Packed
    """Those that will be admitted."""
    num_bytes: int
    keep_A: NDArray[np.bool_]
    """Which of the alive examples, in storage order, will stay beside them."""
    threshold: float
    """Of the policy, from then on."""


@dataclass(frozen=True)
class _Decided:
    keep_old_N: NDArray[np.bool_]
    keep_new_N: NDArray[np.bool_]
    threshold: float


class Buffer:
    """Examples under a byte budget. Staged ones are never drawn; a cut is admitted or its stage dropped, as a whole."""

    def __init__(self, policy: Policy, max_bytes: int, segment_bytes: int, seed: int) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(1, max_bytes // 8))
        self._seed = seed
        self._segments: list[Segment] = []
        self._serial = 0
        self._threshold = math.inf
        self._stage: Stage | None = None
        self._reverted: frozenset[int] = frozenset()
        self._drawable: _Drawable | None = None
        self._index: dict[str, NDArray[Any]] | None = None

    def __len__(self) -> int:
        """Examples that can be drawn."""
        return self._draws().num

    @property
    def size_bytes(self) -> int:
        """Memory held: alive, marked and staged."""
        return sum(segment.num_bytes for segment in self._segments) + (self._stage.num_bytes if self._stage else 0)

    @property
    def alive_bytes(self) -> int:
        """Memory of the examples that are alive."""
        return sum(segment.alive_bytes for segment in self._segments)

    def stage(self, packed: Packed, cut: int) -> None:
        """Hold a cut's examples until ``admit`` or ``revert``; a second stage takes the first one's place.

        Who will stay is decided here, so that only those are held that will be admitted.
        """
        self._stage = None
        old, new = self._candidates(), packed.candidates()
        stays_A = np.concatenate([np.zeros(0, bool), *(self._stays(s)[s.alive_N] for s in self._segments)])
        decided = self._decide(old.take(np.flatnonzero(stays_A)), new, cut)
        packed = packed.take(np.flatnonzero(decided.keep_new_N))
        keep_A = np.zeros(len(old), dtype=bool)
        keep_A[stays_A] = decided.keep_old_N
        self._stage = Stage(cut, packed, int(packed.size_N.sum()), keep_A, decided.threshold)
        self._make_room()

    def admit(self, cut: int) -> None:
        """The cut is being committed: its stage becomes part of the buffer, and dropped cuts leave for good.

        ``cut`` may have no stage: then only the latter happens.
        """
        stage, self._stage = self._stage, None
        if stage is not None:
            assert stage.cut == cut, f"cut {stage.cut} is staged, and cut {cut} is committed"
            self._mark_alive(stage.keep_A)
            self._threshold = stage.threshold
        if self._reverted:
            self._segments = [segment.marked(segment.alive_N & self._stays(segment)) for segment in self._segments]
            self._reverted = frozenset()
        if stage is not None:
            self._append(stage.packed)
        self._tidy()
        self._changed()

    def revert(self) -> None:
        """The increment is rejected: no stage, and cuts dropped since the last ``admit`` are back."""
        self._stage = None
        self._reverted = frozenset()
        self._changed()

    def drop(self, cuts: Collection[int]) -> None:
        """Examples of these cuts (the learner went back before them) are not drawn from now on."""
        self._reverted |= frozenset(cuts)
        self._changed()

    def sample(self, increment: int, step: int, rank: int, size: int) -> Examples:
        """``size`` examples, by the policy's weights, oldest segment first; none where the buffer is empty.

        A pure function of what is admitted and of the key (increment, step, rank). One draw from each of ``size`` equal
        slices of the total weight: nearly without replacement while ``size`` is small against the buffer, every example
        in turn where it is larger.
        """
        drawable = self._draws()
        chosen_B = draw(drawable.end_A, drawable.num, size, generator(self._seed, "replay", increment, step, rank))
        return drawable.take(chosen_B).examples()

    def since(self, first_cut: int) -> Examples:
        """All examples that can be drawn, of this cut and later ones, oldest segment first."""
        drawable = self._draws()
        packed = drawable.take(np.arange(drawable.num))
        return packed.take(np.flatnonzero(packed.records("example")["cut"] >= first_cut)).examples()

    def parts(self) -> Parts:
        """The snapshot: segments by serial number, and "index". The very same arrays wherever nothing changed.

        Staged and pending changes are not in it.
        """
        if self._index is None:
            self._index = {
                "serial": np.array([segment.serial for segment in self._segments], dtype=np.int64),
                "alive": np.concatenate([np.zeros(0, np.uint8), *(np.packbits(s.alive_N) for s in self._segments)]),
                "policy": np.array([self._policy.name], dtype=object),
                "threshold": np.array([self._threshold]),
                "next": np.array([self._serial], dtype=np.int64),
            }
        segments = {_name(segment.serial): segment.packed.arrays for segment in self._segments}
        return {**segments, INDEX: self._index}

    def load(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Go on exactly where ``parts`` was taken, whatever is held now.

        Another policy starts from the examples that are there; a smaller budget is met at once.
        """
        self._segments, self._threshold = self._unpack(parts)
        self._serial = int(parts[INDEX]["next"][0])
        self.revert()
        if self.alive_bytes > self._alive_limit:
            self._shrink(self._newest_cut())
        self._make_room()

    def deal(self, ranks: Sequence[Mapping[str, Mapping[str, NDArray[Any]]]], rank: int, world: int) -> None:
        """Take this rank's key groups out of the snapshots (in rank order) that another number of ranks took."""
        mine, thresholds = [], []
        for parts in ranks:
            segments, threshold = self._unpack(parts)
            thresholds.append(threshold)
            for segment in segments:
                is_mine_N = segment.alive_N & (segment.packed.records("example")["group"] % world == rank)
                mine.append(segment.packed.take(np.flatnonzero(is_mine_N)))
        packed = concatenate(mine)
        example_N = packed.records("example")
        self._segments, self._serial, self._threshold = [], 0, min(thresholds)
        self._append(packed.take(np.lexsort((example_N["group"], example_N["cut"]))))
        self._shrink(self._newest_cut())
        self._tidy()
        self.revert()

    def _unpack(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> tuple[list[Segment], float]:
        """The segments of a snapshot, and the policy's threshold."""
        index, start = parts[INDEX], 0
        segments = []
        for serial in index["serial"].tolist():
            packed = Packed(dict(parts[_name(serial)]))
            stop = start + -(-len(packed) // 8)
            alive_N = np.unpackbits(index["alive"][start:stop], count=len(packed)).astype(bool)
            segments.append(_segment(serial, packed, alive_N))
            start = stop
        same_policy = index["policy"][0] == self._policy.name
        return segments, float(index["threshold"][0]) if same_policy else math.inf

    @property
    def _alive_limit(self) -> int:
        return self._max_bytes * 3 // 4

    def _newest_cut(self) -> int:
        return max((int(segment.packed.records("example")["cut"].max()) for segment in self._segments), default=0)

    def _append(self, packed: Packed) -> None:
        """New segments, of about the recipe's size where there is that much."""
        piece_N = (np.cumsum(packed.size_N) - 1) // self._segment_bytes
        bounds = [0, *(np.flatnonzero(np.diff(piece_N)) + 1).tolist(), len(packed)]
        for start, stop in pairwise(bounds):
            if stop > start:
                piece = packed.take(np.arange(start, stop))
                self._segments.append(_segment(self._next_serial(), piece, np.ones(len(piece), dtype=bool)))

    def _candidates(self) -> Candidates:
        """All alive examples, in storage order."""
        alive = [np.flatnonzero(segment.alive_N) for segment in self._segments]
        return _merge([segment.packed.candidates() for segment in self._segments], alive)

    def _decide(self, old: Candidates, new: Candidates, cut: int) -> "_Decided":
        """Who stays, of all; fewer of the new where there is no room to stage as many beside all that is alive."""
        everyone = _merge([old, new], [np.arange(len(old)), np.arange(len(new))])
        kept = self._policy.keep(everyone, self._alive_limit, self._threshold, cut)
        decided = _Decided(kept.keep_N[: len(old)], kept.keep_N[len(old) :], kept.threshold)
        room = self._max_bytes - self.alive_bytes
        chosen = np.flatnonzero(decided.keep_new_N)
        if int(new.size_N[chosen].sum()) <= room:
            return decided
        fewer = self._policy.keep(new.take(chosen), room, kept.threshold, cut)
        keep_new_N = np.zeros(len(new), dtype=bool)
        keep_new_N[chosen[fewer.keep_N]] = True
        keep_old_N = decided.keep_old_N & self._policy.keep(old, self._alive_limit, fewer.threshold, cut).keep_N
        return _Decided(keep_old_N, keep_new_N, fewer.threshold)

    def _shrink(self, cut: int) -> None:
        """Mark what the policy lets go, so that what is alive takes at most three quarters of the budget."""
        kept = self._policy.keep(self._candidates(), self._alive_limit, self._threshold, cut)
        self._threshold = kept.threshold
        self._mark_alive(kept.keep_N)

    def _mark_alive(self, keep_A: NDArray[np.bool_]) -> None:
        """Of the alive examples, in storage order, these stay."""
        marked, start = [], 0
        for segment in self._segments:
            mark_N = segment.alive_N.copy()
            stop = start + int(mark_N.sum())
            mark_N[segment.alive_N] = keep_A[start:stop]
            marked.append(segment.marked(mark_N))
            start = stop
        self._segments = marked

    def _tidy(self) -> None:
        """Merge the newest segments like a binary counter; rewrite those that are mostly marked; make room."""
        while len(self._segments) > 1 and self._segments[-2].num_bytes < 2 * self._segments[-1].num_bytes:
            if self._segments[-2].alive_bytes + self._segments[-1].alive_bytes > self._segment_bytes:
                break
            self._rewrite(len(self._segments) - 2, len(self._segments))
        while (sparse := next(self._sparse(), None)) is not None:
            self._rewrite_with_neighbour(sparse)
        self._make_room()

    def _sparse(self) -> Iterator[int]:
        return (i for i, segment in enumerate(self._segments) if 2 * segment.alive_bytes < segment.num_bytes)

    def _make_room(self) -> None:
        while self.size_bytes > self._max_bytes:
            marked = [segment.num_bytes - segment.alive_bytes for segment in self._segments]
            assert max(marked, default=0) > 0, "alive and staged examples alone exceed the budget"
            self._rewrite_with_neighbour(int(np.argmax(marked)))

    def _rewrite_with_neighbour(self, index: int) -> None:
        """Rewrite a segment, together with the next or the one before where both fit into one."""
        alive = [segment.alive_bytes for segment in self._segments]
        start, stop = index, index + 1
        if stop < len(alive) and alive[index] + alive[stop] <= self._segment_bytes:
            stop += 1
        elif start > 0 and alive[start - 1] + alive[index] <= self._segment_bytes:
            start -= 1
        self._rewrite(start, stop)

    def _rewrite(self, start: int, stop: int) -> None:
        """One segment (none where nothing is alive) in the place of these."""
        old = self._segments[start:stop]
        packed = gather([segment.packed for segment in old], [np.flatnonzero(segment.alive_N) for segment in old])
        alive_N = np.ones(len(packed), dtype=bool)
        self._segments[start:stop] = [_segment(self._next_serial(), packed, alive_N)] if len(packed) else []
        self._changed()

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial - 1

    def _stays(self, segment: Segment) -> NDArray[np.bool_]:
        return np.isin(segment.packed.records("example")["cut"], sorted(self._reverted), invert=True)

    def _draws(self) -> "_Drawable":
        if self._drawable is None:
            alive = [np.flatnonzero(segment.alive_N & self._stays(segment)) for segment in self._segments]
            packed = [segment.packed for segment in self._segments]
            end_A = None
            if not self._policy.draws_evenly:
                candidates = _merge([segment.candidates() for segment in packed], alive)
                end_A = np.cumsum(self._policy.weights(candidates, self._threshold))
            self._drawable = _Drawable(packed, alive, end_A)
        return self._drawable

    def _changed(self) -> None:
        self._drawable = None
        self._index = None


class _Drawable:
    """Who can be drawn: alive and not dropped, in storage order."""

    def __init__(
        self, packed: Sequence[Packed], alive: Sequence[NDArray[np.int64]], end_A: NDArray[np.float64] | None
    ) -> None:
        self._packed, self._alive = packed, alive
        self._start_G = np.concatenate([[0], np.cumsum([len(index) for index in alive], dtype=np.int64)])
        self.num = int(self._start_G[-1])
        self.end_A = end_A

    def take(self, chosen_B: NDArray[np.int64]) -> Packed:
        """The examples at these places, which ascend."""
        bound_G = np.searchsorted(chosen_B, self._start_G)
        spans = zip(self._alive, pairwise(bound_G.tolist()), self._start_G.tolist(), strict=False)
        rows = [alive[chosen_B[begin:end] - start] for alive, (begin, end), start in spans]
        return gather(self._packed, rows)


def _merge(parts: Sequence[Candidates], index: Sequence[NDArray[np.int64]]) -> Candidates:
    """The candidates at these places of each part, one part after the other."""
    nothing = concatenate([]).candidates()
    pairs = [(nothing, np.zeros(0, dtype=np.int64)), *zip(parts, index, strict=True)]
    names = [column.name for column in fields(Candidates)]
    return Candidates(**{name: np.concatenate([getattr(part, name)[rows] for part, rows in pairs]) for name in names})


def _segment(serial: int, packed: Packed, alive_N: NDArray[np.bool_]) -> Segment:
    size_N = packed.size_N
    return Segment(serial, packed, alive_N, int(size_N.sum()), int(size_N[alive_N].sum()))


def _name(serial: int) -> str:
    return f"{serial:08d}"
