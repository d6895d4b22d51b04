"""Passes over an increment's examples: batches, agreed on by all ranks, through ``TrainStep``.

Ranks hold different rows, so they agree once an epoch, by one gather, on the number of steps and on each step's weight
of targets; a rank that is short takes part without examples. A recipe's batch is global: a rank takes batch / world.
Shape legend: S sequences, B of them in a batch, P queries, T targets, E eligible items, K steps.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.methods import EarlyStopConfig
from headrace.inputs.ahead import question_of
from headrace.inputs.contexts import pad, ranges
from headrace.inputs.examples import Examples, plan_batches
from headrace.methods.base import Lesson, PriorOf
from headrace.models.base import RecallModel
from headrace.objectives.levels import Contrasts, contrasts
from headrace.records import generator
from headrace.replay.packed import join
from headrace.train.checkpoint import Checkpoint
from headrace.train.early_stop import EarlyStop, hold_out, validation
from headrace.train.group import Group
from headrace.train.step import StepBatch, TrainStep


@dataclass(frozen=True)
class PassStats:
    """What the passes of one increment did, over all ranks. Made here, read by the commit and the gate."""

    steps: int
    """Those that the model has in it: with early stop, up to the best pass."""
    targets: int
    """Targets of one epoch that are in the eligible set."""
    targets_outside: int
    """Targets of one epoch outside it: they weigh nothing."""
    loss_per_epoch: tuple[float, ...]
    """Mean negative log likelihood a unit of weight, while training (with dropout), and what levels add to it; the
    teacher's word is not in it."""
    last_gradient_norm: float
    seconds: float
    """Wall time on this rank; never part of a state."""
    earlier_s: float = 0.0
    """Of passes that were gone on from, beside ``seconds``."""
    validated: int = 0
    """Queries of each validation; 0: there was none."""
    recall_per_epoch: tuple[float, ...] = ()
    """Recall@20 of these, after each pass."""
    best_epoch: int = 0
    """The pass whose weights were kept, counted from 1."""
    useful_tokens: float | None = None
    """What was no padding among the tokens of a pass's steps; None where there were none."""


@dataclass(frozen=True)
class _Words:
    """What is said at each target, and how much it weighs."""

    column_T: NDArray[np.int64]
    """The target among the eligible items; -1: outside."""
    weight_T: NDArray[np.float32]
    """Of the whole target: what a step's loss is divided by."""
    own_T: NDArray[np.float32]
    """Of its own word."""
    soft_T: NDArray[np.float32] | None
    """Of the teacher's; None: it is not heard."""
    temperature: float
    question_T: NDArray[np.int64] | None
    """Of those whose targets are held against each other by their levels; None: there are no levels."""


@dataclass(frozen=True)
class _Course:
    """What every pass of an increment goes through, on this rank."""

    examples: Examples
    words: _Words
    slot_I: NDArray[np.int64]
    slot_E: torch.Tensor
    """Rows of the items scored, ascending."""
    prior: PriorOf | None
    targets: int
    """Of all ranks, among the items scored; the others are outside."""
    outside: int
    own_weight: float
    """Of the targets' own words, over all ranks."""
    tokens_S: NDArray[np.int64]
    """Of each example, on this rank."""
    useful_tokens: float | None
    """What is no padding among a pass's tokens, over all ranks; None where there are none."""


