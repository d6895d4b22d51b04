"""What an expert is: something that counts the stream and gives the next item a probability.

Experts are counted alike on every rank: each rank reduces its own rows to a delta, the deltas are gathered in rank
order, and every rank applies the same list. Shape legend: N rows, Q queries, R = Q + 1 offsets, T ragged entries,
E eligible items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.inputs.contexts import Contexts

Arrays = Mapping[str, NDArray[Any]]
"""State and deltas: named arrays, so that they travel and are stored without pickle."""


@dataclass(frozen=True)
class Counted:
    """The rows that experts count in an increment: trained rows of target kinds, with each session's context.

    Made by train/questions.py from one rank's rows; rows are in ledger order.
    """

    number_N: NDArray[np.int64]
    ts_N: NDArray[np.int64]
    session_N: NDArray[np.uint64]
    owner_N: NDArray[np.uint64]
    """Hash of the user, else of the session."""
    weight_N: NDArray[np.float32]
    contexts: Contexts
    """One per row: what preceded it, as ``inputs/`` builds it."""


@dataclass(frozen=True)
class Shared:
    """One probability vector for every query: (E,) float32, sums to 1."""

    p_E: NDArray[np.float32]


@dataclass(frozen=True)
class Sparse:
    """A sparse row for each query: columns of the eligible set and float32 probabilities that sum to 1.

    An empty row abstains.
    """

    offset_R: NDArray[np.int64]
    column_T: NDArray[np.int64]
    p_T: NDArray[np.float32]


class Expert(Protocol):
    """A counter that votes. Plain numpy; the same bytes in give the same bytes out."""

    name: str

    def reduce(self, counted: Counted) -> Arrays:
        """Runs on each rank, on its own rows: the delta that ``apply`` takes."""
        ...

    def apply(self, deltas: Sequence[Arrays], watermark_ms: int) -> None:
        """Runs on every rank, after training, with all ranks' deltas in rank order; decay runs to the watermark."""
        ...

    def probabilities(
        self, contexts: Contexts, query_QD: NDArray[np.float32] | None, eligible: Eligible
    ) -> Shared | Sparse | None:
        """The votes for these queries, within the eligible set; None: abstains on all. Runs in scoring and in serving.

        ``query_QD`` are the encoder's query vectors, for experts that compare encodings; most ignore them.
        """
        ...

    def state(self) -> Arrays:
        """Everything that ``load`` needs to go on with the same bytes."""
        ...

    def load(self, state: Arrays) -> None:
        """Take over what ``state`` gave."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """An expert that compares the encoder's vectors: beside the methods of ``Expert`` it has these.

    What it keeps is encoded by the training loop (train/encodings.py), since an expert knows no encoder.
    """

    def to_encode(self) -> Contexts:
        """Runs on every rank after ``apply``: the contexts whose encodings it wants, by the model as it is now."""
        ...

    def encoded(self, vector_ND: NDArray[np.float32]) -> None:
        """Runs on every rank: the query vectors of these contexts, zeros where the model knows none of their items."""
        ...

    def outdate(self) -> None:
        """Runs when the learner went back to an earlier model: all that is kept is to be encoded again."""
        ...
