"""The encodings expert: contexts that the encoder found alike say what came next (kNN-LM, arXiv 1911.00172).

The newest rows are kept with their contexts' encodings, as directions in float16 numbers. The ``neighbours`` rows that
are nearest to a query's direction vote for their next items, by the exponential of cosine over temperature; the asking
session is never a neighbour. An encoding is as old as the encoder that made it: new rows are encoded after every
increment, and of the others those that have waited for longest, in rotation.
Shape legend: M rows kept, N new rows, D width, Q queries, B = BLOCK, E eligible items, C candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import EncodingsConfig
from headrace.experts.base import Arrays, Counted, Sparse
from headrace.experts.ragged import Columns, highest, vote
from headrace.inputs.contexts import Contexts, concatenate, offsets

BLOCK = 32
"""Queries in a product, padded to so many, so that a query's bits do not depend on how many ask."""
_STRIP = 64
_NEVER = -1


@dataclass(frozen=True)
class _Rows:
    """Contexts with what came next, oldest first."""

    contexts: Contexts
    item_M: NDArray[np.int32]
    """The next item's number."""

    def __len__(self) -> int:
        return len(self.item_M)

    def take(self, index_B: NDArray[np.integer]) -> "_Rows":
        return _Rows(self.contexts.take(index_B), self.item_M[index_B])

    def newest(self, most: int) -> "_Rows":
        """As many as may stay, by when they asked; of equals those of higher sessions, which no rank decides."""
        order_N = np.lexsort((self.contexts.session_Q, self.contexts.as_of_Q))
        return self.take(order_N[max(0, len(order_N) - most) :])

    def arrays(self) -> dict[str, NDArray[Any]]:
        contexts = {field.name: getattr(self.contexts, field.name) for field in fields(Contexts)}
        return {**contexts, "next": self.item_M}

    @classmethod
    def of(cls, arrays: Arrays) -> "_Rows":
        return cls(Contexts(**{field.name: arrays[field.name] for field in fields(Contexts)}), arrays["next"])


def _no_rows() -> _Rows:
    none = np.zeros(0, dtype=np.int64)
    told = none.astype(np.int16)
    contexts = Contexts(none, none, told, offsets(none), none, none.astype(np.uint64), none)
    return _Rows(contexts, none.astype(np.int32))


