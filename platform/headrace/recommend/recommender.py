"""The recommender: one version's model, counters and weights, and the only way to ask them.

Evaluation calls ``judge``, serving calls ``top``; both score the same blocks in the same way, so they cannot disagree.
The score of an item is the weighted sum of the experts' probabilities over the eligible set (the model's by exact
softmax); the weights are renormalised over those that vote. A model has no vote on a context without known items.
Work is done in blocks of ``BLOCK`` queries, padded to that many, since a product over another shape differs in its last
bits; exponents are summed in float64. Memory is a few times BLOCK x E, whatever is asked.
Shape legend: Q queries (of a block, or of a call), R = Q + 1 offsets, T targets (flat), E eligible items, D width,
K answers or experts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.blend.weights import NEURAL, UNIFORM, Weights, expert_names
from headrace.catalogue.eligible import Eligible
from headrace.experts.base import Expert
from headrace.inputs.contexts import Contexts
from headrace.models.base import RecallModel
from headrace.recommend.encode import answering, encode, newest
from headrace.recommend.votes import MISS, SharedVote, SparseVote, Vote, Voters

BLEND = "blend"
BLOCK = 32
"""Queries scored at once: enough to keep the product arithmetic-bound, few enough to stay in the cache."""
_LOWEST = -80.0  # exponents below this are lifted to it: exp() of less is subnormal, which is slow and means nothing


@dataclass(frozen=True)
class Top:
    """The best items of each query, best first. Made by ``Recommender.top``, read by serving and the gate."""

    number_QK: NDArray[np.int64]
    """Item numbers; -1 where fewer than K could be answered."""
    score_QK: NDArray[np.float32]
    """Probabilities; 0 where there is no item."""
    fallback_Q: NDArray[np.bool_]
    """Whether the context held no known item, so that the model had no vote."""


@dataclass(frozen=True)
class Judged:
    """What a version makes of the truth. Made by ``Recommender.judge``, read by evaluation and the blend's weights."""

    rank: Mapping[str, NDArray[np.int64]]
    """By "blend", "neural" and each counter: 1 + the number of other items that score at least as high, (T,).
    Beyond every cutoff where the target is not eligible, or the expert abstains."""
    probability: Mapping[str, NDArray[np.float64]]
    """By "neural", each counter and "uniform": the target's probability, (T,); nan in those two cases."""


@dataclass(frozen=True)
class _Block:
    """A block of queries and what every expert says, before it is mixed."""

    first: int
    """Index of its first query in the call."""
    logits_QE: Tensor
    """Overwritten by ``_exponentials`` and ``_mix``."""
    highest_Q: Tensor
    """The highest logit of each query."""
    neural_Q: NDArray[np.bool_]
    """Whether the model votes: the context holds a known item, and the logits are finite."""
    votes: Mapping[str, Vote]

    def __len__(self) -> int:
        return len(self.neural_Q)


