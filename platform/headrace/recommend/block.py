"""A block of queries: what every expert says of it, mixed into one score an item, ranked and cut to the best.

Mixing works in place on the block's logits: a block is asked for ranks of the model alone first, then for exponentials,
then for the blend. Everything but the product before it works element by element, so that a query's bits do not depend
on what it shares a block with. Shape legend: Q queries of the block, T targets (flat), E eligible items, K experts in
the order of weights, B the best, C columns that targets are compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.blend.weights import NEURAL, UNIFORM
from headrace.recommend.repeated import Repeated
from headrace.recommend.seen import Seen
from headrace.recommend.votes import SharedVote, SparseVote, Vote

_LOWEST = -80.0  # exponents below this are lifted to it: exp() of less is subnormal, which is slow and means nothing


@dataclass(frozen=True)
class Block:
    """What every expert says about a block of queries. Made by the recommender, from one version."""

    first: int
    """Index of its first query in the call."""
    logits_QE: Tensor
    """Overwritten by ``exponentials`` and ``mix``; minus infinity where an item is seen and seen ones come last."""
    highest_Q: Tensor
    """The highest logit of each query, seen items left out where ``seen`` names them."""
    neural_Q: NDArray[np.bool_]
    """Whether the model votes: the context holds a known item, and the logits are finite."""
    votes: Mapping[str, Vote]
    seen: Seen | None
    """Where seen items come last, or have a part of their own: which they are. Votes are over the others."""
    alone: Mapping[str, Vote]
    """How counters rank items by themselves: votes over all items, unless seen ones come last."""
    repeated: Repeated | None
    """Where the blend is split: the part that seen items have."""

    def __len__(self) -> int:
        return len(self.neural_Q)

    @property
    def num_unseen_Q(self) -> NDArray[np.int64]:
        """Items over which experts are normalised, for each query."""
        size_Q = np.full(len(self), self.logits_QE.shape[1])
        return size_Q if self.seen is None else size_Q - self.seen.count_Q

    def exponentials(self) -> NDArray[np.float64]:
        """Turn the logits into exponentials, in place (1 where there is no vote, 0 where seen); their sums ``(Q,)``."""
        x_QE = self.logits_QE
        x_QE.sub_(self.highest_Q.unsqueeze(1)).clamp_(min=_LOWEST).exp_()
        if not self.neural_Q.all():
            x_QE[torch.from_numpy(~self.neural_Q).to(x_QE.device)] = 1.0
        put_seen(x_QE, self.seen, 0.0)
        total_Q: NDArray[np.float64] = x_QE.sum(dim=1, dtype=torch.float64).cpu().numpy()
        return total_Q

    def entropy(self, total_Q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the model's probabilities, nats, ``(Q,)``; from exponentials whose sums are ``total_Q``."""
        x_QE = self.logits_QE
        told_Q = torch.special.xlogy(x_QE, x_QE).sum(dim=1, dtype=torch.float64).cpu().numpy()
        return np.asarray(np.log(total_Q) - told_Q / total_Q, dtype=np.float64)

    def weights(self, weight_K: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights among those that vote on each query, ``(Q, K)``; rows sum to 1, or what repeats leave of it."""
        active_QK = np.ones((len(self), len(weight_K)), dtype=np.bool_)
        active_QK[:, 0] = self.neural_Q
        for place, vote in enumerate(self.votes.values(), start=1):
            active_QK[:, place] = vote.active_Q if vote is not None else False
        weight_QK: NDArray[np.float64] = active_QK * weight_K
        weight_QK /= weight_QK.sum(axis=1, keepdims=True)
        if self.repeated is not None:
            weight_QK *= 1.0 - self.repeated.share_Q[:, None]
        return weight_QK

    def mix(self, weight_QK: NDArray[np.float64], total_Q: NDArray[np.float64]) -> Tensor:
        """The blend's scores ``(Q, E)``, in place of the exponentials whose sums are ``total_Q``."""
        score_QE = self.logits_QE
        score_QE.mul_(torch.from_numpy(weight_QK[:, :1] / total_Q[:, None]).to(score_QE))
        score_QE.add_(torch.from_numpy((weight_QK[:, -1] / self.num_unseen_Q)[:, None]).to(score_QE))
        for place, vote in enumerate(self.votes.values(), start=1):
            if isinstance(vote, SharedVote) and vote.active_Q.any():
                scale_Q1 = (weight_QK[:, place] / np.where(vote.active_Q, vote.left_Q, 1.0))[:, None]
                score_QE.add_(torch.from_numpy(scale_Q1).to(score_QE) * torch.from_numpy(vote.p_E).to(score_QE))
            elif isinstance(vote, SparseVote):
                vote.add_to(score_QE, weight_QK[:, place].astype(np.float32))
        put_seen(score_QE, self.seen, 0.0)
        if self.repeated is not None:
            put_seen(score_QE, self.seen, torch.from_numpy(self.repeated.score_S).to(score_QE))
        return score_QE

    def probabilities(self, total_Q: NDArray[np.float64]) -> dict[str, Tensor]:
        """Every expert's probabilities, by name, ``(Q, E)``: what ``mix`` sums up. Zeros where it abstains."""
        like_QE = self.logits_QE
        neural_QE = like_QE * torch.from_numpy((self.neural_Q / total_Q)[:, None]).to(like_QE)
        uniform_QE = torch.ones_like(like_QE) * torch.from_numpy(1.0 / self.num_unseen_Q[:, None]).to(like_QE)
        dense = {NEURAL: neural_QE, **{name: torch.zeros_like(like_QE) for name in self.votes}, UNIFORM: uniform_QE}
        for name, vote in self.votes.items():
            if isinstance(vote, SharedVote):
                scale_Q1 = (vote.active_Q / np.where(vote.active_Q, vote.left_Q, 1.0))[:, None]
                dense[name] = torch.from_numpy(scale_Q1).to(like_QE) * torch.from_numpy(vote.p_E).to(like_QE)
            elif vote is not None:
                vote.add_to(dense[name], vote.active_Q.astype(np.float32))
        for p_QE in dense.values():
            put_seen(p_QE, self.seen, 0.0)
        return dense

    def shares(
        self,
        weight_QK: NDArray[np.float64],
        row_T: NDArray[np.int64],
        column_T: NDArray[np.int64],
        score_T: NDArray[np.float32],
    ) -> dict[str, NDArray[np.float64]]:
        """What each expert contributes to these scores, by name, ``(T,)``; they sum to the scores."""
        unseen_T = ~self.seen.holds(row_T, column_T) if self.seen is not None else np.ones(len(row_T), dtype=np.bool_)
        shares = {name: np.zeros(len(row_T)) for name in (NEURAL, *self.votes, UNIFORM)}
        for place, (name, vote) in enumerate(self.votes.items(), start=1):
            if vote is not None:
                on_T = unseen_T & vote.active_Q[row_T]
                p_T = vote.probability(row_T[on_T], column_T[on_T])
                shares[name][on_T] = weight_QK[row_T[on_T], place] * p_T
        shares[UNIFORM] = np.where(unseen_T, weight_QK[row_T, -1] / self.num_unseen_Q[row_T], 0.0)
        rest_T = score_T - np.sum([shares[name] for name in (*self.votes, UNIFORM)], axis=0)
        shares[NEURAL] = np.where(unseen_T & self.neural_Q[row_T], np.maximum(rest_T, 0.0), 0.0)
        if self.repeated is not None:
            repeated = self.repeated.shares(row_T, column_T)
            shares = {name: share_T + repeated[name] for name, share_T in shares.items()}
        return shares


def put_seen(x_QE: Tensor, seen: Seen | None, value: float | Tensor) -> None:
    """Put a value at every seen item, or to each its own, in place."""
    if seen is not None and len(seen.row_S):
        row_S, column_S = (torch.from_numpy(array).to(x_QE.device) for array in (seen.row_S, seen.column_S))
        x_QE[row_S, column_S] = value


def best(score_QE: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and scores ``(Q, k)`` of the best, best first; of equal ones the lower number first."""
    top = torch.topk(score_QE, k, dim=1)
    column_QK, score_QK = top.indices.cpu().numpy(), top.values.cpu().numpy()
    if k:  # topk takes any of those that tie for the last place
        lowest_Q = top.values[:, -1]
        crowded_Q = (score_QE >= lowest_Q.unsqueeze(1)).sum(1) > k
        for row in crowded_Q.nonzero()[:, 0].tolist():
            above = (score_QE[row] > lowest_Q[row]).nonzero()[:, 0]
            equal = (score_QE[row] == lowest_Q[row]).nonzero()[: k - len(above), 0]
            chosen_K = torch.cat([above, equal])
            column_QK[row], score_QK[row] = chosen_K.cpu().numpy(), score_QE[row, chosen_K].cpu().numpy()
    order_QK = np.lexsort((column_QK, -score_QK), axis=-1)
    return np.take_along_axis(column_QK, order_QK, axis=-1), np.take_along_axis(score_QK, order_QK, axis=-1)


def values(x_QE: Tensor, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> Tensor:
    """The entries at these rows and columns, ``(T,)``."""
    return x_QE[torch.from_numpy(row_T).to(x_QE.device), torch.from_numpy(column_T).to(x_QE.device)]


def rank(x_QE: Tensor, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 + the number of other columns whose value is at least the target's, without sorting. Rows ascend."""
    rank_T = np.zeros(len(row_T), dtype=np.int64)
    value_T = values(x_QE, row_T, column_T)
    nth_T = np.arange(len(row_T)) - np.searchsorted(row_T, row_T, side="left")  # the n-th target of its query
    for nth in range(int(nth_T.max(initial=-1)) + 1):
        at_P = np.flatnonzero(nth_T == nth)
        row_P = row_T[at_P]
        whole = len(row_P) == len(x_QE)
        x_PE = x_QE if whole else x_QE.index_select(0, torch.from_numpy(row_P).to(x_QE.device))
        value_P1 = value_T[torch.from_numpy(at_P).to(x_QE.device)].unsqueeze(1)
        rank_T[at_P] = (x_PE >= value_P1).sum(dim=1).cpu().numpy()
    return rank_T


def share_below(
    x_QE: Tensor, row_T: NDArray[np.int64], column_T: NDArray[np.int64], column_C: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each target: the share of the columns ``column_C``, its own left out, whose value is below its own, ``(T,)``.

    Equal values count half; NaN where there is no other column.
    """
    value_T1 = values(x_QE, row_T, column_T).unsqueeze(1)
    x_TC = x_QE[:, torch.from_numpy(column_C).to(x_QE.device)][torch.from_numpy(row_T).to(x_QE.device)]
    other_TC = column_C != column_T[:, None]
    half_TC = (x_TC < value_T1).int() + (x_TC <= value_T1).int()
    below_T = (half_TC.cpu().numpy() * other_TC).sum(axis=1) / 2
    num_T = other_TC.sum(axis=1)
    return np.where(num_T > 0, below_T / np.maximum(num_T, 1), np.nan)
