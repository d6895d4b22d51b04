"""Adagrad by rows, with a sum that fades: each row of a table has one number, whatever its width (arXiv 1906.00091).

The number is the sum of its mean squared gradients, halved every so many steps. A row's first step is as long as the
learning rate, later ones are shorter by the root of how many count: items that come often settle, new ones learn fast,
and none stops learning. It takes 8 bytes a row, where Adam takes 8 for each of a row's entries, in memory and commits.
Shape legend: V rows of the table, R distinct rows of a step, D width.
"""

import torch
from torch import Tensor

from headrace.models.table import grown

_EPSILON = 1e-8


class RowAdagrad:
    """Faded sum and last touch of each row, on the table's device; they grow with it, new rows' at zero."""

    KEYS = ("sum_sq", "touched_at")

    def __init__(self, weight_VD: Tensor, half_life_steps: float) -> None:
        self._decay = 0.5 ** (1.0 / half_life_steps)
        self.tensors = {
            "sum_sq": weight_VD.new_zeros(0),
            "touched_at": torch.zeros(0, dtype=torch.int32, device=weight_VD.device),
        }
        """By key; ``touched_at`` is a step, 0: never."""

    def grow(self, num_rows: int) -> None:
        """Make room for ``num_rows`` rows; those that are there keep their state."""
        for key, old in self.tensors.items():
            if len(old) < num_rows:
                self.tensors[key] = grown(old, num_rows)

    def update_(self, slot_R: Tensor, row_RD: Tensor, gradient_RD: Tensor, learning_rate: float, step: int) -> None:
        """One step of ``row_RD``, the weights of the rows ``slot_R`` (distinct), in place.

        ``step`` counts from the optimizer's birth, from 1 on, and rises by one a call.
        """
        elapsed_R = step - self.tensors["touched_at"].index_select(0, slot_R)
        sum_R = self.tensors["sum_sq"].index_select(0, slot_R) * (self._decay ** elapsed_R.double()).to(row_RD)
        sum_R += gradient_RD.square().mean(1)
        self.tensors["sum_sq"].index_copy_(0, slot_R, sum_R)
        self.tensors["touched_at"].index_fill_(0, slot_R, step)
        row_RD.addcdiv_(gradient_RD, sum_R.sqrt().add_(_EPSILON).unsqueeze(1), value=-learning_rate)

    def reset(self, slot_R: Tensor) -> None:
        """These rows belong to other items from now on: as if never touched."""
        for tensor in self.tensors.values():
            tensor.index_fill_(0, slot_R, 0)
