"""Where one session ends and the next begins: a gap of inactivity of one owner.

For logs that do not say so, and for models, which are not told. Shape legend: N rows, T ragged entries, R offsets, B
batch, L length.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.records import hash64_array


def ragged_begins(ts_T: NDArray[np.int64], offset_R: NDArray[np.int64], gap_s: int) -> NDArray[np.bool_]:
    """Which events of ragged contexts begin a session: the first of each, and those after a longer silence."""
    begins_T = np.append(np.full(min(1, len(ts_T)), True), np.diff(ts_T) > gap_s * 1000)
    begins_T[offset_R[:-1][np.diff(offset_R) > 0]] = True
    return begins_T


def padded_begins(ts_BL: NDArray[np.int64], is_event_BL: NDArray[np.bool_], gap_s: int) -> NDArray[np.bool_]:
    """The same of padded ones, whose events stand on the right."""
    begins_BL = is_event_BL.copy()
    begins_BL[:, 1:] &= ~is_event_BL[:, :-1] | (np.diff(ts_BL, axis=1) > gap_s * 1000)
    return begins_BL


def derive_sessions(
    owner_N: NDArray[np.uint64],
    ts_N: NDArray[np.int64],
    session_N: NDArray[np.uint64],
    gap_s: int,
) -> NDArray[np.uint64]:
    """Sessions for the rows that have none (0); rows that have one keep it, and lend it to followers within the gap.

    A new session is named by its owner and its first event's time, so a later increment that finds it in history, and
    another rank count, give it the same name. Rows are in order of arrival, of any owners.
    """
    if len(owner_N) == 0 or (session_N != 0).all():
        return session_N
    order_N = np.lexsort((ts_N, owner_N))
    owner, ts, session = owner_N[order_N], ts_N[order_N], session_N[order_N]
    starts = np.ones(len(owner), dtype=bool)
    starts[1:] = (owner[1:] != owner[:-1]) | (np.diff(ts) > gap_s * 1000)
    index_N = np.cumsum(starts) - 1
    first_G = np.flatnonzero(starts)
    name_G = hash64_array(ts[first_G] ^ owner[first_G].view(np.int64), "derived session")
    known_N = np.flatnonzero(session != 0)[::-1]
    name_G[index_N[known_N]] = session[known_N]  # the earliest known row of a session names it
    derived_N = np.empty_like(session_N)
    derived_N[order_N] = np.where(session != 0, session, name_G[index_N])
    return derived_N
