"""Encodings that the loop makes for others: of what experts keep (experts/base.Encoding), and of examples to herd.

Shape legend: N contexts, S examples, D width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config.methods import FrequencyConfig
from headrace.experts.base import Encoding
from headrace.inputs.contexts import Contexts
from headrace.inputs.examples import Examples
from headrace.recommend.encode import answering, encode, newest
from headrace.replay.herding import herding_order
from headrace.train.state import LearnerState


def encode_experts(state: LearnerState) -> None:
    """After the experts have counted: those that compare encodings get what they ask for, by the model as it is now.

    Every rank encodes a part, and all parts are gathered, so that all ranks hold the same bytes.
    """
    group = state.step.group
    for expert in state.experts:
        if isinstance(expert, Encoding):
            asked = expert.to_encode()
            vector = _encode(state, asked.take(np.arange(group.rank, len(asked), group.world)))
            vector_ND = np.zeros((len(asked), vector.shape[1]), dtype=np.float32)
            for rank, part in enumerate(group.gather({"vector": vector.cpu().numpy()})):
                vector_ND[rank :: group.world] = part["vector"]
            expert.encoded(vector_ND)


def herded(state: LearnerState, made: Examples) -> NDArray[np.float32] | None:
    """The order of this rank's examples within their items, if replay keeps them by it."""
    policy = state.recipe.replay.policy
    if state.replay is None or not isinstance(policy, FrequencyConfig) or policy.within != "herding":
        return None
    direction = torch.nn.functional.normalize(_encode(state, made.contexts), dim=1)
    first_S = np.searchsorted(made.sequence_T, np.arange(len(made)))
    return herding_order(made.target_T[first_S], direction.cpu().numpy())


def _encode(state: LearnerState, contexts: Contexts) -> Tensor:
    """Query vectors ``(N, D)``, zeros where the model knows no item of a context."""
    slot_I, max_events = state.catalogue.slot_I, state.recipe.inputs.max_events
    with answering(state.model):
        return encode(state.model, newest(contexts.known(slot_I), max_events), slot_I, max_events)
