"""Forgetting in a stream: held-out queries of past increments, asked again and again while the learner learns on.

Held-out rows are never trained, and few: they wait until there are enough for a group, an *anchor*. At most ten anchors
are kept, spread over the whole run: whenever there are more, every other one goes. One is asked after each increment,
in turn, so that a few queries an increment draw the matrix of scores (anchor by increment). Figures as in Chaudhry et
al. (arXiv 1801.10112) and Lopez-Paz and Ranzato (arXiv 1706.08840). All of it is state, alike on every rank.
Shape legend: Q queries of all anchors and of those that wait, R = Q + 1 offsets, T targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.inputs import contexts as inputs
from headrace.inputs.contexts import Contexts, offsets, ranges

SIZE = 32
"""Queries of an anchor: what a recommender scores at once."""
_MOST = 10


@dataclass(frozen=True)
class Score:
    """R@20 of one voter on one anchor, over time."""

    first: float
    """Just after the increment that completed the anchor."""
    newest: float
    best_before: float | None = None
    """The best one before the newest; None while there is only one."""

    def then(self, newest: float) -> "Score":
        """With one more."""
        best = self.newest if self.best_before is None else max(self.best_before, self.newest)
        return Score(self.first, newest, best)


@dataclass(frozen=True)
class Anchor:
    """``SIZE`` held-out queries. Kept in the commit's facts."""

    cut: int
    """The cut whose rows completed it."""
    serial: int
    """How many were completed before it, kept or not."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """By voter."""


@dataclass(frozen=True)
class Held:
    """Held-out queries and their targets."""

    contexts: Contexts
    target_T: NDArray[np.int64]
    offset_R: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.contexts)

    @classmethod
    def none(cls) -> "Held":
        """No queries."""
        number, key, none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int16)
        contexts = Contexts(number, number, none, offsets(number), number, key, number)
        return cls(contexts, number, offsets(number))

    def take(self, index_B: NDArray[np.integer]) -> "Held":
        """These, in this order."""
        length_B = np.diff(self.offset_R)[index_B]
        target_T = self.target_T[ranges(self.offset_R[:-1][index_B], length_B)]
        return Held(self.contexts.take(index_B), target_T, offsets(length_B))

    @classmethod
    def joined(cls, parts: Sequence["Held"]) -> "Held":
        """All of these, in this order."""
        return cls(
            inputs.concatenate([part.contexts for part in parts]),
            np.concatenate([part.target_T for part in parts]),
            offsets(np.concatenate([np.diff(part.offset_R) for part in parts])),
        )


@dataclass(frozen=True)
class Anchors:
    """All anchors of a run so far. State; part of it is arrays, part facts."""

    anchors: tuple[Anchor, ...] = ()
    held: Held = field(default_factory=Held.none)
    """The queries of the anchors, ``SIZE`` each, then those that wait."""
    completed: int = 0
    stride: int = 1
    """Of those completed, every so many-th is kept."""

    def add(self, new: Held, cut: int) -> "Anchors":
        """Runs after each increment with its held-out queries: at most one anchor comes of it."""
        held = Held.joined([self.held, new])
        ends = SIZE * len(self.anchors)
        if len(held) - ends < SIZE:
            return replace(self, held=held)
        made = replace(self, completed=self.completed + 1, held=held.take(np.arange(ends + SIZE)))
        if self.completed % self.stride:
            return replace(made, held=held.take(np.arange(ends)))
        made = replace(made, anchors=(*self.anchors, Anchor(cut, self.completed)))
        return made if len(made.anchors) <= _MOST else made._thinned()

    def due(self, cut: int) -> int | None:
        """The anchor that is asked after this increment: a new one at once, else each in turn; None: there is none."""
        if not self.anchors:
            return None
        newest = len(self.anchors) - 1
        return cut % len(self.anchors) if self.anchors[newest].scores else newest

    def of(self, index: int) -> Held:
        """An anchor's queries."""
        return self.held.take(np.arange(SIZE * index, SIZE * (index + 1)))

    def noted(self, index: int, score: Mapping[str, float]) -> "Anchors":
        """With what an anchor was answered by each voter."""
        anchor = self.anchors[index]
        before = anchor.scores
        scores = {name: before[name].then(now) if name in before else Score(now, now) for name, now in score.items()}
        kept = (*self.anchors[:index], replace(anchor, scores=scores), *self.anchors[index + 1 :])
        return replace(self, anchors=kept)

    def forgotten(self, voter: str) -> float | None:
        """Average forgetting: the best score before the newest less the newest, mean over anchors that have both."""
        lost = [one.best_before - one.newest for one in self._scores(voter) if one.best_before is not None]
        return float(np.mean(lost)) if lost else None

    def transferred(self, voter: str) -> float | None:
        """Backward transfer: the newest score less the first, mean over the same anchors."""
        gained = [one.newest - one.first for one in self._scores(voter) if one.best_before is not None]
        return float(np.mean(gained)) if gained else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The queries, as a part of the commit."""
        return {"target": self.held.target_T, "offset": self.held.offset_R, **self.held.contexts.__dict__}

    def state(self) -> dict[str, Any]:
        """The rest, as plain JSON."""
        return {"anchors": [asdict(one) for one in self.anchors], "completed": self.completed, "stride": self.stride}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> "Anchors":
        """What ``state`` and ``arrays`` were taken from."""
        anchors = tuple(
            Anchor(one["cut"], one["serial"], {name: Score(**score) for name, score in one["scores"].items()})
            for one in state["anchors"]
        )
        contexts = Contexts(**{name: array for name, array in arrays.items() if name not in ("target", "offset")})
        return cls(anchors, Held(contexts, arrays["target"], arrays["offset"]), state["completed"], state["stride"])

    def _scores(self, voter: str) -> list[Score]:
        return [one.scores[voter] for one in self.anchors if voter in one.scores]

    def _thinned(self) -> "Anchors":
        """Every other one; nothing waits just now."""
        stride = 2 * self.stride
        kept = [index for index, one in enumerate(self.anchors) if one.serial % stride == 0]
        index_B = np.concatenate([np.arange(SIZE * index, SIZE * (index + 1)) for index in kept])
        return replace(
            self, anchors=tuple(self.anchors[index] for index in kept), held=self.held.take(index_B), stride=stride
        )