class Recommender:
    """One version, ready to be asked. Not for several threads at once.

    It reads the model and the experts in place: where they go on learning, so do the answers.
    """

    def __init__(
        self,
        model: RecallModel,
        slot_I: NDArray[np.int64],
        eligible: Eligible,
        experts: Sequence[Expert],
        weights: Weights,
        watermark_ms: int,
        max_events: int,
    ) -> None:
        names = expert_names([expert.name for expert in experts])
        if set(weights.names) != set(names):
            raise ValueError(
                f"weights for {list(weights.names)}, experts {list(names)}: both must come from one commit"
            )
        self.model = model
        self.eligible = eligible
        self.watermark_ms = watermark_ms
        """Event time of the newest row that this version has learned from."""
        self.max_events = max_events
        self._slot_I = slot_I
        self._names = names
        weight_of = weights.as_mapping()
        self._weight_K = np.array([weight_of[name] for name in names], dtype=np.float64)
        self._voters = Voters(list(experts), eligible)
        self._slot_E = torch.from_numpy(slot_I[eligible.number_E]).to(model.table.weight.device)
        self._frozen_ED: Tensor | None = None

    @property
    def num_items(self) -> int:
        """Numbers that this version knows."""
        return len(self._slot_I)

    @property
    def faults(self) -> Mapping[str, int]:
        """By expert: queries on which its vote was left out because it was not a probability."""
        return dict(self._voters.faults)

    def freeze(self) -> "Recommender":
        """Promise that the model changes no more, so that item vectors are made once instead of at every call."""
        with answering(self.model):
            self._frozen_ED = self._items()
        return self

    def top(self, contexts: Contexts, k: int, exclude: Sequence[NDArray[np.int64]] | None = None) -> Top:
        """The ``k`` best items of each query; ``exclude`` holds, per query, item numbers that must not be answered."""
        number_QK = np.full((len(contexts), k), -1, dtype=np.int64)
        score_QK = np.zeros((len(contexts), k), dtype=np.float32)
        fallback_Q = contexts.known(self.num_items).length_Q == 0
        with answering(self.model):
            for block in self._blocks(contexts):
                rows = slice(block.first, block.first + len(block))
                score_QE = self._mix(block, self._exponentials(block))
                for row, number_X in enumerate(exclude[rows] if exclude is not None else ()):
                    column_X = self.eligible.column_of(number_X)
                    score_QE[row, torch.from_numpy(column_X[column_X >= 0]).to(score_QE.device)] = -torch.inf
                column_QB, best_QB = _best(score_QE, min(k, len(self.eligible)))
                there_QB = np.isfinite(best_QB)
                number_QK[rows, : column_QB.shape[1]] = np.where(there_QB, self.eligible.number_E[column_QB], -1)
                score_QK[rows, : column_QB.shape[1]] = np.where(there_QB, best_QB, 0.0)
        return Top(number_QK, score_QK, fallback_Q)

    def judge(self, contexts: Contexts, target_T: NDArray[np.int64], target_offset_R: NDArray[np.int64]) -> Judged:
        """Rank and probability of each target; query q has the targets between its two offsets."""
        ranked = (BLEND, *self._names[:-1])
        judged = Judged(
            {name: np.full(len(target_T), MISS, dtype=np.int64) for name in ranked},
            {name: np.full(len(target_T), np.nan) for name in self._names},
        )
        column_T = self.eligible.column_of(target_T)
        query_T = np.repeat(np.arange(len(contexts)), np.diff(target_offset_R))
        with answering(self.model):
            for block in self._blocks(contexts):
                begin, end = target_offset_R[block.first], target_offset_R[block.first + len(block)]
                index_T = begin + np.flatnonzero(column_T[begin:end] >= 0)
                self._judge_block(block, index_T, query_T[index_T] - block.first, column_T[index_T], judged)
        return judged

    def _judge_block(
        self,
        block: _Block,
        index_T: NDArray[np.int64],
        row_T: NDArray[np.int64],
        column_T: NDArray[np.int64],
        judged: Judged,
    ) -> None:
        """Fill in ``judged`` at ``index_T``, for these rows of the block and columns of the eligible set."""
        judged.probability[UNIFORM][index_T] = 1.0 / len(self.eligible)
        for name, vote in block.votes.items():
            if vote is not None:
                on_T = vote.active(len(block))[row_T]
                judged.rank[name][index_T[on_T]] = vote.rank(row_T[on_T], column_T[on_T])
                judged.probability[name][index_T[on_T]] = vote.probability(row_T[on_T], column_T[on_T])
        on_T = block.neural_Q[row_T]
        judged.rank[NEURAL][index_T[on_T]] = _rank(block.logits_QE, row_T[on_T], column_T[on_T])
        total_Q = self._exponentials(block)
        value_T = _values(block.logits_QE, row_T, column_T).double().cpu().numpy()
        judged.probability[NEURAL][index_T[on_T]] = (value_T / total_Q[row_T])[on_T]
        judged.rank[BLEND][index_T] = _rank(self._mix(block, total_Q), row_T, column_T)

    def _blocks(self, contexts: Contexts) -> Iterator[_Block]:
        """What every expert says, block by block; nothing where no item is eligible."""
        if not len(self.eligible):
            return
        contexts = newest(contexts.known(self.num_items), self.max_events)
        items_ED = self._items()
        encoded_QD = encode(self.model, contexts, self._slot_I, self.max_events)
        for first in range(0, len(contexts), BLOCK):
            block = contexts.take(np.arange(first, min(first + BLOCK, len(contexts))))
            query_QD = encoded_QD[first : first + BLOCK]
            padded_BD = torch.nn.functional.pad(query_QD, (0, 0, 0, BLOCK - len(block)))
            logits_QE = (self.model.query_side(padded_BD) @ items_ED.T)[: len(block)]
            highest_Q = logits_QE.amax(dim=1)
            finite_Q = torch.isfinite(highest_Q).cpu().numpy()
            asked_Q = block.length_Q > 0
            self._voters.faults[NEURAL] += int((asked_Q & ~finite_Q).sum())
            votes = self._voters.ask(block, query_QD.cpu().numpy())
            yield _Block(first, logits_QE, highest_Q, asked_Q & finite_Q, votes)

    def _items(self) -> Tensor:
        """The eligible items' side of the product, ``(E, D)``."""
        if self._frozen_ED is not None:
            return self._frozen_ED
        return self.model.item_side(self.model.table.vectors(self._slot_E))

    def _exponentials(self, block: _Block) -> NDArray[np.float64]:
        """Turn the block's logits into exponentials, in place (1 where there is no vote); their sums ``(Q,)``."""
        x_QE = block.logits_QE
        x_QE.sub_(block.highest_Q.unsqueeze(1)).clamp_(min=_LOWEST).exp_()
        if not block.neural_Q.all():
            x_QE[torch.from_numpy(~block.neural_Q).to(x_QE.device)] = 1.0
        total_Q: NDArray[np.float64] = x_QE.sum(dim=1, dtype=torch.float64).cpu().numpy()
        return total_Q

    def _mix(self, block: _Block, total_Q: NDArray[np.float64]) -> Tensor:
        """The blend's scores ``(Q, E)``, in place of the exponentials whose sums are ``total_Q``."""
        num_queries = len(block)
        active_QK = np.ones((num_queries, len(self._names)), dtype=np.bool_)
        active_QK[:, 0] = block.neural_Q
        for place, vote in enumerate(block.votes.values(), start=1):
            active_QK[:, place] = vote.active(num_queries) if vote is not None else False
        weight_QK = active_QK * self._weight_K
        weight_QK /= weight_QK.sum(axis=1, keepdims=True)
        score_QE = block.logits_QE
        scale_Q1 = torch.from_numpy(weight_QK[:, :1] / total_Q[:, None]).to(score_QE)
        patterns, pattern_Q = np.unique(active_QK, axis=0, return_inverse=True)
        score_QE.mul_(scale_Q1)
        for pattern in range(len(patterns)):
            row_P = np.flatnonzero(pattern_Q == pattern)
            base_E = self._base(block, weight_QK[row_P[0]]).to(score_QE.device)
            if len(patterns) == 1:
                score_QE.add_(base_E)
            else:
                score_QE[torch.from_numpy(row_P).to(score_QE.device)] += base_E
        for place, vote in enumerate(block.votes.values(), start=1):
            if isinstance(vote, SparseVote):
                vote.add_to(score_QE, weight_QK[:, place].astype(np.float32))
        return score_QE

    def _base(self, block: _Block, weight_K: NDArray[np.float64]) -> Tensor:
        """What the shared vectors and uniform give to every query with these weights, ``(E,)``."""
        base_E = np.full(len(self.eligible), weight_K[-1] / len(self.eligible))
        for place, vote in enumerate(block.votes.values(), start=1):
            if isinstance(vote, SharedVote) and weight_K[place] > 0.0:
                base_E += weight_K[place] * vote.p_E
        return torch.from_numpy(base_E.astype(np.float32))


