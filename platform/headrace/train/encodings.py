"""Encodes what experts keep (experts/base.Encoding): every rank a part, gathered, so that all hold the same bytes.

Shape legend: N contexts, D width.
"""

import numpy as np

from headrace.experts.base import Encoding
from headrace.recommend.encode import answering, encode, newest
from headrace.train.state import LearnerState


def encode_experts(state: LearnerState) -> None:
    """After the experts have counted: those that compare encodings get what they ask for, by the model as it is now."""
    group, max_events = state.step.group, state.recipe.inputs.max_events
    slot_I = state.catalogue.slot_I
    for expert in state.experts:
        if isinstance(expert, Encoding):
            asked = expert.to_encode().known(slot_I)
            mine = asked.take(np.arange(group.rank, len(asked), group.world))
            with answering(state.model):
                vector = encode(state.model, newest(mine, max_events), slot_I, max_events)
            vector_ND = np.zeros((len(asked), vector.shape[1]), dtype=np.float32)
            for rank, part in enumerate(group.gather({"vector": vector.cpu().numpy()})):
                vector_ND[rank :: group.world] = part["vector"]
            expert.encoded(vector_ND)
