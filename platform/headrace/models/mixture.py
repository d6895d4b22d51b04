"""Feed-forward layers of tokens: a plain one, and a mixture of experts (arXiv 1701.06538) with one that all ask.

Shape legend: N tokens, D width, X experts, M tokens that ask one expert.
"""

import torch
from torch import Tensor, nn

from headrace.models.dropout import Dropout

_ASKED = 2


class FeedForward(nn.Module):
    """Two layers of the same width with a ReLU between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.into = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        result: Tensor = self.out(self.dropout(self.into(x).relu()))
        return result


class Mixture(nn.Module):
    """``num_experts`` feed-forward layers, of which each token asks the two that its gate prefers, and a shared one."""

    def __init__(self, width: int, num_experts: int, dropout: float) -> None:
        super().__init__()
        self.shared = FeedForward(width, dropout)
        self.gate = nn.Linear(width, num_experts)
        self.experts = nn.ModuleList(FeedForward(width, dropout) for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape. What each expert says is weighed by its gate, the two weights summing to one."""
        flat_ND = x.reshape(-1, x.shape[-1])
        share_NX, chosen_NX = self.gate(flat_ND).float().topk(min(_ASKED, len(self.experts)), dim=-1)
        share_NX = share_NX.softmax(-1).to(flat_ND.dtype)
        result_ND = self.shared(flat_ND)
        for number, expert in enumerate(self.experts):
            token_M, rank_M = torch.nonzero(chosen_NX == number, as_tuple=True)
            told_MD = expert(flat_ND[token_M]) * share_NX[token_M, rank_M].unsqueeze(-1)
            result_ND = result_ND.index_add(0, token_M, told_MD.to(result_ND.dtype))
        result: Tensor = result_ND.view_as(x)
        return result
