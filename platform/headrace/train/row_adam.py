"""Adam (arXiv 1412.6980) for a few rows of a large table: whoever is not touched is neither read nor written.

Each row counts its own touches, and its moments are kept as averages that are already corrected for their start: the
n-th gradient enters with weight (1 - beta) / (1 - beta^n). That is Adam's bias correction, term by term, with the row's
own count; the weight falls to 1 - beta and no further, so that moments forget and a row's rate of learning does not
fade, however often it is touched. A row that was never touched has seen no time pass: nothing decays meanwhile.
Shape legend: V rows of the table, R distinct rows of a step, D width.
"""

import torch
from torch import Tensor

from headrace.models.table import grown

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class RowAdam:
    """Moments and touches of each row, on the table's device; they grow with it, new rows' at zero."""

    KEYS = ("exp_avg", "exp_avg_sq", "touches")

    def __init__(self, weight_VD: Tensor) -> None:
        self.tensors = {
            "exp_avg": weight_VD.new_zeros((0, weight_VD.shape[1])),
            "exp_avg_sq": weight_VD.new_zeros((0, weight_VD.shape[1])),
            "touches": torch.zeros(0, dtype=torch.int32, device=weight_VD.device),
        }

    def grow(self, num_rows: int) -> None:
        """Make room for ``num_rows`` rows; those that are there keep their state."""
        for key, old in self.tensors.items():
            if len(old) < num_rows:
                self.tensors[key] = grown(old, num_rows)

    def update_(self, slot_R: Tensor, row_RD: Tensor, gradient_RD: Tensor, learning_rate: float) -> None:
        """One step of ``row_RD``, the weights of the rows ``slot_R`` (distinct), in place."""
        touches_R = self.tensors["touches"].index_select(0, slot_R) + 1
        share_R1 = [(1.0 - beta) / (1.0 - beta ** touches_R.double()) for beta in _BETAS]
        mean_share_R1, square_share_R1 = (share.to(row_RD).unsqueeze(1) for share in share_R1)
        mean_RD = self.tensors["exp_avg"].index_select(0, slot_R).lerp_(gradient_RD, mean_share_R1)
        square_RD = self.tensors["exp_avg_sq"].index_select(0, slot_R).lerp_(gradient_RD.square(), square_share_R1)
        for key, new in (("exp_avg", mean_RD), ("exp_avg_sq", square_RD), ("touches", touches_R)):
            self.tensors[key].index_copy_(0, slot_R, new)
        row_RD.addcdiv_(mean_RD, square_RD.sqrt_().add_(_EPSILON), value=-learning_rate)

    def reset(self, slot_R: Tensor) -> None:
        """These rows belong to other items from now on: as if never touched."""
        for tensor in self.tensors.values():
            tensor.index_fill_(0, slot_R, 0)
