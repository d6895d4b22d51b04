"""Where the tokens of a batch stand for next-session prediction (TBGRecall, arXiv 2508.11977), and who sees whom.

A session begins where a longer silence ends. Each has a context token, which opens it, and the items of one session do
not see each other. A question is a context token, too: of the session that begins where it asks; where the events go on
without a silence it stands apart, and no other token sees it. So the same events and question give the same vector,
whatever else is asked of the row. numpy alone; the order of tokens is: L events, then up to C context tokens.
``packed`` leaves padding out and joins rows to bins (models/bins.py), of which no two see each other.
Shape legend: B rows of the batch, L length, C context tokens of a row, P questions, N tokens of all rows. Where tokens
lie: G rows or bins, T tokens of each (L + C, or the width of bins), A of them asking.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.inputs.contexts import ModelInputs, offsets
from headrace.inputs.sessions import padded_begins
from headrace.inputs.told import request_of
from headrace.models.bins import Bins, join

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SessionTokens:
    """Made by ``lay_out``, read by ``models.nsp``."""

    place_GT: Ints
    """The number of each token's session in its row, from 0; what rotary embeddings turn by."""
    is_there_GT: Bools
    """Whether there is a token; what is not there sees itself, so that no row of a softmax is empty."""
    seen_GTT: Bools
    """Whether the token of the row sees that of the column."""
    opens_ms_BC: Ints
    """When the session that a context token opens begins."""
    silence_ms_BC: Ints
    """How long nothing had happened then; -1: there is nothing before."""
    told_BC: Ints
    """What is told of the request that opens a session; 0: nothing, or none is opened."""
    event_N: Ints
    """Where events lie among the B x L of the batch, row after row."""
    event_at_N: Ints
    """Where their tokens lie among the G x T."""
    context_N: Ints
    """Where context tokens lie among the B x C, row after row."""
    context_at_N: Ints
    """The same among the G x T."""
    asking_GA: Ints
    """The places, among the T, of tokens that ask: all context tokens, or, packed, those with a question; then 0."""
    row_P: Ints
    """The row or bin of each question."""
    question_P: Ints
    """Its token, among the A."""


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
        _told(inputs, column_BC, silence_ms_BC, gap_s),
        np.arange(is_event_BL.size),
        every_BT[:, :length].ravel(),
        np.arange(column_BC.size),
        every_BT[:, length:].ravel(),
        np.broadcast_to(np.arange(length, length + width), column_BC.shape),
        row_P,
        question_P,
    )


def packed(tokens: SessionTokens) -> SessionTokens:
    """The same without padding, rows joined to bins; but for what bins are shorter than the fullest."""
    num_rows, length_all = tokens.is_there_GT.shape
    num_contexts = tokens.opens_ms_BC.shape[1]
    length = length_all - num_contexts
    row_N, column_N = np.nonzero(tokens.is_there_GT)
    size_B = np.bincount(row_N, minlength=num_rows)
    bins = join(size_B)
    shape, at_B = (bins.number, bins.width), bins.bin_B * bins.width + bins.at_B
    at_N = np.arange(len(row_N)) + np.repeat(at_B - offsets(size_B)[:-1], size_B)
    from_N, is_event_N = row_N * length_all + column_N, column_N < length
    is_there_GT, place_GT = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.int64)
    is_there_GT.ravel()[at_N], place_GT.ravel()[at_N] = True, tokens.place_GT.ravel()[from_N]
    at_BT = np.zeros((num_rows, length_all), dtype=np.int64)
    at_BT[row_N, column_N] = at_N
    asking_GA, row_P, question_P = _asking(at_BT[tokens.row_P, length + tokens.question_P], bins)
    return replace(
        tokens,
        place_GT=place_GT,
        is_there_GT=is_there_GT,
        seen_GTT=_seen_in_bins(tokens.seen_GTT, from_N, at_N, bins),
        event_N=(row_N * length + column_N)[is_event_N],
        event_at_N=at_N[is_event_N],
        context_N=(row_N * num_contexts + column_N - length)[~is_event_N],
        context_at_N=at_N[~is_event_N],
        asking_GA=asking_GA,
        row_P=row_P,
        question_P=question_P,
    )


def _asking(at_P: Ints, bins: Bins) -> tuple[Ints, Ints, Ints]:
    """The tokens of these places in bins, bin by bin; and of each place its bin, and its token in it."""
    at_N, token_P = np.unique(at_P, return_inverse=True)
    bin_N = at_N // bins.width
    place_N = np.arange(len(at_N)) - np.searchsorted(bin_N, bin_N)
    asking_GA = np.zeros((bins.number, int(place_N.max(initial=0)) + 1), dtype=np.int64)
    asking_GA[bin_N, place_N] = at_N % bins.width
    return asking_GA, bin_N[token_P], place_N[token_P]


def _seen_in_bins(seen_BTT: Bools, from_N: Ints, at_N: Ints, bins: Bins) -> Bools:
    """Who sees whom in bins: a token of its own row what it saw there, and what is not there itself."""
    shape, length = (bins.number, bins.width), seen_BTT.shape[1]
    row_GT = -1 - np.arange(bins.places, dtype=np.int32).reshape(shape)
    from_GT, column_GT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    row_GT.ravel()[at_N] = from_N // length
    from_GT.ravel()[at_N], column_GT.ravel()[at_N] = from_N * length, from_N % length
    seen_GTT: Bools = seen_BTT.ravel()[from_GT[:, :, None] + column_GT[:, None, :]]
    seen_GTT &= row_GT[:, :, None] == row_GT[:, None, :]
    return seen_GTT


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


def _told(inputs: ModelInputs, column_BC: Ints, silence_ms_BC: Ints, gap_s: int) -> Ints:
    """What each context token's request says, where it opens a session; within one it says nothing new."""
    told_BZ = np.concatenate([request_of(inputs.kind_BL), inputs.told_B[:, None]], axis=1)
    told_BC = told_BZ[np.arange(len(column_BC))[:, None], column_BC]
    opens_BC = (column_BC >= 0) & ((silence_ms_BC < 0) | (silence_ms_BC > gap_s * 1000))
    return np.where(opens_BC, told_BC, 0)


def _times(inputs: ModelInputs, first_B: Ints, column_BC: Ints) -> tuple[Ints, Ints]:
    """When each context token's session begins, and how long nothing had happened before."""
    row_B1 = np.arange(len(column_BC))[:, None]
    ts_BZ = np.concatenate([inputs.ts_BL, inputs.as_of_B[:, None]], axis=1)
    opens_ms_BC = ts_BZ[row_B1, column_BC]
    newest_ms_BC = ts_BZ[row_B1, np.maximum(column_BC - 1, 0)]
    has_past_BC = column_BC > first_B[:, None]
    return opens_ms_BC, np.where(has_past_BC, np.maximum(opens_ms_BC - newest_ms_BC, 0), -1)
