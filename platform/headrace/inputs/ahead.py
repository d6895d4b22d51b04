"""Multi-session prediction (TBGRecall, arXiv 2508.11977): a session's items are targets of earlier questions, too.

Shape legend: T targets, N events of all contexts.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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
    made = examples.pick(index_T, contexts, examples.sequence_T[index_T])
    return replace(made, position_T=position_T[order_T], weight_T=weight_T[order_T])


def question_of(examples: Examples) -> NDArray[np.int64]:
    """A number for each target, the same for those of one session that are asked at one place of one sequence.

    What a session's own question and those before it have in common is told by where its own is: nearest to the end.
    """
    names = (examples.row_T, examples.shard_T, examples.sequence_T)
    position_T = examples.position_T
    order_T = np.lexsort((position_T, *names))
    is_own_T = np.ones(len(order_T), dtype=np.bool_)
    is_own_T[1:] = np.any([np.diff(name[order_T]) != 0 for name in names], axis=0)
    own_T = np.empty_like(position_T)
    own_T[order_T] = position_T[order_T][np.flatnonzero(is_own_T)][np.cumsum(is_own_T) - 1]
    reach = int(position_T.max(initial=0)) + 1
    return (examples.sequence_T * reach + position_T) * reach + own_T
