"""What an optimizer keeps of each row of a table, whatever its rule: it grows with the table; a row can start afresh.

Shape legend: V rows of the table, R distinct rows of a step.
"""

import torch
from torch import Tensor

from headrace.models.table import grown

TOUCHED_AT = "touched_at"


class RowState:
    """Named tensors with an entry for each row, on the table's device; new rows' are zero.

    One of them is ``touched_at``, the step at which a row was touched last; 0: never.
    """

    def __init__(self, key: str, kept_V: Tensor) -> None:
        self.tensors = {key: kept_V, TOUCHED_AT: torch.zeros(0, dtype=torch.int32, device=kept_V.device)}

    def grow(self, num_rows: int) -> None:
        """Make room for ``num_rows`` rows; those that are there keep their state."""
        for key, old in self.tensors.items():
            if len(old) < num_rows:
                self.tensors[key] = grown(old, num_rows)

    def reset(self, slot_R: Tensor) -> None:
        """These rows belong to other items from now on: as if never touched."""
        for tensor in self.tensors.values():
            tensor.index_fill_(0, slot_R, 0)
