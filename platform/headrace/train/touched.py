"""Sparse mode: a step sees the rows of the item table that some rank touches, and changes nothing else.

Every rank draws the same negatives, ranks tell one another which other rows they read, and the union, gathered in
ascending order, is a small table of its own: gradients lie over it in one dense array that is summed as all others are,
and an optimizer of rows writes it back. No step's cost depends on how many items there are.
Shape legend: B batch, L length, D width, T targets, E eligible items, C items scored, R rows touched, V rows in use.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config.models import SampledSoftmaxConfig
from headrace.models.build import Parts, row_chunks
from headrace.objectives.negatives import Frequencies, Proposal
from headrace.records import generator
from headrace.train.average import RowAverage
from headrace.train.group import Group
from headrace.train.optimizer import RowOptimizer, load_rows

_TABLE = "optimizer/table"
_FREQUENCY = "optimizer/frequency"


@dataclass(frozen=True)
class TableView:
    """What a step sees of the item table. Made anew for every step; read by ``TrainStep``."""

    row_RD: Tensor
    """The rows at hand: all in use, in place, or a copy of those that are touched."""
    slot_R: Tensor | None
    """Their slots, ascending; None: row r is slot r."""
    index_BL: Tensor
    """The contexts' items among the rows at hand; -1: no event."""
    index_C: Tensor
    """The items scored among the rows at hand, ascending."""
    column_T: NDArray[np.int64]
    """The targets among the items scored; -1: not eligible."""
    correction_C: Tensor | None
    """See ``Objective.loss``."""


