"""Elastic weight consolidation (arXiv 1612.00796): what earlier increments leaned on is held where it was.

After each increment the diagonal Fisher information of a sample of its examples is added to what is left of the
earlier ones' (online EWC, arXiv 1805.06370); the anchor is the model as the increment began, which is what the commit
before holds. A row of the table that no item had then has neither, and loses both when it passes to another item.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config.methods import EwcConfig
from headrace.inputs.examples import Examples
from headrace.methods.base import Learned, Method
from headrace.methods.fisher import Asked, fisher_sums
from headrace.models.base import RecallModel
from headrace.records import hash64, hash64_array

_TABLE = "table"


class Ewc(Method):
    """Half the Fisher-weighted squared distance from where the increment began."""

    def __init__(self, config: EwcConfig) -> None:
        self.config = config
        self._fisher: dict[str, Tensor] = {}
        """By parameter; of the table, the rows that were in use."""
        self._anchor: dict[str, Tensor] = {}

    def begin_increment(self, model: RecallModel, increment: int) -> None:
        """The weights of now are the anchor; see ``Method``."""
        weights = _weights(model)
        self._fisher = {name: value.to(weights[name]) for name, value in self._fisher.items()}
        self._anchor = {name: weights[name][: len(value)].clone() for name, value in self._fisher.items()}

    def reset_rows(self, slot_R: NDArray[np.int64]) -> None:
        """Rows of other items are free to move; see ``Method``."""
        if self._fisher:
            held_R = slot_R[slot_R < len(self._fisher[_TABLE])]
            self._fisher[_TABLE][torch.from_numpy(held_R).to(self._fisher[_TABLE].device)] = 0.0

    def penalties(self, model: RecallModel) -> Mapping[str, Tensor]:
        """Nothing in the first increment; see ``Method``."""
        if not self._fisher:
            return {}
        total = model.table.weight.new_zeros(())
        named = {f"encoder/{name}": value for name, value in model.encoder.named_parameters()}
        named[_TABLE] = model.table.weight
        for name, fisher in self._fisher.items():
            away = named[name][: len(fisher)] - self._anchor[name]
            total = total + (fisher * away).flatten() @ away.flatten()
        return {"ewc": 0.5 * self.config.strength * total}

    def end_increment(self, model: RecallModel, learned: Learned) -> None:
        """Add the mean over a sample of this increment's examples; see ``Method``."""
        self._anchor = {}
        if not len(learned.slot_E):
            return
        asked = self._sample(learned)
        num_rows = 1 + int(learned.slot_I.max())
        if self._fisher:  # the last rows may have lost their items since
            num_rows = max(num_rows, len(self._fisher[_TABLE]))
        sums = fisher_sums(model, asked, learned.slot_I, learned.slot_E, num_rows)
        weight = model.table.weight.new_tensor([asked.weight_T.sum(dtype=np.float64)])
        learned.sum_(weight)
        if not float(weight) > 0.0:
            return
        for name, total in sums.items():
            learned.sum_(total)
            total /= weight
            if name in self._fisher:
                before = self._fisher[name]
                total[: len(before)] += self.config.decay * before
        self._fisher = sums

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """The Fisher information by parameter; the anchors are the weights themselves, which the commit holds, too."""
        return {name: value.cpu().numpy().copy() for name, value in self._fisher.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what ``state_dict`` gave."""
        self._fisher = {name: torch.from_numpy(value.copy()) for name, value in state.items()}

    def _sample(self, learned: Learned) -> Asked:
        """This rank's part of about ``examples`` targets of all ranks, drawn by their names, each with its context."""
        examples = learned.examples
        column_T = np.searchsorted(learned.slot_E, learned.slot_I[examples.target_T])
        column_T = np.minimum(column_T, len(learned.slot_E) - 1)
        is_scored_T = learned.slot_E[column_T] == learned.slot_I[examples.target_T]
        can_T = is_scored_T & (examples.weight_T > 0.0) & (examples.position_T < _length(examples))
        number = torch.tensor([float(can_T.sum())], dtype=torch.float64, device=learned.device)
        learned.sum_(number)
        share = self.config.examples / max(float(number), 1.0)
        chosen_T = np.flatnonzero(can_T & (_draw(learned, "sample") < share))
        draw_T = _draw(learned, "label")[chosen_T] if self.config.labels == "model" else None
        contexts, weight_T = examples.contexts_of(chosen_T), examples.weight_T[chosen_T]
        return Asked(contexts, column_T[chosen_T], weight_T, draw_T, learned.prior)


def _length(examples: Examples) -> NDArray[np.int64]:
    """Events of each target's sequence."""
    return examples.contexts.length_Q[examples.sequence_T]


def _draw(learned: Learned, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each target, by where its row lies: the same whatever the number of ranks."""
    examples = learned.examples
    shard_T = hash64_array(examples.shard_T, learned.seed, "fisher", purpose, learned.increment)
    word_T = hash64_array(shard_T ^ examples.row_T.astype(np.uint64), hash64(learned.seed, "fisher row", purpose))
    return (word_T >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _weights(model: RecallModel) -> dict[str, Tensor]:
    encoder = {f"encoder/{name}": value.detach() for name, value in model.encoder.named_parameters()}
    return {**encoder, _TABLE: model.table.weight.detach()}
