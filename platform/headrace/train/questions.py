"""From an intake to what is asked of it: prequential queries, training examples, and the rows that experts count.

One rule for all three: a row's context is what its owner or session did strictly before it. Where sessions are sets, a
session asks once, at its start, for all of its items. Shape legend: N rows, S sequences, T targets, Q queries.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.config.feed import InputsConfig
from headrace.evaluation.prequential import Queries
from headrace.experts.base import Counted
from headrace.inputs.contexts import Contexts, build_contexts, offsets, ranges, span_before
from headrace.inputs.examples import Examples
from headrace.inputs.told import request_of
from headrace.train.intake import Fate, Intake


def queries(intake: Intake, config: InputsConfig, fate: Fate = Fate.TRAINED) -> Queries:
    """The prequential queries of this rank's learned rows (or of those held out), in ledger order."""
    asked_N = (intake.learned_N if fate == Fate.TRAINED else intake.fate_N == fate) & intake.rows.target_N
    if config.sessions == "sequence":
        index_T = np.flatnonzero(asked_N & intake.begun_N)
        first_Q, offset_R = index_T, np.arange(len(index_T) + 1)
        contexts = _contexts(intake, index_T, config)
    else:
        index_T, offset_R, opening_Q = _sets(intake, asked_N & ~intake.opened_N)
        first_Q = index_T[offset_R[:-1]]
        contexts = _contexts(intake, opening_Q, config)
    rows = intake.rows
    target_T = intake.number_N[index_T]
    return Queries(contexts, target_T, offset_R, rows.shard_N[first_Q], rows.row_N[first_Q], rows.event_N[first_Q])


def examples(
    intake: Intake,
    config: InputsConfig,
    shape: str,
    reads_empty: bool = False,
    level_N: NDArray[np.int8] | None = None,
) -> Examples:
    """The training examples of this rank's trained rows; ``shape`` is "prefixes" or "sessions" (one pass).

    Without ``reads_empty``, those whose context is empty are left out. ``level_N`` (where sessions are sets): the
    targets are the rows that show one of these levels, -1 being none, but for rows that show less than another one of
    their session and item.
    """
    wanted_N = intake.trained_N & (intake.rows.target_N if level_N is None else level_N >= 0)
    if config.sessions == "set":
        index_T, offset_R, opening_S = _sets(intake, wanted_N & ~intake.opened_N)
        if level_N is not None:
            index_T, offset_R = _strongest(intake, index_T, offset_R, level_N)
        if shape == "sessions":
            return _one_pass(intake, index_T, np.repeat(opening_S, np.diff(offset_R)), config, reads_empty, level_N)
        contexts = _contexts(intake, opening_S, config)
        sequence_T = np.repeat(np.arange(len(opening_S)), np.diff(offset_R))
        place_T = np.zeros(len(index_T), dtype=np.int64)
        return _examples(intake, contexts, sequence_T, place_T, index_T, reads_empty, level_N)
    assert level_N is None, "recipes refuse levels where a question has one target"
    if shape == "prefixes":
        index_T = np.flatnonzero(wanted_N)
        contexts = _contexts(intake, index_T, config)
        place_T = np.arange(len(index_T))
        return _examples(intake, contexts, place_T, np.zeros_like(place_T), index_T, reads_empty)
    index_T = np.flatnonzero(wanted_N)
    return _one_pass(intake, index_T, index_T, config, reads_empty)


def counted(intake: Intake, config: InputsConfig) -> Counted:
    """The learned rows of target kinds, in ledger order, each with its context."""
    index_N = np.flatnonzero(intake.learned_N & intake.rows.target_N)
    contexts = _contexts(intake, index_N, config)
    rows = intake.rows
    return Counted(
        intake.number_N[index_N],
        rows.ts_N[index_N],
        intake.session_N[index_N],
        intake.owner_N[index_N],
        rows.weight_N[index_N],
        contexts,
    )


def _contexts(intake: Intake, index_Q: NDArray[np.int64], config: InputsConfig) -> Contexts:
    """Of the requests that these rows are answers to: asked when they happened, and told what is told of them."""
    key_Q, session_Q, as_of_Q = intake.key_N[index_Q], intake.session_N[index_Q], intake.rows.ts_N[index_Q]
    told_Q = request_of(intake.told_N[index_Q])
    return build_contexts(intake.log, key_Q, as_of_Q, session_Q, config.max_events, told_Q)


