"""One optimizer step, the same on every rank: the model's parameters as one optimizer problem.

All gradients are views of one flat buffer, summed over ranks by one call (DDP would rebuild its buckets, and a resumed
run would sum in another order). No generator state is kept: a step's dropout is drawn from (seed, increment, step,
rank). The optimizer's memory of gradients lives as long as the model (train/optimizer.py).

The table takes part as two leaves, the rows read by contexts and the vectors scored, whose gradients are added to the
flat buffer where they belong: autograd would make a zero-filled array of the table's size for each of them. Where the
objective samples, only the rows that the step touches take part (train/touched.py).
Shape legend: B batch, L length, D width, P queries, T targets, E eligible items, C items scored, V rows of the table in
use, R those of them that a step has at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.config.methods import TrainConfig
from headrace.errors import TrainingError
from headrace.inputs.contexts import ModelInputs
from headrace.inputs.examples import Examples
from headrace.methods.base import Learned, Lesson, Method, Mix, PriorOf
from headrace.models.base import RecallModel
from headrace.models.build import Parts, load_into, model_parts
from headrace.models.offset import Offset
from headrace.models.table import read_rows, read_vectors
from headrace.objectives.levels import Contrasts
from headrace.objectives.softmax import Objective
from headrace.records import hash64
from headrace.train.average import WeightAverage
from headrace.train.group import Group
from headrace.train.optimizer import TABLE, Optimizer, row_optimizer, row_rate
from headrace.train.teacher import Teacher
from headrace.train.touched import TableView, TouchedRows


def repeatable() -> None:
    """Sums of repeated rows in one order, also with several threads."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # every entry is written before it is read


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one step. Made by train/passes.py."""

    inputs: ModelInputs
    row_P: NDArray[np.int64]
    """The row of ``inputs`` of each query."""
    back_P: NDArray[np.int64]
    query_T: NDArray[np.int64]
    """The query that each target answers."""
    column_T: NDArray[np.int64]
    """Among the eligible items; -1: outside, which weighs nothing."""
    weight_T: NDArray[np.float32]
    """Of the target's own word."""
    soft_T: NDArray[np.float32] | None = None
    """Of the teacher's word at the target's query; None: it is not heard."""
    temperature: float = 1.0
    """Of the comparison with the teacher."""
    prior: Offset | None = None
    """Added to the queries' logits."""
    contrasts: Contrasts | None = None
    """Who of the targets is held against whom; all of them have a word of their own."""