def train_passes(
    step: TrainStep,
    examples: Examples,
    eligible: Eligible,
    slot_I: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
    increment: int,
    replayed: Examples | None = None,
    prior: PriorOf | None = None,
    early_stop: EarlyStopConfig | None = None,
    asked_level: int = 0,
    checkpoint: Checkpoint | None = None,
) -> PassStats:
    """Train ``epochs`` passes over this rank's examples. Every rank calls it, also one without any examples.

    ``step.begin_increment`` has been called. ``slot_I`` maps item numbers to rows of the table. ``replayed``: examples
    of earlier increments, which are mixed with the others. ``prior``: what is added to the logits. With ``early_stop``,
    a part of ``examples`` validates, and decides how many passes there are; unless no rank holds any of that part, or
    ``epochs`` is 0; of its targets those of ``asked_level`` on. ``checkpoint``: what is gone on from, if there is
    anything, and replaced after every pass.
    """
    began, steps_before = time.perf_counter(), step.step_in_increment
    examples, stop = examples.known(slot_I), None
    if early_stop is not None and epochs:
        kept, held = hold_out(examples, early_stop, seed)
        if held.level_T is not None:
            held = held.targets(np.flatnonzero(held.level_T >= asked_level))
        slots, column_T = _columns(held.target_T, eligible, slot_I)
        rows = torch.from_numpy(slots).to(step.device)
        queries = validation(held, column_T, slot_I, rows, prior, step.model.reads_empty)
        stop = EarlyStop(early_stop, queries, step.group)
        examples, stop = (kept, stop) if stop.num_queries else (examples, None)
    course = _course(step, examples, replayed, eligible, slot_I, prior)
    losses = checkpoint.resume(step, stop) if checkpoint is not None else []
    while len(losses) < epochs if stop is None else not stop.is_over:
        if step.config.average == "last_pass" and len(losses) == epochs - 1:
            step.begin_average()
        losses.append(_pass(step, course, generator(seed, "batches", increment, len(losses), step.group.rank)))
        step.end_average()
        if stop is not None:
            stop.see(step)
        if checkpoint is not None:
            checkpoint.keep(step, stop, losses, time.perf_counter() - began)
    if stop is not None:
        stop.take_best(step)
    return PassStats(
        step.step_in_increment - steps_before,
        course.targets,
        course.outside,
        tuple(losses),
        step.last_gradient_norm,
        time.perf_counter() - began,
        checkpoint.earlier_s if checkpoint is not None else 0.0,
        *((stop.num_queries, tuple(stop.recalls), stop.best_epoch) if stop is not None else (0, (), 0)),
        course.useful_tokens if losses else None,
    )


def _course(
    step: TrainStep,
    examples: Examples,
    replayed: Examples | None,
    eligible: Eligible,
    slot_I: NDArray[np.int64],
    prior: PriorOf | None,
) -> _Course:
    """New and replayed examples together, with what is said at each target."""
    group, num_new = step.group, len(examples)
    if replayed is not None:
        examples = join(examples, replayed.known(slot_I))
    slots, column_T = _columns(examples.target_T, eligible, slot_I)
    is_new_T = examples.sequence_T < num_new
    inside = [((column_T >= 0) & (is_new_T == new)).sum() for new in (True, False)]
    tokens_S = step.model.shapes(examples.contexts, examples.sequence_T, examples.position_T)
    tokens = _tokens(step.model, tokens_S, _share(step.config.batch, group))
    counts = _sum(group, "targets", np.array([*inside, (column_T < 0).sum(), *tokens]))
    words = _words(examples, column_T, is_new_T, step.lesson(int(counts[0]), int(counts[1]), slots))
    slot_E = torch.from_numpy(slots).to(step.device)
    if step.counts_targets:
        gathered = group.gather({"slot": slot_I[examples.target_T[column_T >= 0]]})
        step.observe(np.concatenate([arrays["slot"] for arrays in gathered]), int(slot_I.max(initial=-1)) + 1)
    own_weight = _sum(group, "own", np.array([words.own_T.sum(dtype=np.float64)]))[0]
    inside_all, outside = int(counts[0] + counts[1]), int(counts[2])
    useful_tokens = float(counts[3] / counts[4]) if counts[4] else None
    return _Course(
        examples, words, slot_I, slot_E, prior, inside_all, outside, float(own_weight), tokens_S, useful_tokens
    )


def _pass(step: TrainStep, course: _Course, draw: np.random.Generator) -> float:
    """One pass in batches that are drawn; the mean loss a unit of weight."""
    group, examples = step.group, course.examples
    plan = plan_batches(course.tokens_S, _share(step.config.batch, group), draw)
    total_K = _sum(group, "weight", _weights(examples, course.words.weight_T, plan))
    loss = 0.0
    batches = _batches(examples, course.words, course.slot_I, plan, course.prior, step.model.reads_empty)
    for total in total_K.tolist():
        batch = next(batches, None)
        if total > 0.0:  # else nobody has an eligible target: all ranks pass over this step
            loss += step.run(batch, total, course.slot_E)
    return float(_sum(group, "loss", np.array([loss]))[0] / max(course.own_weight, 1e-30))


def _tokens(model: RecallModel, tokens_S: NDArray[np.int64], batch: int) -> tuple[int, int]:
    """Tokens of a pass, and the places computed for them: batches are cut by numbers of tokens, whatever is drawn."""
    sorted_S = np.sort(tokens_S)
    batches = [sorted_S[start : start + batch] for start in range(0, len(sorted_S), batch)]
    return int(sorted_S.sum()), sum(model.places(tokens_B) for tokens_B in batches)