def _sets(
    intake: Intake, wanted_N: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows grouped by session, sessions by first row: row indices (T,), offsets (Q+1,), earliest rows (Q,)."""
    index_N = np.flatnonzero(wanted_N)
    unique_S, first_S, inverse = np.unique(intake.session_N[index_N], return_index=True, return_inverse=True)
    rank_S = np.empty(len(unique_S), dtype=np.int64)
    rank_S[np.argsort(first_S)] = np.arange(len(unique_S))
    query_N = rank_S[inverse]
    order = np.argsort(query_N, kind="stable")
    offset_R = offsets(np.bincount(query_N, minlength=len(unique_S)).astype(np.int64))
    index_T = index_N[order]
    in_time_T = index_T[np.lexsort((intake.rows.ts_N[index_T], query_N[order]))]
    return index_T, offset_R, in_time_T[offset_R[:-1]]


def _strongest(
    intake: Intake, index_T: NDArray[np.int64], offset_R: NDArray[np.int64], level_N: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows grouped by session, without those that show less than another of their item: row indices, offsets."""
    set_T = np.repeat(np.arange(len(offset_R) - 1), np.diff(offset_R))
    number_T = intake.number_N[index_T]
    _, pair_T = np.unique(set_T * (int(number_T.max(initial=0)) + 1) + number_T, return_inverse=True)
    highest_U = np.full(int(pair_T.max(initial=-1)) + 1, -1, dtype=np.int8)
    np.maximum.at(highest_U, pair_T, level_N[index_T])
    kept_T = level_N[index_T] == highest_U[pair_T]
    return index_T[kept_T], offsets(np.bincount(set_T[kept_T], minlength=len(offset_R) - 1))


def _one_pass(
    intake: Intake,
    index_T: NDArray[np.int64],
    opening_T: NDArray[np.int64],
    config: InputsConfig,
    reads_empty: bool,
    level_N: NDArray[np.int8] | None = None,
) -> Examples:
    """Windows over each key's events, the last one ending at its newest, with a target wherever a new row is asked.

    Each target is asked for when the row ``opening_T`` happened: the first of its set, or itself.
    """
    log, size = intake.log, config.max_events
    key_T = intake.key_N[index_T]
    first_T, before_T = span_before(log, key_T, intake.rows.ts_N[opening_T])
    stop_T = np.searchsorted(log.key_N, key_T, side="right")
    at_T = before_T - 1  # the newest strictly earlier event; before the first where there is none
    asked_T = (at_T >= first_T) | reads_empty
    index_T, opening_T, at_T = index_T[asked_T], opening_T[asked_T], at_T[asked_T]
    first_T, stop_T = first_T[asked_T], stop_T[asked_T]
    back_T = stop_T - 1 - at_T
    end_T = stop_T - back_T // size * size
    window_T = 2 * end_T + (end_T == first_T)  # an empty one ends where that of the key before does
    order = np.lexsort((at_T, window_T))
    index_T, opening_T, first_T, at_T = (of_T[order] for of_T in (index_T, opening_T, first_T, at_T))
    end_T, window_T = end_T[order], window_T[order]
    _, lead_S, sequence_T = np.unique(window_T, return_index=True, return_inverse=True)
    end_S = end_T[lead_S]
    last_S = np.append(lead_S, len(end_T))[1:] - 1  # asked nearest to the window's end
    start_S = np.maximum(first_T[lead_S], end_S - size)
    flat = ranges(start_S, end_S - start_S)
    contexts = Contexts(
        log.item_N[flat],
        log.ts_N[flat],
        log.kind_N[flat],
        offsets(end_S - start_S),
        intake.rows.ts_N[opening_T[last_S]],
        intake.session_N[opening_T[last_S]],
        request_of(intake.told_N[opening_T[last_S]]),
    )
    return _examples(intake, contexts, sequence_T, end_T - 1 - at_T, index_T, reads_empty, level_N)


def _examples(
    intake: Intake,
    contexts: Contexts,
    sequence_T: NDArray[np.int64],
    position_T: NDArray[np.int64],
    index_T: NDArray[np.int64],
    reads_empty: bool,
    level_N: NDArray[np.int8] | None = None,
) -> Examples:
    """Examples, unless asked for without those whose context is empty, of which most models learn nothing."""
    rows = intake.rows
    made = Examples(
        contexts,
        sequence_T,
        position_T,
        intake.number_N[index_T],
        rows.weight_N[index_T],
        rows.ts_N[index_T],
        rows.shard_N[index_T],
        rows.row_N[index_T],
        None if level_N is None else level_N[index_T],
    )
    some_S = np.flatnonzero((contexts.length_Q > 0) | reads_empty)
    return made if len(some_S) == len(contexts) else made.take(some_S)
