"""What is told of an event, or of a request, as a vector: a learned one for each value of a feature.

Shape legend: B batch, L length, D width, F features, V values told apart.
"""

import numpy as np
import torch
from torch import Tensor, nn

from headrace.inputs.told import Codes, features_of

_VALUES = 1024
"""Of a feature, told apart by their code's remainder: of thirty, two are alike one time in three. 0: not told."""


class Features(nn.Module):
    """Zeros at first, and always for what is not told: an event without features is its item alone."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.value_FVD = nn.Parameter(torch.zeros(num_features, _VALUES, width))

    def reset(self) -> None:
        """As at first."""
        nn.init.zeros_(self.value_FVD)

    def forward(self, told_BL: Codes) -> Tensor:
        """What is added to each, (B, L, D)."""
        num_features, _, width = self.value_FVD.shape
        added_BLD = self.value_FVD.new_zeros(*told_BL.shape, width)
        for value_VD, code_BL in zip(self.value_FVD, features_of(told_BL, num_features), strict=True):
            at_BL = torch.from_numpy(np.where(code_BL > 0, 1 + code_BL % (_VALUES - 1), 0)).to(value_VD.device)
            added_BLD = added_BLD + nn.functional.embedding(at_BL, value_VD, padding_idx=0)
        return added_BLD
