"""What is added to a batch's logits without being learned: one vector for all queries, and single entries beside it.

Shape legend: P queries, T targets, E items scored, N entries, U distinct places.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Offset:
    """Made by recommend/prior.py; read by objectives and the recommender."""

    shared_E: Tensor
    row_N: Tensor
    """The query of each entry; ascending."""
    column_N: Tensor
    added_N: Tensor
    """Beside what is shared; a pair of row and column may come more than once."""

    def add_(self, logit_PE: Tensor) -> Tensor:
        """The logits with it, in place."""
        logit_PE += self.shared_E
        return logit_PE.index_put_((self.row_N, self.column_N), self.added_N.to(logit_PE), accumulate=True)

    def at(self, query_T: Tensor, column_T: Tensor) -> Tensor:
        """What is added at these places (one at least) alone."""
        size = len(self.shared_E)
        place_U, index_T = torch.unique(query_T * size + column_T, return_inverse=True)
        place_N = self.row_N * size + self.column_N
        found_N = torch.searchsorted(place_U, place_N).clamp(max=len(place_U) - 1)
        is_there_N = place_U[found_N] == place_N
        added_U = self.added_N.new_zeros(len(place_U))
        added_U.index_add_(0, found_N[is_there_N], self.added_N[is_there_N])
        return self.shared_E[column_T] + added_U[index_T]

    def take(self, index_P: Tensor, num_queries: int) -> "Offset":
        """Of these queries (distinct), of ``num_queries``, in this order."""
        place_P = torch.full((num_queries,), -1, dtype=torch.int64, device=index_P.device)
        place_P[index_P] = torch.arange(len(index_P), device=index_P.device)
        row_N = place_P[self.row_N]
        kept_N = row_N >= 0
        return Offset(self.shared_E, row_N[kept_N], self.column_N[kept_N], self.added_N[kept_N])

    def divided(self, temperature: float) -> "Offset":
        """For logits that are divided by a temperature."""
        return Offset(self.shared_E / temperature, self.row_N, self.column_N, self.added_N / temperature)
