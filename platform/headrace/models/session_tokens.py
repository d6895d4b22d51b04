"""Where the tokens of a batch stand for next-session prediction (TBGRecall, arXiv 2508.11977), and who sees whom.

A session begins where a longer silence ends. Each has a context token, which opens it, and the items of one session do
not see each other. A question is a context token, too: of the session that begins where it asks; where the events go on
without a silence it stands apart, and no other token sees it. So the same events and question give the same vector,
whatever else is asked of the row. numpy alone; the order of tokens is: L events, then up to C context tokens.
``packed`` leaves padding out, row by row, since rows with few events may have many sessions, and the other way round.
Shape legend: B batch, L length, C context tokens of a row, T tokens of a row (L + C, or as many as the fullest row
has), P questions, N tokens of all rows.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.inputs.contexts import ModelInputs
from headrace.inputs.sessions import padded_begins
from headrace.inputs.told import Codes, request_of

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SessionTokens:
    """Made by ``lay_out``, read by ``models.nsp``."""

    place_BT: Ints
    """The number of each token's session in its row, from 0; what rotary embeddings turn by."""
    is_there_BT: Bools
    """Whether there is a token; what is not there sees itself, so that no row of a softmax is empty."""
    seen_BTT: Bools
    """Whether the token of the row sees that of the column."""
    opens_ms_BC: Ints
    """When the session that a context token opens begins."""
    silence_ms_BC: Ints
    """How long nothing had happened then; -1: there is nothing before."""
    told_BC: Codes
    """What is told of the request: what was told of the event that the session begins with; 0: nothing."""
    question_P: Ints
    """The context token of each question, among the row's C."""
    event_N: Ints
    """Where events lie among the B x L of the batch, row after row."""
    event_at_N: Ints
    """Where their tokens lie among the B x T, row after row."""
    context_N: Ints
    """Where context tokens lie among the B x C."""
    context_at_N: Ints
    """The same among the B x T."""
    context_at_BC: Ints
    """Each context token's place among its row's T; of one that is not there, 0 where rows are packed."""


def lay_out(
    inputs: ModelInputs,
    row_P: Ints,
    back_P: Ints,
    gap_s: int,
    places: Literal["session", "token"] = "session",
    items_see: Literal["earlier_sessions", "earlier_items"] = "earlier_sessions",
    is_rounded: bool = False,
) -> SessionTokens:
    """Tokens of a batch and its questions, ``back_P`` events before the newest one of row ``row_P``.

    A silence of more than ``gap_s`` seconds ends a session. ``places`` and ``items_see`` name what an ablation changes:
    a place for each token, and a plain causal mask. ``is_rounded``: C is a power of two.
    """
    is_event_BL = inputs.slot_BL >= 0
    num_rows, length = is_event_BL.shape
    begins_BL = padded_begins(inputs.ts_BL, is_event_BL, gap_s)
    begun_BL = np.cumsum(begins_BL, axis=1, dtype=np.int64)
    session_BL = begun_BL - 1
    first_B = length - is_event_BL.sum(axis=1)
    asks_at_P = np.maximum(length - back_P, first_B[row_P])
    is_apart_P = np.pad(~begins_BL, ((0, 0), (0, 1)), constant_values=True)[row_P, asks_at_P]
    row_N, column_N = np.nonzero(begins_BL)
    own_N = (row_N * (length + 1) + column_N) * 2
    asked_P = (row_P * (length + 1) + asks_at_P) * 2 + is_apart_P
    key_N = np.unique(np.concatenate([own_N, asked_P]))
    row_N, column_N, apart_N = key_N // 2 // (length + 1), key_N // 2 % (length + 1), key_N % 2 == 1
    place_N = np.arange(len(key_N)) - np.searchsorted(row_N, row_N)
    question_P = place_N[np.searchsorted(key_N, asked_P)]
    width = int(place_N.max(initial=-1)) + 1
    width = int(rounded_up(np.array(max(width, 1)))) if is_rounded else width
    column_BC = np.full((num_rows, width), -1, dtype=np.int64)
    apart_BC = np.zeros((num_rows, width), dtype=np.bool_)
    column_BC[row_N, place_N], apart_BC[row_N, place_N] = column_N, apart_N
    before_BC = np.pad(begun_BL, ((0, 0), (1, 0)))[np.arange(num_rows)[:, None], column_BC]
    is_there_BT = np.concatenate([is_event_BL, column_BC >= 0], axis=1)
    session_BT = np.where(is_there_BT, np.concatenate([session_BL, before_BC], axis=1), 0)
    opens_ms_BC, silence_ms_BC = _times(inputs, first_B, column_BC)
    every_BT = np.arange(is_there_BT.size).reshape(is_there_BT.shape)
    return SessionTokens(
        session_BT if places == "session" else _turns(is_event_BL, column_BC),
        is_there_BT,
        _seen(is_event_BL, session_BL, column_BC, apart_BC, before_BC, items_see),
        opens_ms_BC,
        silence_ms_BC,
        _told(inputs, column_BC, apart_BC),
        question_P,
        np.arange(is_event_BL.size),
        every_BT[:, :length].ravel(),
        np.arange(column_BC.size),
        every_BT[:, length:].ravel(),
        np.broadcast_to(np.arange(length, length + width), column_BC.shape),
    )


