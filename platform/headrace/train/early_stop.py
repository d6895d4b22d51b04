"""Early stop: a part of an increment's examples is held back from the steps, and says when there have been enough.

After every pass the model alone is asked for the held targets, over all items that are scored. When their Recall@20 has
not risen for ``patience`` passes, weights and optimizer go back to the best one. Ranks sum their hits, so all decide
alike. Counters, history and replay get the held examples as any others.

By session, what is measured is what will be asked. By prefix, as the ADER protocol has it (arXiv 2007.12000), other
prefixes of the same session are trained on, so that recall goes on rising while the model learns them by heart.
Shape legend: Q queries, R = Q + 1 offsets, T targets, E scored items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.config.methods import EarlyStopConfig
from headrace.evaluation.metrics import recall
from headrace.inputs.contexts import Contexts, offsets
from headrace.inputs.examples import Examples
from headrace.methods.base import PriorOf
from headrace.models.base import RecallModel
from headrace.models.build import Parts
from headrace.recommend.block import rank
from headrace.recommend.encode import answering, encode
from headrace.recommend.votes import MISS
from headrace.records import hash64_array
from headrace.train.group import Group
from headrace.train.step import TrainStep

_BLOCK = 128
"""Queries scored at once."""
_recall = recall(20)


def hold_out(examples: Examples, config: EarlyStopConfig, seed: int) -> tuple[Examples, Examples]:
    """The examples to train on, and those that validate, the same in every later increment.

    By session it is that of an example's last question: where contexts are a user's, all of it goes with that.
    """
    match config.split:
        case "session":
            draw_S = hash64_array(examples.contexts.session_Q, seed, "validation")
        case "prefix":
            first_S = np.searchsorted(examples.sequence_T, np.arange(len(examples)))
            shard_S = hash64_array(examples.shard_T[first_S], seed, "validation")
            draw_S = hash64_array(shard_S ^ examples.row_T[first_S].astype(np.uint64), seed, "validation row")
    held_S = (draw_S >> np.uint64(11)).astype(np.float64) * 2.0**-53 < config.share
    return examples.take(np.flatnonzero(~held_S)), examples.take(np.flatnonzero(held_S))


@dataclass(frozen=True)
class Validation:
    """This rank's held queries, as the model is asked them. Made by ``validation``."""

    contexts: Contexts
    offset_R: NDArray[np.int64]
    column_T: NDArray[np.int64]
    """The targets among the items scored; -1: not among them, a miss."""
    slot_I: NDArray[np.int64]
    slot_E: torch.Tensor
    """Rows of the items scored, ascending."""
    prior: PriorOf | None

    def recall_sum(self, model: RecallModel) -> float:
        """Recall@20, summed over the queries."""
        rank_T = np.full(len(self.column_T), MISS, dtype=np.int64)
        query_T = np.repeat(np.arange(len(self.contexts)), np.diff(self.offset_R))
        longest = int(self.contexts.length_Q.max(initial=1))
        with answering(model):
            query_QD = model.query_side(encode(model, self.contexts, self.slot_I, longest))
            items_ED = model.item_side(model.table.vectors(self.slot_E))
            for first in range(0, len(self.contexts), _BLOCK):
                logits_QE = query_QD[first : first + _BLOCK] @ items_ED.T
                if self.prior is not None:
                    index_Q = np.arange(first, first + len(logits_QE))
                    self.prior(self.contexts.take(index_Q)).add_(logits_QE)
                begin, end = self.offset_R[first], self.offset_R[first + len(logits_QE)]
                index_T = begin + np.flatnonzero(self.column_T[begin:end] >= 0)
                rank_T[index_T] = rank(logits_QE, query_T[index_T] - first, self.column_T[index_T])
        return float(_recall(rank_T, self.offset_R).sum())


def validation(
    held: Examples,
    column_T: NDArray[np.int64],
    slot_I: NDArray[np.int64],
    slot_E: torch.Tensor,
    prior: PriorOf | None,
    reads_empty: bool = False,
) -> Validation:
    """The queries of these examples, whose contexts hold no item without a row: one for each position asked at.

    ``column_T`` are their targets among the items scored, whose rows are ``slot_E``. ``reads_empty``: the model has an
    answer where nothing had happened before, too.
    """
    # a row that is a target of earlier sessions' questions, too, stands first where it will be asked
    row_T = np.stack([held.sequence_T, held.shard_T, held.row_T], axis=1)
    own_T = np.sort(np.unique(row_T, axis=0, return_index=True)[1])
    has_past_T = held.position_T[own_T] < held.contexts.length_Q[held.sequence_T[own_T]]
    asked_T = own_T[has_past_T | reads_empty]
    place_TP = np.stack([held.sequence_T[asked_T], held.position_T[asked_T]], axis=1)
    is_first_T = np.ones(len(asked_T), dtype=np.bool_)
    is_first_T[1:] = (place_TP[1:] != place_TP[:-1]).any(axis=1)
    first_Q = np.flatnonzero(is_first_T)
    offset_R = offsets(np.diff(np.append(first_Q, len(asked_T))))
    return Validation(held.contexts_of(asked_T[first_Q]), offset_R, column_T[asked_T], slot_I, slot_E, prior)


class EarlyStop:
    """Watches the passes of one increment; the same on every rank."""

    def __init__(self, config: EarlyStopConfig, queries: Validation, group: Group) -> None:
        self._config, self._queries, self._group = config, queries, group
        self.num_queries = int(self._sum(len(queries.contexts)))
        """Over all ranks."""
        self.recalls: list[float] = []
        """Recall@20 after each pass."""
        self._best: Parts = {}

    @property
    def best_epoch(self) -> int:
        """The pass after which recall was highest, the earliest of several, counted from 1; 0 before the first."""
        return 1 + int(np.argmax(self.recalls)) if self.recalls else 0

    @property
    def is_over(self) -> bool:
        """Whether there have been enough passes."""
        epochs = len(self.recalls)
        return epochs >= self._config.max_epochs or epochs - self.best_epoch >= self._config.patience

    def see(self, step: TrainStep) -> None:
        """Runs after every pass, on every rank."""
        self.recalls.append(self._sum(self._queries.recall_sum(step.model)) / self.num_queries)
        if self.best_epoch == len(self.recalls):
            self._best = step.snapshot()

    def take_best(self, step: TrainStep) -> None:
        """Runs after the last pass: the step is as it was after the best one."""
        if self.best_epoch < len(self.recalls):
            step.rewind(self._best)

    def state(self) -> Parts:
        """All that it has seen, for ``load``."""
        return {"seen": {"recalls": np.array(self.recalls)}} | {
            f"best/{name}": part for name, part in self._best.items()
        }

    def load(self, parts: Parts) -> None:
        """Go on from what ``state`` gave."""
        self.recalls = [float(value) for value in parts["seen"]["recalls"]]
        self._best = {name.removeprefix("best/"): part for name, part in parts.items() if name != "seen"}

    def _sum(self, value: float) -> float:
        gathered = self._group.gather({"validation": np.array([value], dtype=np.float64)})
        return float(sum(part["validation"][0] for part in gathered))
