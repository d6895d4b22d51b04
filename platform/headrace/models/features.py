"""What is told of an event, or of a request, as a vector: a learned one for each value of a feature.

Shape legend: D width, F features, V values told apart.
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

    def forward(self, told: Codes) -> Tensor:
        """What is added to each, by what is told of it, in any shape (.., D)."""
        num_features, _, width = self.value_FVD.shape
        added = self.value_FVD.new_zeros(*told.shape, width)
        for value_VD, code in zip(self.value_FVD, features_of(told, num_features), strict=True):
            at = torch.from_numpy(np.where(code > 0, 1 + code % (_VALUES - 1), 0)).to(value_VD.device)
            added = added + nn.functional.embedding(at, value_VD, padding_idx=0)
        return added