def packed(tokens: SessionTokens) -> SessionTokens:
    """The same without padding, but for what rows are shorter than the fullest."""
    is_there_BT, width = tokens.is_there_BT, tokens.opens_ms_BC.shape[1]
    length = is_there_BT.shape[1] - width
    order_BT = np.argsort(~is_there_BT, axis=1, kind="stable")[:, : int(is_there_BT.sum(axis=1).max(initial=1))]
    row_B1 = np.arange(len(order_BT))[:, None]
    packed_BT = is_there_BT[row_B1, order_BT]
    is_event_BT, is_context_BT = packed_BT & (order_BT < length), packed_BT & (order_BT >= length)
    context_at_BC = np.zeros_like(tokens.opens_ms_BC)
    row_N, at_N = np.nonzero(is_context_BT)
    column_N = order_BT[is_context_BT] - length
    context_at_BC[row_N, column_N] = at_N
    return replace(
        tokens,
        place_BT=tokens.place_BT[row_B1, order_BT],
        is_there_BT=packed_BT,
        seen_BTT=tokens.seen_BTT[row_B1[:, :, None], order_BT[:, :, None], order_BT[:, None, :]],
        event_N=(row_B1 * length + order_BT)[is_event_BT],
        event_at_N=np.flatnonzero(is_event_BT),
        context_N=row_N * width + column_N,
        context_at_N=np.flatnonzero(is_context_BT),
        context_at_BC=context_at_BC,
    )


def rounded_up(number_N: Ints) -> Ints:
    """To powers of two; all are at least one."""
    return 1 << np.ceil(np.log2(number_N)).astype(np.int64)


def _turns(is_event_BL: Bools, column_BC: Ints) -> Ints:
    """A place of its own for each event, and for a context token the place of the event that follows it."""
    turn_BL = np.cumsum(is_event_BL, axis=1)
    after_BL = np.pad(turn_BL, ((0, 0), (1, 0)))
    turn_BC = after_BL[np.arange(len(column_BC))[:, None], np.maximum(column_BC, 0)]
    return np.concatenate([np.where(is_event_BL, turn_BL - 1, 0), np.where(column_BC >= 0, turn_BC, 0)], axis=1)


def _seen(
    is_event_BL: Bools,
    session_BL: Ints,
    column_BC: Ints,
    apart_BC: Bools,
    before_BC: Ints,
    items_see: Literal["earlier_sessions", "earlier_items"],
) -> Bools:
    num_rows, length = is_event_BL.shape
    width = column_BC.shape[1]
    seen_BTT = np.zeros((num_rows, length + width, length + width), dtype=np.bool_)
    is_seen_BC = (column_BC >= 0) & ~apart_BC
    if items_see == "earlier_sessions":
        seen_BTT[:, :length, :length] = session_BL[:, None, :] < session_BL[:, :, None]
    else:
        seen_BTT[:, :length, :length] = np.tri(length, k=-1, dtype=np.bool_)
    seen_BTT[:, :length, length:] = before_BC[:, None, :] <= session_BL[:, :, None]
    seen_BTT[:, length:, :length] = np.arange(length) < column_BC[:, :, None]
    seen_BTT[:, length:, length:] = column_BC[:, None, :] < column_BC[:, :, None]
    seen_BTT &= np.concatenate([is_event_BL, is_seen_BC], axis=1)[:, None, :]
    seen_BTT |= np.eye(length + width, dtype=np.bool_)
    return seen_BTT


def _told(inputs: ModelInputs, column_BC: Ints, apart_BC: Bools) -> Codes:
    """What each context token's request says; one within a session is not the request of the event after it."""
    told_BZ = np.concatenate([request_of(inputs.kind_BL), inputs.told_B[:, None]], axis=1)
    told_BC = told_BZ[np.arange(len(column_BC))[:, None], column_BC]
    is_within_BC = apart_BC & (column_BC < inputs.kind_BL.shape[1])
    return np.where(is_within_BC | (column_BC < 0), 0, told_BC)


def _times(inputs: ModelInputs, first_B: Ints, column_BC: Ints) -> tuple[Ints, Ints]:
    """When each context token's session begins, and how long nothing had happened before."""
    row_B1 = np.arange(len(column_BC))[:, None]
    ts_BZ = np.concatenate([inputs.ts_BL, inputs.as_of_B[:, None]], axis=1)
    opens_ms_BC = ts_BZ[row_B1, column_BC]
    newest_ms_BC = ts_BZ[row_B1, np.maximum(column_BC - 1, 0)]
    has_past_BC = column_BC > first_B[:, None]
    return opens_ms_BC, np.where(has_past_BC, np.maximum(opens_ms_BC - newest_ms_BC, 0), -1)
