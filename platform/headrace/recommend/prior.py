"""What the counters expect, as an offset to the model's logits, so that the model learns what they lack.

The prior of a query is the mean of the named experts' probabilities, a part of it spread evenly, so that nothing is
impossible. Its logarithm is added to the logits, in training by the counters as they were before the cut, in answers by
those of the version. What an expert does not say of a query leaves the others as they are: a softmax takes no notice of
a factor. Shape legend: Q queries, E eligible items, N entries of sparse votes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.models import PriorConfig
from headrace.experts.base import Expert, Shared, Sparse
from headrace.inputs.contexts import Contexts
from headrace.models.offset import Offset
from headrace.recommend.votes import Heard, Voters

_Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def offset_of(
    config: PriorConfig, heard: Heard, num_items: int, device: torch.device, place_E: NDArray[np.int64] | None = None
) -> Offset:
    """The offset of a block of queries, of what its experts were heard to say.

    ``place_E``: where each eligible item's column lies, if they are not scored in the eligible set's order.
    """
    scale = (1.0 - config.floor) / len(config.experts)
    base_E = np.full(num_items, config.floor / num_items)
    entries = []
    for name in config.experts:
        match heard[name]:
            case Shared(p_E):
                base_E += scale * np.where(np.isfinite(p_E) & (p_E > 0.0), p_E, 0.0)
            case Sparse() as sparse:
                entries.append(_entries(sparse, scale))
            case None:
                pass
    row_N, column_N, p_N = (np.concatenate(parts) for parts in zip(_NOTHING, *entries, strict=True))
    key_C, of_N = np.unique(row_N * num_items + column_N, return_inverse=True)
    row_C, column_C = np.divmod(key_C, num_items)
    added_C = np.log1p(np.bincount(of_N, p_N, len(key_C)) / base_E[column_C])
    shared_E = np.log(base_E)
    if place_E is not None:
        column_C, moved_E = place_E[column_C], np.empty_like(shared_E)
        moved_E[place_E] = shared_E
        shared_E = moved_E
    arrays = (shared_E.astype(np.float32), row_C, column_C, added_C.astype(np.float32))
    return Offset(*(torch.from_numpy(array).to(device) for array in arrays))


class Prior:
    """The prior of training: the counters as they are now, over the items that are scored."""

    def __init__(
        self,
        config: PriorConfig,
        experts: Sequence[Expert],
        eligible: Eligible,
        slot_I: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self._config = config
        self._voters = Voters([expert for expert in experts if expert.name in config.experts], eligible, {})
        self._num_items = len(eligible)
        self._device = device
        slot_E = slot_I[eligible.number_E]
        self._place_E = None if (np.diff(slot_E) > 0).all() else np.argsort(np.argsort(slot_E))

    def __call__(self, contexts: Contexts) -> Offset:
        """The offset of these contexts' queries; columns are the scored rows of the table, ascending."""
        heard = self._voters.hear(contexts, np.zeros((len(contexts), 0), dtype=np.float32))
        return offset_of(self._config, heard, self._num_items, self._device, self._place_E)


def _entries(sparse: Sparse, scale: float) -> _Entries:
    row_N = np.repeat(np.arange(len(sparse.offset_R) - 1), np.diff(sparse.offset_R))
    sound_N = np.isfinite(sparse.p_T) & (sparse.p_T > 0.0)
    return row_N[sound_N], sparse.column_T[sound_N], scale * sparse.p_T[sound_N].astype(np.float64)


_NOTHING: _Entries = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