class Encodings:
    """Rows, and in which direction their contexts lie."""

    def __init__(self, config: EncodingsConfig) -> None:
        self.name = config.name
        self.config = config
        self._columns = Columns()
        self._rows = _no_rows()
        self._direction_MD = np.zeros((0, 0), dtype=np.float32)
        """Of length 1, rounded to float16; zeros where there is none."""
        self._silent_M = np.zeros(0, dtype=np.bool_)
        """Where there is none."""
        self._encoded_M = np.zeros(0, dtype=np.int64)
        """By which round of encoding."""
        self._round = 0
        self._asked_N = np.zeros(0, dtype=np.int64)
        """The rows whose contexts ``to_encode`` has given out."""

    def reduce(self, counted: Counted) -> Arrays:
        """One rank's rows that have a context, as many as could stay."""
        some_N = np.flatnonzero(counted.contexts.length_Q > 0)
        rows = _Rows(counted.contexts.take(some_N), counted.number_N[some_N].astype(np.int32))
        return rows.newest(self.config.max_rows).arrays()

    def apply(self, deltas: Sequence[Arrays], watermark_ms: int) -> None:
        """Put the new rows behind the others and let the first ones go; some of what stays is to be encoded again."""
        parts = [_Rows.of(delta) for delta in deltas]
        new = _Rows(concatenate([part.contexts for part in parts]), np.concatenate([part.item_M for part in parts]))
        new = new.newest(self.config.max_rows)
        if not len(new):  # so the model has not moved
            self._asked_N = np.flatnonzero(self._encoded_M == _NEVER)
            return
        first = max(0, len(self._rows) + len(new) - self.config.max_rows)
        old = self._rows.take(np.arange(first, len(self._rows)))
        self._rows = _Rows(concatenate([old.contexts, new.contexts]), np.concatenate([old.item_M, new.item_M]))
        empty_ND = np.zeros((len(new), self._direction_MD.shape[1]), dtype=np.float32)
        self._direction_MD = np.concatenate([self._direction_MD[first:], empty_ND])
        self._silent_M = np.concatenate([self._silent_M[first:], np.ones(len(new), dtype=np.bool_)])
        self._encoded_M = np.concatenate([self._encoded_M[first:], np.full(len(new), _NEVER, dtype=np.int64)])
        stale_N = np.argsort(self._encoded_M, kind="stable")
        num_never = int((self._encoded_M == _NEVER).sum())
        self._asked_N = np.sort(stale_N[: num_never + self.config.reencode])

    def to_encode(self) -> Contexts:
        """See ``experts.base.Encoding``."""
        return self._rows.contexts.take(self._asked_N)

    def encoded(self, vector_ND: NDArray[np.float32]) -> None:
        """See ``experts.base.Encoding``."""
        if not len(self._asked_N):
            return
        if self._direction_MD.shape[1] != vector_ND.shape[1]:
            self._direction_MD = np.zeros((len(self._rows), vector_ND.shape[1]), dtype=np.float32)
        self._direction_MD[self._asked_N] = _directions(vector_ND).astype(np.float16)
        self._silent_M = _silent(self._direction_MD)
        self._encoded_M[self._asked_N] = self._round
        self._round += 1

    def outdate(self) -> None:
        """See ``experts.base.Encoding``."""
        self._encoded_M[:] = _NEVER

    def probabilities(
        self, contexts: Contexts, query_QD: NDArray[np.float32] | None, eligible: Eligible
    ) -> Sparse | None:
        """The votes of each query's neighbours; one without a direction abstains."""
        if query_QD is None or query_QD.shape[1] != self._direction_MD.shape[1]:
            return None
        row_C, place_C, cosine_C = self._neighbours(contexts, _directions(query_QD))
        value_C = np.exp((cosine_C - 1.0) / self.config.temperature)
        column_C = self._columns.of(self._rows.item_M[place_C].astype(np.int64), eligible)
        return vote(row_C, column_C, value_C, len(contexts), len(eligible))

    def state(self) -> Arrays:
        """The rows with their directions, and when each was encoded."""
        return {
            **self._rows.arrays(),
            "direction": self._direction_MD.astype(np.float16),
            "encoded": self._encoded_M,
            "round": np.array([self._round]),
        }

    def load(self, state: Arrays) -> None:
        """Take over what ``state`` gave."""
        self._rows = _Rows.of(state)
        self._direction_MD = state["direction"].astype(np.float32)
        self._silent_M = _silent(self._direction_MD)
        self._encoded_M = state["encoded"].copy()
        self._round = int(state["round"][0])
        self._asked_N = np.zeros(0, dtype=np.int64)

    @property
    def size_bytes(self) -> int:
        """Memory of rows and directions."""
        held = (*self._rows.arrays().values(), self._direction_MD, self._silent_M, self._encoded_M)
        return sum(int(array.nbytes) for array in held)

    def _neighbours(
        self, contexts: Contexts, direction_QD: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Query, row and cosine of each pair of neighbours."""
        nothing = np.zeros(0, dtype=np.int64)
        rows, places, cosines = [nothing], [nothing], [np.zeros(0)]
        for first, cosine_BM in self._cosines(direction_QD):
            for place, cosine_M in enumerate(cosine_BM, start=first):
                if not direction_QD[place].any():
                    continue
                own_M = self._rows.contexts.session_Q == contexts.session_Q[place]
                cosine_M[own_M | self._silent_M] = -np.inf
                near_C = _nearest(cosine_M, self.config.neighbours)
                near_C = near_C[np.isfinite(cosine_M[near_C])]
                rows.append(np.full(len(near_C), place))
                places.append(near_C)
                cosines.append(cosine_M[near_C].astype(np.float64))
        return np.concatenate(rows), np.concatenate(places), np.concatenate(cosines)

    def _cosines(self, direction_QD: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Blocks of queries: the place of the first, and the cosines to all rows, ``(B or fewer, M)``."""
        for first in range(0, len(direction_QD), BLOCK):
            block_BD = direction_QD[first : first + BLOCK]
            padded_BD = np.pad(block_BD, ((0, BLOCK - len(block_BD)), (0, 0)))
            yield first, (padded_BD @ self._direction_MD.T)[: len(block_BD)]


def _directions(vector_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; zeros stay zeros, and what is not finite becomes zeros."""
    norm_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    good_N1 = np.isfinite(norm_N1) & (norm_N1 > 0.0)
    return np.where(good_N1, vector_ND / np.where(good_N1, norm_N1, 1.0), 0.0).astype(np.float32)


def _silent(direction_MD: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(~direction_MD.any(axis=1))


def _nearest(cosine_M: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Ascending places of the ``most`` highest; of equal ones the later.

    The highest of each strip are more than ``most`` values: what lies below their ``most``-th is out at a glance.
    """
    num_strips = len(cosine_M) // _STRIP
    if num_strips <= most:
        return highest(cosine_M, most)
    top_S = cosine_M[: num_strips * _STRIP].reshape(num_strips, _STRIP).max(axis=1)
    candidate_C = np.flatnonzero(cosine_M >= np.partition(top_S, num_strips - most)[num_strips - most])
    return candidate_C[highest(cosine_M[candidate_C], most)]