class TrainStep:
    """Model, optimizer and methods of one rank. ``begin_increment`` comes before the first step, always."""

    def __init__(
        self,
        model: RecallModel,
        objective: Objective,
        methods: Sequence[Method],
        config: TrainConfig,
        group: Group,
        seed: int,
    ) -> None:
        self.model = model
        self.objective = objective
        self.methods = methods
        self.config = config
        self.group = group
        self.seed = seed
        self.increment = -1
        self.step_in_increment = 0
        self.last_gradient_norm = 0.0
        self._teacher: Teacher | None = None
        """The model as it was before the increment, if a method needs it; none where nothing was trained before."""
        self._parameters: dict[str, Tensor] = {}
        """All that the optimizer moves, by name; in sparse mode the encoder alone."""
        weight_VD = model.table.weight.detach()
        self._optimizer = Optimizer(config, weight_VD)
        self._touched: TouchedRows | None = None
        """The table in sparse mode."""
        if objective.sampled is not None:
            self._touched = TouchedRows(objective.sampled, weight_VD, seed, row_optimizer(config, weight_VD))
        self._before: dict[str, Tensor] = {}
        """The parameters as they were before the increment's first step."""
        self._average: WeightAverage | None = None
        self._buffer = torch.zeros(0)
        self._flat = self._buffer
        """The part of the buffer that this step fills: the encoder's gradients, then those of the rows at hand."""

    @property
    def device(self) -> torch.device:
        """Where the arithmetic happens."""
        return self.model.table.weight.device

    @property
    def steps_since_fresh(self) -> int:
        """Optimizer steps since its moments were zero; part of the state."""
        return self._optimizer.steps

    @property
    def flat_gradient(self) -> Tensor:
        """All gradients of the last step, summed over ranks and guarded: the encoder's, then those of the table's rows.

        They are all rows in use, or, in sparse mode, those that the step touched, ascending.
        """
        return self._flat

    @property
    def counts_targets(self) -> bool:
        """Whether ``observe`` is of use."""
        return self._touched is not None and self._touched.frequencies is not None

    def begin_increment(self, num_slots: int, increment: int) -> None:
        """Grow the table, let the methods prepare, then rebuild the flat buffer and the optimizer, moments kept."""
        self.increment, self.step_in_increment = increment, 0
        self.model.table.grow(num_slots)
        for method in self.methods:
            method.begin_increment(self.model, increment)
        self._teacher = None
        if self.steps_since_fresh and any(method.needs_teacher for method in self.methods):
            known = self._optimizer.num_table_rows if self._touched is None else self._touched.num_slots
            self._teacher = Teacher(self.model, known)
        encoder = {name: value for name, value in self.model.encoder.named_parameters() if value.requires_grad}
        self._parameters = {f"encoder.{name}": value for name, value in encoder.items()}
        weight_VD = self.model.table.weight.detach()
        if self._touched is None:
            self._parameters[TABLE] = nn.Parameter(weight_VD[:num_slots])
        else:
            self._touched.begin(weight_VD, num_slots)
        self._before = {}
        self._make_buffer(sum(value.numel() for value in self._parameters.values()))
        self._optimizer.begin(self._parameters)

    def observe(self, slot_T: NDArray[np.int64], num_slots: int) -> None:
        """Before an increment's first step: the rows of all its targets, all ranks' in rank order."""
        if self._touched is not None and self._touched.frequencies is not None:
            self._touched.frequencies.observe(slot_T, num_slots)

    def reset_rows(self, slot_R: NDArray[np.int64]) -> None:
        """After ``begin_increment``: these rows belong to other items now, and start afresh with all their state."""
        on_device_R = torch.from_numpy(slot_R).to(self.device)
        self.model.reset_rows(on_device_R)
        if self._teacher is not None:
            self._teacher.forget(slot_R)
        for method in self.methods:
            method.reset_rows(slot_R)
        if self._touched is None:
            self._optimizer.reset_rows(on_device_R)
        else:
            self._touched.reset(slot_R)

    def lesson(self, num_new: int, num_replayed: int, slot_E: NDArray[np.int64]) -> Lesson | None:
        """How much the teacher is heard in this increment; the counts are targets of all ranks."""
        if self._teacher is None:
            return None
        mix = Mix(num_new, num_replayed, len(slot_E), self._teacher.num_known(slot_E))
        lessons = [method.lesson(mix) for method in self.methods if method.needs_teacher]
        return next((lesson for lesson in lessons if lesson is not None), None)

    def end_increment(
        self,
        examples: Examples,
        slot_I: NDArray[np.int64],
        slot_E: NDArray[np.int64],
        prior: PriorOf | None = None,
        replayed: Examples | None = None,
    ) -> None:
        """Let the methods look at the trained model and the new examples; after the last step, before the commit.

        ``slot_I`` maps item numbers to rows of the table, ``slot_E`` are the rows that were scored, with this prior.
        ``replayed``: examples of earlier increments that were trained beside the new ones.
        """
        self._teacher = None
        known = examples.known(slot_I)
        seed, device = self.seed, self.device
        replayed = None if replayed is None else replayed.known(slot_I)
        sum_, slot_E = self.group.sum_, np.sort(slot_E)
        learned = Learned(known, slot_I, slot_E, self.increment, seed, device, sum_, prior, replayed)
        for method in self.methods:
            method.end_increment(self.model, learned)

    def run(self, batch: StepBatch | None, total_weight: float, slot_E: Tensor) -> float:
        """One step on this rank's ``batch`` (None: it has none); returns its weighted sum of losses.

        ``total_weight`` is that of all ranks' eligible targets, ``slot_E`` the eligible items' rows, ascending.
        TrainingError before ``begin_increment``.
        """
        if self.increment < 0:
            raise TrainingError("TrainStep.run before begin_increment: there is no optimizer yet")
        if not (self.model.training and self.model.encoder.training):  # it walks through all modules
            self.model.train()
        if not self._before:
            self._before = self._copies()
        view, gradient_RD = self._view(batch, slot_E)
        self._flat.zero_()
        is_taught = batch is not None and len(batch.column_T)
        loss = self._backward(batch, total_weight, view, gradient_RD) if batch is not None and is_taught else 0.0
        self._add_penalties(view, gradient_RD)
        self.group.sum_(self._flat)
        self._guard()
        scale = 1.0
        for method in self.methods:
            scale *= method.learning_rate_scale(self.steps_since_fresh)
        self._optimizer.step(scale)
        if self._touched is not None:
            self._touched.update(view, gradient_RD, row_rate(self.config) * scale, self.steps_since_fresh)
        if self._average is not None:
            self._average.add(self._parameters)
        self.step_in_increment += 1
        return loss

    def begin_average(self) -> None:
        """Weights are averaged from the next step on."""
        self._average = WeightAverage()
        if self._touched is not None:
            self._touched.begin_average()

    def end_average(self) -> None:
        """Weights become their averages over the steps since; the optimizer's moments stay."""
        if self._average is not None:
            self._average.put(self._parameters)
            self._average = None
            if self._touched is not None:
                self._touched.end_average()

    def extremes(self) -> tuple[bool, float]:
        """Whether all weights and moments are finite numbers, and the largest magnitude among them (inf if not).

        In sparse mode, of the table only the rows that the increment has touched are looked at.
        """
        moments = self._optimizer.moments()
        if self._touched is None:
            tensors = [*self.model.parameters(), *moments]
        else:
            tensors = [*self.model.encoder.parameters(), *moments, *self._touched.changed()]
        largest = torch.stack([tensor.detach().abs().amax().float().cpu() for tensor in tensors])  # amax keeps NaN
        finite = bool(torch.isfinite(largest).all())
        return finite, float(largest.max()) if finite else float("inf")

    def update_ratio(self) -> float:
        """The norm of what the increment's steps have changed so far, over that of what they began with."""
        moved, norm = 0.0, 0.0
        for name, before in self._before.items():
            moved += float((self._parameters[name].detach() - before).double().square().sum())
            norm += float(before.double().square().sum())
        if self._touched is not None:
            moved_rows, norm_rows = self._touched.moved()
            moved, norm = moved + moved_rows, norm + norm_rows
        return float(np.sqrt(moved / max(norm, 1e-30)))

    def state(self) -> Parts:
        """The optimizer as parts: "optimizer/encoder", and "optimizer/table/00000", .. cut as the model's table is."""
        return self._optimizer.state() | (self._touched.state() if self._touched is not None else {})

    def load(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Take over what ``state`` gave; in force from the next ``begin_increment`` on."""
        self._optimizer.load(parts, with_table=self._touched is None)
        if self._touched is not None:
            self._touched.load(parts)
        self.increment = -1

    def snapshot(self) -> Parts:
        """All that steps of this increment move, as parts; for ``rewind``."""
        parts = {f"model/{name}": part for name, part in model_parts(self.model).items()} | self.state()
        touched_R = np.zeros(0, dtype=np.int64) if self._touched is None else self._touched.slot_R
        parts["place"] = {
            "step": np.array([self.step_in_increment], dtype=np.int64),
            "gradient_norm": np.array([self.last_gradient_norm]),
            "touched": touched_R,
        }
        return parts

    def rewind(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Be as ``snapshot`` found this increment, in place; back from a later step, or on from the first."""
        self._before = self._before or self._copies()
        place = parts["place"]
        if self._touched is not None:
            self._touched.touch(place["touched"])
        model = {name.removeprefix("model/"): part for name, part in parts.items() if name.startswith("model/")}
        load_into(self.model, model)
        self._optimizer.load(parts, with_table=self._touched is None)
        self._optimizer.begin(self._parameters)
        if self._touched is not None:
            self._touched.load(parts)
        self.step_in_increment = int(place["step"][0])
        self.last_gradient_norm = float(place["gradient_norm"][0])

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    def _make_buffer(self, size: int) -> None:
        """A flat buffer of zeros whose beginning is the gradients of all that the optimizer moves."""
        self._buffer = torch.zeros(size).to(self.model.table.weight)
        start = 0
        for value in self._parameters.values():
            value.grad = self._buffer[start : start + value.numel()].view_as(value)
            start += value.numel()
        self._flat = self._buffer

    def _view(self, batch: StepBatch | None, slot_E: Tensor) -> tuple[TableView, Tensor]:
        """The rows at hand in this step, and the part of the flat buffer that is for their gradients."""
        nothing = np.zeros(0, dtype=np.int64)
        slot_BL = nothing.reshape(0, 0) if batch is None else batch.inputs.slot_BL
        column_T = nothing if batch is None else batch.column_T
        if self._touched is None:
            rows_VD = self._parameters[TABLE]
            assert rows_VD.grad is not None
            on_device_BL = torch.from_numpy(slot_BL).to(self.device)
            return TableView(rows_VD.detach(), None, on_device_BL, slot_E, column_T, None), rows_VD.grad
        view = self._touched.view(slot_BL, column_T, slot_E, (self.increment, self.step_in_increment), self.group)
        start = sum(value.numel() for value in self._parameters.values())
        stop = start + view.row_RD.numel()
        if stop > len(self._buffer):
            self._make_buffer(stop + stop // 4)
        self._flat = self._buffer[:stop]
        return view, self._flat[start:].view_as(view.row_RD)

    def _backward(self, batch: StepBatch, total_weight: float, view: TableView, gradient_RD: Tensor) -> float:
        """Gradients of this rank's targets into the flat buffer; returns the undivided loss."""
        model, device = self.model, self.device
        _seed(device, hash64(self.seed, "dropout", self.increment, self.step_in_increment, self.group.rank) >> 1)
        item_BLD = read_rows(view.row_RD, view.index_BL).requires_grad_()
        vectors_CD = read_vectors(view.row_RD, view.index_C).detach().requires_grad_()
        is_prefix = int(view.index_C[-1]) == len(vectors_CD) - 1
        if is_prefix:  # the gradient is added where it belongs as it comes, and not copied twice
            vectors_CD.grad = gradient_RD[: len(vectors_CD)]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            row_P, back_P = torch.from_numpy(batch.row_P), torch.from_numpy(batch.back_P)
            query_PD = model.encoder(batch.inputs, item_BLD, row_P, back_P)
            query_PD, scored_CD = model.query_side(query_PD), model.item_side(vectors_CD)
            loss = self._own_loss(batch, view, query_PD, scored_CD)
            soft_loss = self._soft_loss(batch, view, query_PD, scored_CD)
        whole = loss if soft_loss is None else loss + soft_loss
        (whole / total_weight).backward()  # type: ignore[no-untyped-call]
        assert item_BLD.grad is not None
        assert vectors_CD.grad is not None
        if not is_prefix:
            gradient_RD.index_add_(0, view.index_C, vectors_CD.grad)
        is_event_BL = view.index_BL >= 0
        # index_put_ sums repeated rows in a fixed order on every device, which index_add_ does not on CUDA
        gradient_RD.index_put_((view.index_BL[is_event_BL],), item_BLD.grad[is_event_BL], accumulate=True)
        return float(loss.detach())

    def _own_loss(self, batch: StepBatch, view: TableView, query_PD: Tensor, scored_CD: Tensor) -> Tensor:
        """The targets' own word: the undivided loss of those that have one."""
        query_T, column_T, weight_T, prior = batch.query_T, view.column_T, batch.weight_T, batch.prior
        contrasts = batch.contrasts
        if batch.soft_T is not None and not weight_T.all():
            told_T = np.flatnonzero(weight_T)
            place_P, query_T = np.unique(query_T[told_T], return_inverse=True)
            column_T, weight_T = column_T[told_T], weight_T[told_T]
            index_P = torch.from_numpy(place_P).to(self.device)
            prior = None if prior is None else prior.take(index_P, len(query_PD))
            contrasts = None if contrasts is None else contrasts.within(told_T)
            query_PD = query_PD[index_P]
        query, column, weight = (torch.from_numpy(array).to(self.device) for array in (query_T, column_T, weight_T))
        return self.objective.loss(query_PD, scored_CD, query, column, weight, view.correction_C, prior, contrasts)

    def _soft_loss(self, batch: StepBatch, view: TableView, query_PD: Tensor, scored_CD: Tensor) -> Tensor | None:
        """The teacher's word: the undivided loss of the queries at which it is heard; None where it is not."""
        if self._teacher is None or batch.soft_T is None:
            return None
        weight_P = np.bincount(batch.query_T, batch.soft_T, len(query_PD)).astype(np.float32)
        slot_C = view.index_C if view.slot_R is None else view.slot_R[view.index_C]
        student, temperature = (query_PD, scored_CD), batch.temperature
        asked = (batch.inputs, batch.row_P, batch.back_P, weight_P)
        return self._teacher.loss(*asked, student, slot_C, view.correction_C, temperature, batch.prior)

    def _add_penalties(self, view: TableView, gradient_RD: Tensor) -> None:
        penalties = [value for method in self.methods for value in method.penalties(self.model).values()]
        if not penalties:
            return
        whole = self.model.table.weight
        (torch.stack(penalties).sum() / self.group.world).backward()  # type: ignore[no-untyped-call]
        if whole.grad is not None:
            # in sparse mode a row feels its penalty when it is touched
            gradient_RD += whole.grad[: len(gradient_RD)] if view.slot_R is None else whole.grad[view.slot_R]
            whole.grad = None

    def _guard(self) -> None:
        """Scale the summed gradient down to the smallest norm that a method allows."""
        bounds = [bound for method in self.methods if (bound := method.max_gradient_norm()) is not None]
        if not bounds:
            return
        self.last_gradient_norm = float(torch.linalg.vector_norm(self._flat))
        if self.last_gradient_norm > min(bounds):
            self._flat.mul_(min(bounds) / self.last_gradient_norm)


def _seed(device: torch.device, seed: int) -> None:
    """Of everything that is drawn on this device; torch's own ``manual_seed`` formats a stack trace for each call."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