class TouchedRows:
    """The table's side of a step in sparse mode, with all that it keeps: rows' moments, and targets' frequencies."""

    def __init__(self, config: SampledSoftmaxConfig, weight_VD: Tensor, seed: int, optimizer: RowOptimizer) -> None:
        self.config = config
        self.seed = seed
        self.optimizer = optimizer
        self.frequencies = Frequencies(config.half_life_targets) if config.draw == "frequency" else None
        self.num_slots = 0
        """Rows of the table that are in use."""
        self._weight_VD = weight_VD
        self._is_touched_V = torch.zeros(0, dtype=torch.bool)
        self._before: list[tuple[Tensor, Tensor]] = []
        """Slots, and their rows before the increment's first touch."""
        self._average: RowAverage | None = None
        self._scored: tuple[Tensor, NDArray[np.int64], Proposal] | None = None
        """The eligible rows last asked about, their slots in host memory, and what is drawn from them."""

    def begin(self, weight_VD: Tensor, num_slots: int) -> None:
        """Before an increment's first step: ``weight_VD`` is the whole table, grown."""
        self._weight_VD, self.num_slots = weight_VD, num_slots
        self.optimizer.grow(len(weight_VD))
        self._is_touched_V = torch.zeros(len(weight_VD), dtype=torch.bool, device=weight_VD.device)
        self._before = []
        self._scored = None

    def view(
        self,
        slot_BL: NDArray[np.int64],
        column_T: NDArray[np.int64],
        slot_E: Tensor,
        step: tuple[int, int],
        group: Group,
    ) -> TableView:
        """The rows that any rank touches in this step (increment, number). Every rank calls it in every step.

        ``slot_BL``: this rank's contexts; ``column_T``: its targets among the eligible, whose rows are ``slot_E``.
        """
        slots, proposal = self._proposal(slot_E)
        drawn = proposal.draw(generator(self.seed, "negatives", *step))
        column_C = _distinct(drawn.column_N, column_T[column_T >= 0])
        correction_C = np.full(len(column_C), -np.inf, dtype=np.float32)
        correction_C[np.searchsorted(column_C, drawn.column_N)] = drawn.correction_N
        slot_C, is_event_BL = slots[column_C], slot_BL >= 0
        own_R = _distinct(slot_C, slot_BL[is_event_BL])
        parts = [arrays["slot"] for arrays in group.gather({"slot": own_R})]
        slot_R = own_R if len(parts) == 1 else _distinct(*parts)
        index_BL = np.where(is_event_BL, np.searchsorted(slot_R, slot_BL), -1)
        at_T = np.where(column_T < 0, -1, np.searchsorted(column_C, column_T))
        rows_R = self._to_device(slot_R)
        row_RD = self._weight_VD.index_select(0, rows_R)
        self._note(rows_R, row_RD)
        return TableView(
            row_RD,
            rows_R,
            self._to_device(index_BL),
            self._to_device(np.searchsorted(slot_R, slot_C)),
            at_T,
            self._to_device(correction_C),
        )

    def update(self, view: TableView, gradient_RD: Tensor, learning_rate: float, step: int) -> None:
        """One optimizer step (the ``step``-th since its birth) of the view's rows, and back into the table."""
        assert view.slot_R is not None
        if self._average is not None:
            self._average.leave(view.slot_R, view.row_RD)
        self.optimizer.update_(view.slot_R, view.row_RD, gradient_RD, learning_rate, step)
        self._weight_VD.index_copy_(0, view.slot_R, view.row_RD)

    def begin_average(self) -> None:
        """Rows are averaged from the next step on."""
        self._average = RowAverage(self._weight_VD)

    def end_average(self) -> None:
        """Rows become their averages."""
        assert self._average is not None
        self._average.put(self._weight_VD)
        self._average = None

    @property
    def slot_R(self) -> NDArray[np.int64]:
        """The rows touched since ``begin``, ascending."""
        slots: NDArray[np.int64] = self._is_touched_V.nonzero()[:, 0].cpu().numpy()
        return slots

    def touch(self, slot_R: NDArray[np.int64]) -> None:
        """These rows count as touched, before they are changed by somebody else."""
        rows_R = self._to_device(slot_R)
        self._note(rows_R, self._weight_VD.index_select(0, rows_R))

    def reset(self, slot_R: NDArray[np.int64]) -> None:
        """These rows belong to other items from now on."""
        self.optimizer.reset(self._to_device(slot_R))
        if self.frequencies is not None:
            self.frequencies.reset(slot_R)

    def changed(self) -> list[Tensor]:
        """Weights and moments of the rows touched since ``begin``."""
        slot_R = self._is_touched_V.nonzero()[:, 0]
        whole = (self._weight_VD, self.optimizer.tensors[self.optimizer.KEYS[0]])
        return [tensor.index_select(0, slot_R) for tensor in whole] if len(slot_R) else []

    def moved(self) -> tuple[float, float]:
        """The squared norms of what rows have moved by since ``begin``, and of all rows in use as they were then."""
        moved, norm = 0.0, float(torch.linalg.vector_norm(self._weight_VD[: self.num_slots])) ** 2
        for slot_R, before_RD in self._before:
            after_RD, before_RD = self._weight_VD.index_select(0, slot_R).double(), before_RD.double()
            moved += float((after_RD - before_RD).square().sum())
            norm += float(before_RD.square().sum()) - float(after_RD.square().sum())
        return moved, norm

    def state(self) -> Parts:
        """Named parts, cut as the model's table is."""
        parts: Parts = {}
        if self.num_slots:
            parts |= row_chunks(_TABLE, {key: value[: self.num_slots] for key, value in self.optimizer.tensors.items()})
        if self.frequencies is not None:
            parts[_FREQUENCY] = {"count": self.frequencies.count_V}
        return parts

    def load(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Take over what ``state`` gave."""
        if f"{_TABLE}/00000" in parts:
            self.optimizer.tensors = load_rows(self.optimizer, parts)
            self.num_slots = len(self.optimizer.tensors["touched_at"])
            self.optimizer.grow(len(self._weight_VD))
        if self.frequencies is not None:
            self.frequencies.count_V = parts[_FREQUENCY]["count"].copy()

    def _note(self, rows_R: Tensor, row_RD: Tensor) -> None:
        """Keep what those of these rows are that are touched for the first time."""
        is_new_R = ~self._is_touched_V[rows_R]
        self._before.append((rows_R[is_new_R], row_RD[is_new_R]))
        self._is_touched_V[rows_R] = True

    def _proposal(self, slot_E: Tensor) -> tuple[NDArray[np.int64], Proposal]:
        if self._scored is None or self._scored[0] is not slot_E:
            slots, frequency_E = slot_E.cpu().numpy(), None
            if self.frequencies is not None and len(self.frequencies.count_V):
                frequency_E = self.frequencies.count_V[slots]
            proposal = Proposal(self.config.negatives, len(slots), frequency_E, self.config.uniform_share)
            self._scored = (slot_E, slots, proposal)
        return self._scored[1], self._scored[2]

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._weight_VD.device)


def _distinct(*values: NDArray[np.int64]) -> NDArray[np.int64]:
    """All values once, ascending; numpy's own ``unique`` hashes, which takes eight times as long here."""
    sorted_R = np.sort(np.concatenate(values))
    is_first_R = np.ones(len(sorted_R), dtype=np.bool_)
    np.not_equal(sorted_R[1:], sorted_R[:-1], out=is_first_R[1:])
    return sorted_R[is_first_R]