def _best(score_QE: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and scores ``(Q, k)`` of the best, best first; of equal ones the lower number first."""
    best = torch.topk(score_QE, k, dim=1)
    column_QK, score_QK = best.indices.cpu().numpy(), best.values.cpu().numpy()
    if k:  # topk takes any of those that tie for the last place
        lowest_Q = best.values[:, -1]
        crowded_Q = (score_QE >= lowest_Q.unsqueeze(1)).sum(1) > k
        for row in crowded_Q.nonzero()[:, 0].tolist():
            above = (score_QE[row] > lowest_Q[row]).nonzero()[:, 0]
            equal = (score_QE[row] == lowest_Q[row]).nonzero()[: k - len(above), 0]
            chosen_K = torch.cat([above, equal])
            column_QK[row], score_QK[row] = chosen_K.cpu().numpy(), score_QE[row, chosen_K].cpu().numpy()
    order_QK = np.lexsort((column_QK, -score_QK), axis=-1)
    return np.take_along_axis(column_QK, order_QK, axis=-1), np.take_along_axis(score_QK, order_QK, axis=-1)


def _values(x_QE: Tensor, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> Tensor:
    return x_QE[torch.from_numpy(row_T).to(x_QE.device), torch.from_numpy(column_T).to(x_QE.device)]


def _rank(x_QE: Tensor, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 + the number of other columns whose value is at least the target's, without sorting. Rows ascend."""
    rank_T = np.zeros(len(row_T), dtype=np.int64)
    value_T = _values(x_QE, row_T, column_T)
    nth_T = np.arange(len(row_T)) - np.searchsorted(row_T, row_T, side="left")  # the n-th target of its query
    for nth in range(int(nth_T.max(initial=-1)) + 1):
        at_P = np.flatnonzero(nth_T == nth)
        row_P = row_T[at_P]
        whole = len(row_P) == len(x_QE)
        x_PE = x_QE if whole else x_QE.index_select(0, torch.from_numpy(row_P).to(x_QE.device))
        value_P1 = value_T[torch.from_numpy(at_P).to(x_QE.device)].unsqueeze(1)
        rank_T[at_P] = (x_PE >= value_P1).sum(dim=1).cpu().numpy()
    return rank_T
