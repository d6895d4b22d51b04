"""Adam without momentum (arXiv 1412.6980, beta1 = 0) for a few rows of a large table: no other row is read or written.

Without momentum a row that is not touched does not move, so that leaving it alone is exactly what an optimizer of the
whole table would do; only its second moment fades meanwhile. A row therefore keeps a clock: how long it has lived,
counted from its first touch, and when it was touched last. Its second moment is kept as an average over the clock's
time that is already corrected for its start: a gradient enters with weight (1 - beta) / (1 - beta^clock), which falls
to 1 - beta and no further, so that a row's rate of learning does not fade however often it is touched.

Between two touches a clock runs at most ``_MAX_TICKS``. A row that is touched every n-th step takes steps sqrt(n) times
as long, and in a large catalogue n is in the thousands.

Measured on DIGINETICA, cycle 1, negatives drawn evenly from 18,569 items, R@20 / MRR@20. 4,096 a step: this 50.59 /
18.03; with momentum, as Adam of the whole table by catching up at each touch, 50.53 / 18.03; with momentum and a count
of touches instead of a clock ("lazy Adam") 49.93 / 17.57. 512 a step: this 50.40 / 17.41, with at most 16 ticks 50.05 /
17.01, lazy Adam 43.25 / 15.04. Shape legend: V rows of the table, R distinct rows of a step, D width.
"""

import torch
from torch import Tensor

from headrace.models.table import grown

_BETA = 0.999
_EPSILON = 1e-8
_MAX_TICKS = 256


class RowAdam:
    """Second moment and clock of each row, on the table's device; they grow with it, new rows' at zero."""

    KEYS = ("exp_avg_sq", "clock", "touched_at")

    def __init__(self, weight_VD: Tensor) -> None:
        clock_V = torch.zeros(0, dtype=torch.int32, device=weight_VD.device)
        self.tensors = {
            "exp_avg_sq": weight_VD.new_zeros((0, weight_VD.shape[1])),
            "clock": clock_V,
            "touched_at": clock_V,
        }

    def grow(self, num_rows: int) -> None:
        """Make room for ``num_rows`` rows; those that are there keep their state."""
        for key, old in self.tensors.items():
            if len(old) < num_rows:
                self.tensors[key] = grown(old, num_rows)

    def update_(self, slot_R: Tensor, row_RD: Tensor, gradient_RD: Tensor, learning_rate: float, step: int) -> None:
        """One step of ``row_RD``, the weights of the rows ``slot_R`` (distinct), in place.

        ``step`` counts from the optimizer's birth and rises by one a call.
        """
        clock_R = self.tensors["clock"].index_select(0, slot_R)
        ticks_R = (step - self.tensors["touched_at"].index_select(0, slot_R)).clamp_(max=_MAX_TICKS)
        ticks_R[clock_R == 0] = 1
        lived_R = clock_R + ticks_R
        weight_R = 1.0 - _BETA ** lived_R.double()  # of the average that the row's life amounts to
        kept_R1 = (_BETA ** ticks_R.double() * (1.0 - _BETA ** clock_R.double()) / weight_R).to(row_RD).unsqueeze(1)
        added_R1 = ((1.0 - _BETA) / weight_R).to(row_RD).unsqueeze(1)
        square_RD = self.tensors["exp_avg_sq"].index_select(0, slot_R)
        square_RD.mul_(kept_R1).addcmul_(gradient_RD * added_R1, gradient_RD)
        self.tensors["exp_avg_sq"].index_copy_(0, slot_R, square_RD)
        self.tensors["clock"].index_copy_(0, slot_R, lived_R)
        self.tensors["touched_at"].index_fill_(0, slot_R, step)
        row_RD.addcdiv_(gradient_RD, square_RD.sqrt_().add_(_EPSILON), value=-learning_rate)

    def reset(self, slot_R: Tensor) -> None:
        """These rows belong to other items from now on: as if never touched."""
        for tensor in self.tensors.values():
            tensor.index_fill_(0, slot_R, 0)
