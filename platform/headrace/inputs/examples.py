"""Training examples: contexts with the targets that they should have predicted.

One shape serves both ways to train: with prefixes, every target has a context of its own and sits at its end
(position 0); in one pass over whole sessions a context holds many targets, each at the position that may predict it.
Shape legend: S sequences, T targets (flat).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headrace.inputs.contexts import Contexts, has_row


@dataclass(frozen=True)
class Examples:
    """S contexts and T targets, sorted by sequence. Made by ``inputs/``, read by the training loop and by replay."""

    contexts: Contexts
    sequence_T: NDArray[np.int64]
    """The context that predicts the target; ascending."""
    position_T: NDArray[np.int64]
    """Where in it, counted back from its newest event (0)."""
    target_T: NDArray[np.int64]
    """Item numbers."""
    weight_T: NDArray[np.float32]
    ts_T: NDArray[np.int64]
    shard_T: NDArray[np.int64]
    row_T: NDArray[np.int64]
    level_T: NDArray[np.int8] | None = None
    """The strongest of ``objective.levels`` that the target's row shows; None: there are no levels."""

    def __len__(self) -> int:
        return len(self.contexts)

    def take(self, index_B: NDArray[np.integer]) -> "Examples":
        """The sequences ``index_B`` with their targets, renumbered."""
        first_S = np.searchsorted(self.sequence_T, index_B, side="left")
        count_S = np.searchsorted(self.sequence_T, index_B, side="right") - first_S
        begin_S = np.concatenate([[0], np.cumsum(count_S)])
        flat_T = np.arange(begin_S[-1]) + np.repeat(first_S - begin_S[:-1], count_S)
        return self.pick(flat_T, self.contexts.take(index_B), np.repeat(np.arange(len(index_B)), count_S))

    def targets(self, index_B: NDArray[np.integer]) -> "Examples":
        """These targets alone, ascending, and the sequences that have some of them."""
        kept_S, sequence_B = np.unique(self.sequence_T[index_B], return_inverse=True)
        return self.pick(index_B, self.contexts.take(kept_S), sequence_B)

    def pick(self, index_B: NDArray[np.integer], contexts: Contexts, sequence_B: NDArray[np.int64]) -> "Examples":
        """These targets, in this order, as targets of other contexts."""
        return Examples(
            contexts,
            sequence_B,
            self.position_T[index_B],
            self.target_T[index_B],
            self.weight_T[index_B],
            self.ts_T[index_B],
            self.shard_T[index_B],
            self.row_T[index_B],
            None if self.level_T is None else self.level_T[index_B],
        )

    def contexts_of(self, index_B: NDArray[np.integer]) -> Contexts:
        """A context for each of these targets, which ends with the event that predicts it; none may be beyond it."""
        return self.contexts.before(self.sequence_T[index_B], self.position_T[index_B])

    def known(self, slot_I: NDArray[np.int64]) -> "Examples":
        """The same without context items that have no row; sequences whose contexts this empties are left out."""
        contexts = self.contexts
        keep_T = has_row(contexts.item_T, slot_I)
        if keep_T.all():
            return self
        kept_before = np.concatenate([[0], np.cumsum(keep_T)])
        start_T, end_T = contexts.offset_R[self.sequence_T], contexts.offset_R[self.sequence_T + 1]
        position_T = kept_before[end_T] - kept_before[np.maximum(end_T - self.position_T, start_T)]
        known = replace(self, contexts=contexts.known(slot_I), position_T=position_T)
        return known.take(np.flatnonzero((known.contexts.length_Q > 0) | (contexts.length_Q == 0)))


def plan_batches(shape_S: NDArray[np.int64], batch: int, draw: np.random.Generator) -> list[NDArray[np.int64]]:
    """One pass in batches of (nearly) equal shape, so that next to nothing is padded; members and order are drawn."""
    shuffled_S = draw.permutation(len(shape_S))
    sorted_S = shuffled_S[np.argsort(shape_S[shuffled_S], kind="stable")]
    batches = [sorted_S[start : start + batch] for start in range(0, len(sorted_S), batch)]
    return [batches[index] for index in draw.permutation(len(batches))]
