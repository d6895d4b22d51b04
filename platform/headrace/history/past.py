"""What is kept of events once they are trained, and how a version looks up what a user did.

The same rows serve twice: the trainer appends to them (``SegmentLog``), so that sessions and users go on over
increments, and replicas read them, so that a request may name a user instead of items. Shape legend: N rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.history.segments import Columns, rows_of

_READ = ("key", "ts", "session", "item", "kind")


def history_columns(num_features: int) -> dict[str, type[np.generic]]:
    """What is kept of an event, beside its owner (the key: hash of the user, else of the session) and its time."""
    told = np.int64 if num_features else np.int16
    return {"session": np.uint64, "item": np.int32, "kind": told, "group": np.uint8}


class Past:
    """The kept events of all owners as one version knows them; never changes, so it is safe for several threads."""

    def __init__(self, parts: Mapping[str, Columns]) -> None:
        """``parts`` are a commit's, named by rank and place: an owner's rows are one rank's, older segments first."""
        self._segments = [{name: parts[part][name] for name in _READ} for part in sorted(parts)]

    def __len__(self) -> int:
        return sum(len(segment["key"]) for segment in self._segments)

    def of(self, owners: Sequence[int]) -> dict[int, Columns]:
        """By owner, all that is kept of it, in order of time, then arrival; owners without any are left out."""
        owner_K = np.unique(np.array(owners, dtype=np.uint64))
        found = rows_of(self._segments, owner_K)
        if not found:
            return {}
        rows = {name: np.concatenate([part[name] for part in found]) for name in _READ}
        order_N = np.lexsort((rows["ts"], rows["key"]))  # stable: ties stay in order of arrival
        rows = {name: column[order_N] for name, column in rows.items()}
        first_K = np.searchsorted(rows["key"], owner_K, side="left")
        last_K = np.searchsorted(rows["key"], owner_K, side="right")
        return {
            int(owner): {name: column[first:last] for name, column in rows.items()}
            for owner, first, last in zip(owner_K, first_K, last_K, strict=True)
            if first < last
        }

    def newest_owners(self, count: int) -> list[int]:
        """The owners of the newest events, newest first."""
        if not len(self):
            return []
        key_N, ts_N = (np.concatenate([segment[name] for segment in self._segments]) for name in ("key", "ts"))
        key_N = key_N[np.lexsort((key_N, -ts_N))]
        owner_K, first_K = np.unique(key_N, return_index=True)
        return [int(owner) for owner in owner_K[np.argsort(first_K)][:count]]


def newest_session(past: Columns, before_ms: int) -> int | None:
    """The session of the newest event before ``before_ms`` of one owner's rows; None where there is no such event."""
    end = int(np.searchsorted(past["ts"], before_ms, side="left"))
    return int(past["session"][end - 1]) if end else None


def of_session(past: Columns, session: int) -> Columns:
    """The rows that belong to one session."""
    keep_N: NDArray[np.bool_] = past["session"] == np.uint64(session)
    return {name: column[keep_N] for name, column in past.items()}
