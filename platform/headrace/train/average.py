"""Averages of weights over the steps of a pass, as stochastic weight averaging has them (arXiv 1803.05407).

A step at a constant rate leaves the weights somewhere around what they circle; their mean lies nearer to it, and costs
no slower rate. Shape legend: V rows of the table in use, R rows touched by a step, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """The mean of tensors that every step changes, over the steps that were added."""

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Runs after a step."""
        self._steps += 1
        for name, value in weights.items():
            if name not in self._mean:
                self._mean[name] = value.detach().clone()
            else:
                self._mean[name].lerp_(value.detach(), 1.0 / self._steps)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """The weights become their mean, in place; nothing happens where there was no step."""
        for name, mean in self._mean.items():
            weights[name].detach().copy_(mean)


class RowAverage:
    """The same of a table of which a step changes a few rows: a row's sum is brought up to date when it is touched."""

    def __init__(self, weight_VD: Tensor) -> None:
        self._sum_VD = torch.zeros_like(weight_VD)
        self._summed_V = torch.zeros(len(weight_VD), dtype=torch.int64, device=weight_VD.device)
        """Steps that are in the sum; those since have left the row as it is."""
        self._is_touched_V = torch.zeros(len(weight_VD), dtype=torch.bool, device=weight_VD.device)
        self._steps = 0

    def leave(self, slot_R: Tensor, before_RD: Tensor) -> None:
        """Runs in a step, before these rows change from what they have been since they were last touched."""
        lasted_R1 = (self._steps - self._summed_V[slot_R]).to(before_RD).unsqueeze(1)
        self._sum_VD[slot_R] += lasted_R1 * before_RD
        self._summed_V[slot_R] = self._steps
        self._is_touched_V[slot_R] = True
        self._steps += 1

    def put(self, weight_VD: Tensor) -> None:
        """Rows that were touched become their mean, in place; the others are as they were throughout."""
        slot_R = self._is_touched_V.nonzero()[:, 0]
        lasted_R1 = (self._steps - self._summed_V[slot_R]).to(weight_VD).unsqueeze(1)
        total_RD = self._sum_VD[slot_R] + lasted_R1 * weight_VD[slot_R]
        weight_VD[slot_R] = total_RD / max(self._steps, 1)
