"""The loss by behaviour levels: a target against those of its question that show less (TBGRecall, arXiv 2508.11977).

A target of level k is held, for every level j from 1 to k, against the question's targets of level j - 1: what was
clicked against what was shown and not clicked, what was bought against that, and against what was clicked and not
bought. The softmax over all items stays what it is beside it. Only the targets' own logits are needed.
Shape legend: P queries, T targets, E items scored, D width, M members of sets, S sets, W members
of the largest one, K contrasts.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.models.offset import Offset


@dataclass(frozen=True)
class Contrasts:
    """Sets of targets, one for a question and a level, and who is held against which. Made by ``contrasts``."""

    member_M: NDArray[np.int64]
    """Targets."""
    set_M: NDArray[np.int64]
    """The set that each is in, ascending; none is empty."""
    place_M: NDArray[np.int64]
    """Where in it."""
    target_K: NDArray[np.int64]
    set_K: NDArray[np.int64]
    """The set that the target is held against."""

    def within(self, index_B: NDArray[np.int64]) -> "Contrasts":
        """The same where only these targets are left, which are ascending and have all members among them."""
        member_M, target_K = (np.searchsorted(index_B, old) for old in (self.member_M, self.target_K))
        return replace(self, member_M=member_M, target_K=target_K)


def contrasts(
    question_T: NDArray[np.int64], level_T: NDArray[np.int8], weight_T: NDArray[np.float32]
) -> Contrasts | None:
    """Who is held against whom among the targets that weigh something; None: nobody.

    Targets with one number in ``question_T`` are of one session and asked at one place.
    """
    index_M = np.flatnonzero(weight_T > 0.0)
    num_levels = int(level_T.max(initial=0)) + 1
    _, question_M = np.unique(question_T[index_M], return_inverse=True)
    level_M = level_T[index_M].astype(np.int64)
    code_M = question_M * num_levels + level_M
    target, wanted = [index_M[:0]], [code_M[:0]]
    for level in range(1, num_levels):
        higher = np.flatnonzero(level_M >= level)
        code_H = question_M[higher] * num_levels + level - 1
        has_set_H = np.isin(code_H, code_M)
        target.append(index_M[higher[has_set_H]])
        wanted.append(code_H[has_set_H])
    code_K = np.concatenate(wanted)
    if not len(code_K):
        return None
    code_S, set_K = np.unique(code_K, return_inverse=True)
    in_set = np.flatnonzero(np.isin(code_M, code_S))
    in_set = in_set[np.argsort(code_M[in_set], kind="stable")]
    set_M = np.searchsorted(code_S, code_M[in_set])
    place_M = np.arange(len(set_M)) - np.searchsorted(set_M, set_M)
    return Contrasts(index_M[in_set], set_M, place_M, np.concatenate(target), set_K)


def contrast_loss(
    held: Contrasts,
    query_PD: Tensor,
    vectors_ED: Tensor,
    query_T: Tensor,
    column_T: Tensor,
    weight_T: Tensor,
    offset: Offset | None = None,
) -> Tensor:
    """The weighted sum of -log softmax of each contrasted target's logit among its own and its set's."""
    device = query_PD.device
    member_M, set_M, place_M, target_K, set_K = (
        torch.from_numpy(array).to(device)
        for array in (held.member_M, held.set_M, held.place_M, held.target_K, held.set_K)
    )
    shape = int(held.set_M.max()) + 1, int(held.place_M.max()) + 1
    column_T, dtype = column_T.clamp(min=0), torch.promote_types(query_PD.dtype, torch.float32)
    with torch.autocast(device.type, enabled=False):
        logit_T = (query_PD[query_T].to(dtype) * vectors_ED[column_T].to(dtype)).sum(1)
        if offset is not None:
            logit_T = logit_T + offset.at(query_T, column_T).to(logit_T)
        set_SW = logit_T.new_full(shape, -torch.inf).index_put((set_M, place_M), logit_T[member_M])
        log_sum_S = set_SW.logsumexp(1)
        away_K = torch.nn.functional.softplus(log_sum_S[set_K] - logit_T[target_K])
        return (away_K * weight_T[target_K]).sum()
