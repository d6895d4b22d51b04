"""Columns back into one: a single column learns to answer as all of them do (distillation, arXiv 1503.02531).

It begins with the columns' weights, mixed as their answers are. The item table stays as it is, so that equal queries
give equal answers whatever the items, and queries are compared, at a cost that does not depend on the catalogue. The
loss is the squared distance of the queries over the squared norm of what was to be answered: 0, nothing is lost.

Which step an example belongs to is drawn by where its row lies, and gradients are summed over ranks, so that the number
of ranks changes nothing. Shape legend: B examples of a batch, T targets, D width, K steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.config.methods import ProgressiveConfig
from headrace.inputs.contexts import Contexts, concatenate, pad
from headrace.inputs.examples import Examples
from headrace.methods.base import Learned
from headrace.models.base import RecallModel
from headrace.models.columns import merged
from headrace.models.sasrec import SasRec
from headrace.records import hash64, hash64_array

_BATCH = 256
"""Examples a step, about, over all ranks."""
_TINY = 1e-12


@dataclass(frozen=True)
class Consolidated:
    """What it cost and what it lost, alike on every rank. Made here, read by methods/progressive.py."""

    steps: int
    loss_before: float
    """Of the mixed weights."""
    loss: float
    """Of the column that is left."""


def consolidate(model: RecallModel, learned: Learned, config: ProgressiveConfig) -> Consolidated | None:
    """Put one column in the place of all; every rank calls it. None, and nothing done, where there are no examples."""
    assert isinstance(model.encoder, SasRec)
    asked = _Asked.of(learned)
    total = _summed(learned, [float(asked.weight_T.sum(dtype=np.float64)), float(len(asked.weight_T))])
    if not total[0] > 0.0:
        return None
    was_training = model.training
    model.eval()
    told_TD = torch.zeros(len(asked.weight_T), model.table.width).to(model.table.weight)
    with torch.no_grad():
        for index_B in _by_length(asked.contexts):
            told_TD[torch.from_numpy(index_B).to(told_TD.device)] = asked.answers(model, model.encoder, index_B)
    student = merged(model.encoder)
    before = _loss(model, student, asked, told_TD, learned)
    _learn(model, student, asked, told_TD, learned, max(1, round(float(total[1]) / _BATCH)), config)
    after = _loss(model, student, asked, told_TD, learned)
    model.encoder = student
    model.train(was_training)
    return Consolidated(config.consolidate_steps, before / float(total[0]), after / float(total[0]))


@dataclass(frozen=True)
class _Asked:
    """This rank's examples, each with a context of its own, which is not empty."""

    contexts: Contexts
    weight_T: NDArray[np.float32]
    place_T: NDArray[np.uint64]
    """A hash of where the target's row lies."""
    slot_I: NDArray[np.int64]

    @classmethod
    def of(cls, learned: Learned) -> "_Asked":
        """New ones, and replayed ones."""
        parts = [learned.examples] if learned.replayed is None else [learned.examples, learned.replayed]
        chosen = [_with_context(part) for part in parts]
        contexts = concatenate([part.contexts_of(index) for part, index in zip(parts, chosen, strict=True)])
        weights = [part.weight_T[index] for part, index in zip(parts, chosen, strict=True)]
        places = [_place(part)[index] for part, index in zip(parts, chosen, strict=True)]
        return cls(contexts, np.concatenate(weights), np.concatenate(places), learned.slot_I)

    def answers(self, model: RecallModel, encoder: nn.Module, index_B: NDArray[np.int64]) -> Tensor:
        """The query vectors ``(B, D)`` of this encoder, as they enter the product that gives logits."""
        inputs = pad(self.contexts.take(index_B), self.slot_I)
        item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL).to(model.table.weight.device)).detach()
        row_B = torch.arange(len(index_B))
        return model.query_side(encoder(inputs, item_BLD, row_B, torch.zeros_like(row_B)))

    def distance(self, model: RecallModel, student: nn.Module, told_TD: Tensor, index_B: NDArray[np.int64]) -> Tensor:
        """The undivided loss of these examples."""
        told_BD = told_TD[torch.from_numpy(index_B).to(told_TD.device)]
        away_B = (self.answers(model, student, index_B) - told_BD).square().sum(1)
        weight_B = torch.from_numpy(self.weight_T[index_B]).to(told_TD)
        return (away_B / told_BD.square().sum(1).clamp(min=_TINY)) @ weight_B


def _learn(
    model: RecallModel,
    student: SasRec,
    asked: _Asked,
    told_TD: Tensor,
    learned: Learned,
    per_epoch: int,
    config: ProgressiveConfig,
) -> None:
    """Steps of Adam, which begins afresh: its rate falls to zero, so that it comes to rest."""
    num_steps = config.consolidate_steps
    parameters = list(student.parameters())
    flat = torch.zeros(sum(value.numel() for value in parameters)).to(told_TD)
    start = 0
    for value in parameters:
        value.grad = flat[start : start + value.numel()].view_as(value)
        start += value.numel()
    adam = torch.optim.Adam(parameters, lr=config.consolidate_learning_rate, fused=True)
    for begin in range(0, num_steps, per_epoch):
        step_T = _steps(asked, learned, begin, per_epoch)
        weight_K = np.bincount(step_T, asked.weight_T, per_epoch)[: num_steps - begin]
        total_K = _summed(learned, weight_K.tolist()).tolist()
        for step, total in enumerate(total_K):
            adam.param_groups[0]["lr"] = config.consolidate_learning_rate * (1.0 - (begin + step) / num_steps)
            flat.zero_()
            if len(index_B := np.flatnonzero(step_T == step)):
                (asked.distance(model, student, told_TD, index_B) / total).backward()
            learned.sum_(flat)
            if total > 0.0:
                adam.step()
    for value in parameters:
        value.grad = None


def _loss(model: RecallModel, student: nn.Module, asked: _Asked, told_TD: Tensor, learned: Learned) -> float:
    """The undivided loss of all ranks' examples."""
    with torch.no_grad():
        parts = [asked.distance(model, student, told_TD, index_B) for index_B in _by_length(asked.contexts)]
    return float(_summed(learned, [float(sum(float(part) for part in parts))])[0])


def _by_length(contexts: Contexts) -> Iterator[NDArray[np.int64]]:
    """All examples in batches, of nearly equal length."""
    order_T = np.argsort(contexts.length_Q, kind="stable")
    for start in range(0, len(order_T), _BATCH):
        yield order_T[start : start + _BATCH]


def _with_context(examples: Examples) -> NDArray[np.int64]:
    """The targets that weigh something and have a context."""
    length_T = examples.contexts.length_Q[examples.sequence_T]
    return np.flatnonzero((examples.weight_T > 0.0) & (examples.position_T < length_T))


def _place(examples: Examples) -> NDArray[np.uint64]:
    return hash64_array(hash64_array(examples.shard_T, "shard") ^ examples.row_T.astype(np.uint64), "row")


def _steps(asked: _Asked, learned: Learned, begin: int, per_epoch: int) -> NDArray[np.int64]:
    """The step of each example in the epoch that begins with this step."""
    drawn_T = hash64_array(asked.place_T, hash64(learned.seed, "consolidate", learned.increment, begin))
    share_T = (drawn_T >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (share_T * per_epoch).astype(np.int64)


def _summed(learned: Learned, values: list[float]) -> Tensor:
    """Over all ranks."""
    total = torch.tensor(values, dtype=torch.float64, device=learned.device)
    learned.sum_(total)
    return total