def _words(
    examples: Examples, column_T: NDArray[np.int64], is_new_T: NDArray[np.bool_], lesson: Lesson | None
) -> _Words:
    """Every target has its own word; the teacher's is heard as the lesson says."""
    weight_T = np.where(column_T < 0, np.float32(0.0), examples.weight_T)
    question_T = None if examples.level_T is None else question_of(examples)
    if lesson is None:
        return _Words(column_T, weight_T, weight_T, None, 1.0, question_T)
    own_T = weight_T * np.where(is_new_T, 1.0, lesson.own_targets).astype(np.float32)
    soft_T = weight_T * np.where(is_new_T, lesson.new, lesson.replayed).astype(np.float32)
    return _Words(column_T, weight_T, own_T, soft_T, lesson.temperature, question_T)


def _columns(
    target_T: NDArray[np.int64], eligible: Eligible, slot_I: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The eligible items' rows ``(E,)``, ascending, and each target's place among them (-1: not eligible).

    Where rows were reused they do not ascend with numbers, and a step reads a table best from its beginning to its end.
    """
    slot_E, column_T = slot_I[eligible.number_E], eligible.column_of(target_T)
    if (np.diff(slot_E) > 0).all():
        return slot_E, column_T
    order_E = np.argsort(slot_E)
    place_E = np.empty_like(order_E)
    place_E[order_E] = np.arange(len(order_E))
    return slot_E[order_E], np.where(column_T < 0, -1, place_E[column_T])


def _share(batch: int, group: Group) -> int:
    """This rank's part of a global batch; the first ranks take the remainder."""
    return max(1, batch // group.world + (group.rank < batch % group.world))


def _sum(group: Group, name: str, values_K: NDArray[np.generic]) -> NDArray[np.float64]:
    """The sum over ranks, in rank order; shorter arrays count as padded with zeros."""
    gathered = [arrays[name] for arrays in group.gather({name: values_K.astype(np.float64)})]
    total_K = np.zeros(max(len(values) for values in gathered))
    for values in gathered:
        total_K[: len(values)] += values
    return total_K


def _weights(examples: Examples, weight_T: NDArray[np.float32], plan: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """The weight of the eligible targets of each planned batch."""
    weight_S = np.bincount(examples.sequence_T, weights=weight_T, minlength=len(examples))
    return np.array([weight_S[members].sum() for members in plan])


def _batches(
    examples: Examples,
    words: _Words,
    slot_I: NDArray[np.int64],
    plan: list[NDArray[np.int64]],
    prior: PriorOf | None,
    reads_empty: bool,
) -> Iterator[StepBatch]:
    first_S = np.searchsorted(examples.sequence_T, np.arange(len(examples) + 1))
    length_S = examples.contexts.length_Q
    for members in plan:
        begin_B, count_B = first_S[members], first_S[members + 1] - first_S[members]
        flat_T = ranges(begin_B, count_B)
        position_T = examples.position_T[flat_T]
        length_T = np.repeat(length_S[members], count_B)
        # one query for all targets of a row and position, and one for all of whose context nothing is read
        reach = int(position_T.max(initial=0)) + 1
        key_T = np.repeat(np.arange(len(members)), count_B) * reach + position_T
        empty_T = (position_T >= length_T) & (not reads_empty)
        key_T[empty_T] = key_T[empty_T].min(initial=np.iinfo(np.int64).max)
        key_P, query_T = np.unique(key_T, return_inverse=True)
        used_B, row_P = np.unique(key_P // reach, return_inverse=True)
        contexts = examples.contexts.take(members[used_B])
        inputs = pad(contexts, slot_I)
        yield StepBatch(
            inputs,
            row_P,
            key_P % reach,
            query_T,
            words.column_T[flat_T],
            words.own_T[flat_T],
            None if words.soft_T is None else words.soft_T[flat_T],
            words.temperature,
            None if prior is None else prior(contexts.before(row_P, key_P % reach)),
            _contrasts(examples, words, flat_T),
        )


def _contrasts(examples: Examples, words: _Words, flat_T: NDArray[np.int64]) -> Contrasts | None:
    """Who of these targets is held against whom."""
    if examples.level_T is None or words.question_T is None:
        return None
    return contrasts(words.question_T[flat_T], examples.level_T[flat_T], words.own_T[flat_T])
