"""Multi-session prediction (TBGRecall, arXiv 2508.11977): a session's items are targets of earlier questions, too.

Shape legend: T targets, N events of all contexts.
"""

from dataclasses import replace

import numpy as np

from headrace.inputs.examples import Examples
from headrace.inputs.sessions import ragged_begins


def ahead(examples: Examples, num_sessions: int, weight: float, gap_s: int) -> Examples:
    """Each target is also asked for where the ``num_sessions - 1`` sessions before its own began.

    A question within a session has its own session's start before it. Each further back weighs ``weight`` times the one
    after it; a silence of more than ``gap_s`` ends a session. Where nothing had happened before, nothing is asked.
    """
    contexts = examples.contexts
    begins_N = ragged_begins(contexts.ts_T, contexts.offset_R, gap_s)
    starts_N = np.maximum.accumulate(np.where(begins_N, np.arange(len(begins_N)), 0))
    first_T, end_T = contexts.offset_R[examples.sequence_T], contexts.offset_R[examples.sequence_T + 1]
    index_T = np.arange(len(examples.target_T))
    parts = [(index_T, examples.position_T, examples.weight_T)]
    for _ in range(num_sessions - 1):
        index_T, position_T, weight_T = parts[-1]
        at_T = end_T[index_T] - position_T
        has_past_T = at_T > first_T[index_T]
        index_T, at_T, weight_T = index_T[has_past_T], starts_N[at_T[has_past_T] - 1], weight_T[has_past_T]
        asked_T = at_T > first_T[index_T]
        index_T, at_T, weight_T = index_T[asked_T], at_T[asked_T], weight_T[asked_T]
        parts.append((index_T, end_T[index_T] - at_T, (weight_T * weight).astype(np.float32)))
    index_T, position_T, weight_T = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_T = np.argsort(examples.sequence_T[index_T], kind="stable")
    index_T = index_T[order_T]
    return replace(
        examples,
        sequence_T=examples.sequence_T[index_T],
        position_T=position_T[order_T],
        target_T=examples.target_T[index_T],
        weight_T=weight_T[order_T],
        ts_T=examples.ts_T[index_T],
        shard_T=examples.shard_T[index_T],
        row_T=examples.row_T[index_T],
    )
