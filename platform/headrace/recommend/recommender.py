"""The recommender: one version's model, counters and weights, and the only way to ask them.

Evaluation calls ``judge``, serving calls ``top``; both score the same blocks in the same way, so they cannot disagree.
The score of an item is the weighted sum of the experts' probabilities over the eligible set (the model's by exact
softmax, with the recipe's prior); the weights are renormalised over those that vote. On a context without known items a
model has no vote, unless it reads the request itself.
Each expert's probabilities are raised to its exponent first, which is 1 unless the stream has taught another.
With ``seen_last``, the items of a query's own context have probability 0 and come after all others. Else, with a split
blend, they have a mixture and a part of the score of their own (blend/split.py).
Work is done in blocks of ``BLOCK`` queries, padded to that many, since a product over another shape differs in its last
bits; exponents are summed in float64. Memory is a few times BLOCK x E, whatever is asked.
Shape legend: Q queries (of a block, or of a call), R = Q + 1 offsets, T targets (flat), E eligible items, D width,
K answers or experts.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.blend.split import OnRepeats, Split
from headrace.blend.weights import NEURAL, UNIFORM, Weights, expert_names
from headrace.catalogue.eligible import Eligible
from headrace.config.models import PriorConfig
from headrace.experts.base import Expert
from headrace.inputs.contexts import Contexts
from headrace.models.base import RecallModel
from headrace.recommend.block import Block, best, put_seen, rank, share_below, values
from headrace.recommend.encode import answering, encode, newest
from headrace.recommend.prior import offset_of
from headrace.recommend.repeated import Repeated
from headrace.recommend.seen import Seen
from headrace.recommend.votes import MISS, Heard, Voters, slope

BLEND = "blend"
_NOTHING = np.zeros(0, dtype=np.int64)
BLOCK = 32
"""Queries scored at once: enough to keep the product arithmetic-bound, few enough to stay in the cache."""


@dataclass(frozen=True)
class Top:
    """The best items of each query, best first. Made by ``Recommender.top``, read by serving and the gate."""

    number_QK: NDArray[np.int64]
    """Item numbers; -1 where fewer than K could be answered."""
    score_QK: NDArray[np.float32]
    """Probabilities; 0 where there is no item, and of seen items that come last."""
    fallback_Q: NDArray[np.bool_]
    """Whether the context held no known item, and the model had no vote for that."""
    shares: Mapping[str, NDArray[np.float32]]
    """What each expert contributes to the scores, by name, (Q, K): they sum to the scores. Empty unless asked for."""


@dataclass(frozen=True)
class Judged:
    """What a version makes of the truth. Made by ``Recommender.judge``, read by evaluation and the blend's weights."""

    rank: Mapping[str, NDArray[np.int64]]
    """By "blend", "neural" and each counter: 1 + the number of other items that score at least as high, (T,).
    Beyond every cutoff where the target is not eligible, or the expert abstains."""
    probability: Mapping[str, NDArray[np.float64]]
    """By "neural", each counter and "uniform": the target's probability, (T,); nan in those two cases, and where the
    target was seen and seen items come last, or have a part of their own."""
    slope: Mapping[str, NDArray[np.float64]]
    """By "neural" and each counter: that probability's derivative by the logarithm of the expert's exponent, (T,)."""
    above_T: NDArray[np.float64] | None = None
    """Where controls were named: the share of them, the target itself left out, that the blend scores below the target;
    nan where it is not eligible, or no other control is."""
    repeated: OnRepeats | None = None
    """Where the blend is split: the same of targets that were seen, among the seen items."""

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> "Judged":
        """Of one version's answers to several groups of queries, in turn; at least one."""
        above = [part.above_T for part in parts if part.above_T is not None]
        repeated = [part.repeated for part in parts if part.repeated is not None]
        return cls(
            {name: np.concatenate([part.rank[name] for part in parts]) for name in parts[0].rank},
            {name: np.concatenate([part.probability[name] for part in parts]) for name in parts[0].probability},
            {name: np.concatenate([part.slope[name] for part in parts]) for name in parts[0].slope},
            np.concatenate(above) if above else None,
            OnRepeats.joined(repeated) if repeated else None,
        )


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
        seen_last: bool = False,
        exponents: Mapping[str, float] | None = None,
        prior: PriorConfig | None = None,
        split: Split | None = None,
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
        self.seen_last = seen_last
        self.experts = list(experts)
        """Its counters; alike in a version and in one that stands beside it."""
        self._slot_I = slot_I
        self._names = names
        self._weight_K = self._in_order(weights)
        self._exponents = dict(exponents or {})
        self._prior = prior
        self._split = split
        self._voters = Voters(self.experts, eligible, self._exponents)
        self._slot_E = torch.from_numpy(slot_I[eligible.number_E]).to(model.table.weight.device)
        self._absent_E: Tensor | None = None
        """Eligible items without a row in the model, if it stands beside a newer version."""
        self._beside: Recommender | None = None
        self._frozen_ED: Tensor | None = None

    @property
    def num_items(self) -> int:
        """Numbers that this version knows."""
        return len(self._slot_I)

    def known(self, contexts: Contexts) -> Contexts:
        """These contexts as the version sees them: without items that have no row in it."""
        return contexts.known(self._slot_I)

    @property
    def faults(self) -> Mapping[str, int]:
        """By expert: queries on which its vote was left out because it was not a probability."""
        return dict(self._voters.faults)

    def freeze(self) -> "Recommender":
        """Promise that the model changes no more, so that item vectors are made once instead of at every call."""
        with answering(self.model):
            self._frozen_ED = self._items()
        return self

    def top(
        self,
        contexts: Contexts,
        k: int,
        exclude: Sequence[NDArray[np.int64]] | None = None,
        explain: bool = False,
    ) -> Top:
        """The ``k`` best items of each query; ``exclude`` holds, per query, item numbers that must not be answered."""
        number_QK = np.full((len(contexts), k), -1, dtype=np.int64)
        score_QK = np.zeros((len(contexts), k), dtype=np.float32)
        shares = {name: np.zeros_like(score_QK) for name in self._names} if explain else {}
        with answering(self.model):
            for block in self._blocks(contexts):
                weight_QK = block.weights(self._weight_K)
                score_QE = block.mix(weight_QK, block.exponentials())
                rows = slice(block.first, block.first + len(block))
                for row, number_X in enumerate(exclude[rows] if exclude is not None else ()):
                    column_X = self.eligible.column_of(number_X)
                    score_QE[row, torch.from_numpy(column_X[column_X >= 0]).to(score_QE.device)] = -torch.inf
                column_QB, best_QB = best(score_QE, min(k, len(self.eligible)))
                there_QB = np.isfinite(best_QB)
                number_QK[rows, : column_QB.shape[1]] = np.where(there_QB, self.eligible.number_E[column_QB], -1)
                score_QK[rows, : column_QB.shape[1]] = np.where(there_QB, best_QB, 0.0)
                row_T, place_T = np.nonzero(there_QB)
                if explain:
                    found = block.shares(weight_QK, row_T, column_QB[there_QB], best_QB[there_QB])
                    for name, share_T in found.items():
                        shares[name][block.first + row_T, place_T] = share_T
        return Top(number_QK, score_QK, self._is_silent(self.known(contexts)), shares)

    def judge(
        self,
        contexts: Contexts,
        target_T: NDArray[np.int64],
        target_offset_R: NDArray[np.int64],
        heard: MutableMapping[int, Heard] | None = None,
        ranks_only: bool = False,
        controls: NDArray[np.int64] | None = None,
    ) -> Judged:
        """Rank and probability of each target; query q has the targets between its two offsets.

        With ``ranks_only``, nothing but what the blend and the neural expert make of them. ``controls`` are item
        numbers that the blend compares every target with. ``heard`` is what these counters have said to the same
        queries, by block: read where it is there, else filled in, so that several versions with the same counters ask
        them once.
        """
        told = () if ranks_only else self._names
        judged = Judged(
            {name: np.full(len(target_T), MISS, dtype=np.int64) for name in (BLEND, NEURAL, *told[1:-1])},
            {name: np.full(len(target_T), np.nan) for name in told},
            {name: np.full(len(target_T), np.nan) for name in told[:-1]},
            None if controls is None else np.full(len(target_T), np.nan),
            None if ranks_only or self._split is None else OnRepeats.nothing(told, len(target_T)),
        )
        control_C = self.eligible.column_of(controls if controls is not None else _NOTHING)
        control_C = control_C[control_C >= 0]
        column_T = self.eligible.column_of(target_T)
        query_T = np.repeat(np.arange(len(contexts)), np.diff(target_offset_R))
        with answering(self.model):
            for block in self._blocks(contexts, heard):
                begin, end = target_offset_R[block.first], target_offset_R[block.first + len(block)]
                index_T = begin + np.flatnonzero(column_T[begin:end] >= 0)
                row_T = query_T[index_T] - block.first
                if not ranks_only:
                    _judge_votes(block, index_T, row_T, column_T[index_T], judged)
                if judged.repeated is not None and block.repeated is not None:
                    block.repeated.judge(index_T, row_T, column_T[index_T], judged.repeated)
                self._judge_mix(block, index_T, row_T, column_T[index_T], control_C, judged)
        return judged

    def probabilities(self, contexts: Contexts) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Block by block, which queries, and every expert's probabilities ``(Q, E)``, by name: for studies of the mix.

        Zeros where an expert abstains. Over all items, also where the blend is split.
        """
        whole = copy(self)
        whole._split = None
        with answering(self.model):
            for block in whole._blocks(contexts):
                yield slice(block.first, block.first + len(block)), block.probabilities(block.exponentials())

    def remixed(self, weights: Weights, exponents: Mapping[str, float], split: Split | None = None) -> "Recommender":
        """The same version with another blend; everything else is shared."""
        other = copy(self)
        other._weight_K, other._split = self._in_order(weights), split
        other._exponents = dict(exponents)
        other._voters = Voters(self.experts, self.eligible, other._exponents)
        return other

    def beside(self, live: "Recommender") -> "Recommender":
        """What would be served now if the learner went back to this version: its model and blend, and live's counters.

        Items that it has no row for have probability 0 in its model.
        """
        assert self._names == live._names
        row_I = np.full(max(len(live._slot_I), len(self._slot_I)), -1, dtype=np.int64)
        row_I[: len(self._slot_I)] = self._slot_I
        row_E = torch.from_numpy(row_I[live.eligible.number_E]).to(self.model.table.weight.device)
        other = copy(self)
        other.experts, other.eligible, other.seen_last = live.experts, live.eligible, live.seen_last
        other.watermark_ms = live.watermark_ms
        other._voters = Voters(other.experts, other.eligible, self._exponents)
        other._slot_E, other._absent_E, other._frozen_ED = row_E.clamp(min=0), row_E < 0, None
        other._beside = live
        if self._split is not None and live._split is not None:  # how often targets come again is the stream's to say
            asked_B, repeated_B = live._split.asked_B, live._split.repeated_B
            other._split = replace(self._split, asked_B=asked_B, repeated_B=repeated_B)
        return other

    def _in_order(self, weights: Weights) -> NDArray[np.float64]:
        weight_of = weights.as_mapping()
        return np.array([weight_of[name] for name in self._names], dtype=np.float64)

    def _judge_mix(
        self,
        block: Block,
        index_T: NDArray[np.int64],
        row_T: NDArray[np.int64],
        column_T: NDArray[np.int64],
        control_C: NDArray[np.int64],
        judged: Judged,
    ) -> None:
        """The neural expert's and the blend's part of ``judged`` at ``index_T``."""
        on_T = block.neural_Q[row_T]
        judged.rank[NEURAL][index_T[on_T]] = rank(block.logits_QE, row_T[on_T], column_T[on_T])
        total_Q = block.exponentials()
        if NEURAL in judged.probability:
            on_T = on_T & _unseen(block, row_T, column_T)
            value_T = values(block.logits_QE, row_T[on_T], column_T[on_T]).double().cpu().numpy()
            p_T = value_T / total_Q[row_T[on_T]]
            judged.probability[NEURAL][index_T[on_T]] = p_T
            judged.slope[NEURAL][index_T[on_T]] = slope(p_T, block.entropy(total_Q)[row_T[on_T]])
        score_QE = block.mix(block.weights(self._weight_K), total_Q)
        judged.rank[BLEND][index_T] = rank(score_QE, row_T, column_T)
        if judged.above_T is not None:
            judged.above_T[index_T] = share_below(score_QE, row_T, column_T, control_C)

    def _blocks(self, contexts: Contexts, heard: MutableMapping[int, Heard] | None = None) -> Iterator[Block]:
        """What every expert says, block by block; nothing where no item is eligible."""
        if not len(self.eligible):
            return
        met = newest(self.known(contexts), self.max_events)
        asked = newest(self._beside.known(contexts), self.max_events) if self._beside else met
        items_ED = self._items()
        encoded_QD, silent_Q = encode(self.model, met, self._slot_I, self.max_events), self._is_silent(met)
        for first in range(0, len(asked), BLOCK):
            block = asked.take(np.arange(first, min(first + BLOCK, len(asked))))
            seen = Seen(block, self.eligible) if self.seen_last or self._split is not None else None
            query_QD = encoded_QD[first : first + BLOCK]
            padded_BD = torch.nn.functional.pad(query_QD, (0, 0, 0, BLOCK - len(block)))
            logits_QE = (self.model.query_side(padded_BD) @ items_ED.T)[: len(block)]
            said = heard.get(first) if heard is not None else None
            if said is None:
                said = self._voters.hear(block, query_QD.cpu().numpy())
            if heard is not None:
                heard[first] = said
            if self._prior is not None:
                offset_of(self._prior, said, len(self.eligible), logits_QE.device).add_(logits_QE)
            if (exponent := self._exponents.get(NEURAL, 1.0)) != 1.0:
                logits_QE *= exponent
            if self._absent_E is not None:
                logits_QE.masked_fill_(self._absent_E, -torch.inf)
            met_Q = ~silent_Q[first : first + BLOCK]
            yield self._block(first, block.length_Q, logits_QE, met_Q, said, seen)

    def _is_silent(self, met: Contexts) -> NDArray[np.bool_]:
        """Of which contexts the model has nothing to say."""
        is_silent_Q: NDArray[np.bool_] = (met.length_Q == 0) & (not self.model.reads_empty)
        return is_silent_Q

    def _block(
        self,
        first: int,
        length_Q: NDArray[np.int64],
        logits_QE: Tensor,
        met_Q: NDArray[np.bool_],
        said: Heard,
        seen: Seen | None,
    ) -> Block:
        """Of contexts of so many events: the model's logits, unless it has met none of them, and what counters said."""
        split = None if self.seen_last else self._split
        row_S, column_S = (seen.row_S, seen.column_S) if seen is not None else (_NOTHING, _NOTHING)
        logit_S = values(logits_QE, row_S, column_S) if split is not None else None
        put_seen(logits_QE, seen, -torch.inf)
        highest_Q = logits_QE.amax(dim=1)
        finite_Q = torch.isfinite(highest_Q).cpu().numpy()
        self._voters.faults[NEURAL] += int((met_Q & ~finite_Q).sum())
        neural_Q, votes = met_Q & finite_Q, self._voters.votes(said, len(length_Q), seen)
        if split is None or seen is None or logit_S is None:
            return Block(first, logits_QE, highest_Q, neural_Q, votes, seen, votes, None)
        put_seen(logits_QE, seen, logit_S)
        alone = self._voters.again(said, len(length_Q), None)
        repeated = Repeated(split, seen, logit_S.double().cpu().numpy(), neural_Q, alone, length_Q)
        return Block(first, logits_QE, highest_Q, neural_Q, votes, seen, alone, repeated)

    def _items(self) -> Tensor:
        """The eligible items' side of the product, ``(E, D)``."""
        if self._frozen_ED is not None:
            return self._frozen_ED
        return self.model.item_side(self.model.table.vectors(self._slot_E))


