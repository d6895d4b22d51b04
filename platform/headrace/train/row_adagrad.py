"""Adagrad by rows, with a sum that fades: each row of a table has one number, whatever its width (arXiv 1906.00091).

The number is the sum of its mean squared gradients, halved every so many steps. A row's first step is as long as the
learning rate, later ones are shorter by the root of how many count: items that come often settle, new ones learn fast,
and none stops learning. It takes 8 bytes a row, where Adam takes 8 for each of a row's entries, in memory and commits.
Shape legend: V rows of the table, R distinct rows of a step, D width.
"""

from torch import Tensor

from headrace.train.row_state import TOUCHED_AT, RowState

_EPSILON = 1e-8


class RowAdagrad(RowState):
    """Faded sum and last touch of each row."""

    KEYS = ("sum_sq", TOUCHED_AT)

    def __init__(self, weight_VD: Tensor, half_life_steps: float) -> None:
        super().__init__("sum_sq", weight_VD.new_zeros(0))
        self._decay = 0.5 ** (1.0 / half_life_steps)

    def update_(self, slot_R: Tensor, row_RD: Tensor, gradient_RD: Tensor, learning_rate: float, step: int) -> None:
        """One step of ``row_RD``, the weights of the rows ``slot_R`` (distinct), in place.

        ``step`` counts from the optimizer's birth, from 1 on, and rises by one a call.
        """
        elapsed_R = step - self.tensors[TOUCHED_AT].index_select(0, slot_R)
        sum_R = self.tensors["sum_sq"].index_select(0, slot_R) * (self._decay ** elapsed_R.double()).to(row_RD)
        sum_R += gradient_RD.square().mean(1)
        self.tensors["sum_sq"].index_copy_(0, slot_R, sum_R)
        self.tensors[TOUCHED_AT].index_fill_(0, slot_R, step)
        row_RD.addcdiv_(gradient_RD, sum_R.sqrt().add_(_EPSILON).unsqueeze(1), value=-learning_rate)