def _judge_votes(
    block: Block,
    index_T: NDArray[np.int64],
    row_T: NDArray[np.int64],
    column_T: NDArray[np.int64],
    judged: Judged,
) -> None:
    """The counters' and the uniform expert's part of ``judged`` at ``index_T``, for these rows and columns."""
    unseen_T = _unseen(block, row_T, column_T)
    judged.probability[UNIFORM][index_T[unseen_T]] = 1.0 / block.num_unseen_Q[row_T[unseen_T]]
    for name, vote in block.votes.items():
        alone = block.alone[name]
        if vote is not None and alone is not None:
            on_T = alone.active_Q[row_T]
            judged.rank[name][index_T[on_T]] = alone.rank(row_T[on_T], column_T[on_T])
            on_T = vote.active_Q[row_T] & unseen_T
            p_T = vote.probability(row_T[on_T], column_T[on_T])
            judged.probability[name][index_T[on_T]] = p_T
            judged.slope[name][index_T[on_T]] = slope(p_T, vote.entropy(len(block))[row_T[on_T]])


def _unseen(block: Block, row_T: NDArray[np.int64], column_T: NDArray[np.int64]) -> NDArray[np.bool_]:
    if block.seen is None:
        return np.ones(len(row_T), dtype=np.bool_)
    return ~block.seen.holds(row_T, column_T)
