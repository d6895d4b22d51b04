"""What the loop, the recommender and bundles know of a model: an encoder of contexts beside a table of items.

Shape legend: B batch, L length, D width, E items scored, P positions asked for, V rows of the table.
"""

from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.inputs.contexts import Contexts, ModelInputs
from headrace.models.table import ItemTable


class Encoder(Protocol):
    """Turns a batch of contexts into query vectors. An ``nn.Module`` whose state dict is its whole state."""

    @property
    def reads_empty(self) -> bool:
        """Whether it has something to say where there is no event: of the time, or of the request."""
        ...

    def __call__(self, inputs: ModelInputs, item_BLD: Tensor, row_P: Tensor, back_P: Tensor) -> Tensor:
        """The query vectors ``(P, D)`` at row ``row_P`` and ``back_P`` events before its newest (0: after all of them).

        ``item_BLD`` holds the raw table rows of the items, zeros where there is no event. A row without any event gets
        a vector all the same: what is known when nothing is known. ``row_P`` and ``back_P`` best lie in host memory:
        what they ask for decides what is computed.
        """
        ...

    def shapes(self, contexts: Contexts, row_P: NDArray[np.int64], back_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of tokens of each context, (Q,), with these questions; nearly equal ones best share a batch."""
        ...

    def places(self, tokens_B: NDArray[np.int64]) -> int:
        """For how many tokens a training step computes, padding with them, where its contexts have so many."""
        ...

    def kin(self, contexts: Contexts) -> NDArray[np.int64]:
        """A number for each context, (Q,): of one width and number, any contexts are answered in arrays of one shape.

        Without dropout, that is: a request gets the same bits whatever company it is in.
        """
        ...

    def forget(self, slot_R: Tensor) -> None:
        """These rows of the table belong to other items from now on; for an encoder that keeps rows of its own."""
        ...


class RecallModel(nn.Module):
    """An encoder and its item table: one state dict, one device."""

    def __init__(self, encoder: nn.Module, table: ItemTable, temperature: float | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.table = table
        self.temperature = temperature
        """Of cosine scores; None: dot products."""

    @property
    def reads_empty(self) -> bool:
        """See ``Encoder``."""
        return cast(Encoder, self.encoder).reads_empty

    def shapes(self, contexts: Contexts, row_P: NDArray[np.int64], back_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """See ``Encoder``."""
        return cast(Encoder, self.encoder).shapes(contexts, row_P, back_P)

    def places(self, tokens_B: NDArray[np.int64]) -> int:
        """See ``Encoder``."""
        return cast(Encoder, self.encoder).places(tokens_B)

    def kin(self, contexts: Contexts) -> NDArray[np.int64]:
        """See ``Encoder``."""
        return cast(Encoder, self.encoder).kin(contexts)

    def reset_rows(self, slot_R: Tensor) -> None:
        """These rows of the table, on its device, belong to other items from now on, and start afresh."""
        self.table.reset(slot_R)
        cast(Encoder, self.encoder).forget(slot_R)

    def query_side(self, query_PD: Tensor) -> Tensor:
        """Query vectors as they enter the product that gives logits."""
        if self.temperature is None:
            return query_PD
        return nn.functional.normalize(query_PD, dim=-1) / self.temperature

    def item_side(self, vectors_ED: Tensor) -> Tensor:
        """Item vectors as they enter the product that gives logits."""
        return vectors_ED if self.temperature is None else nn.functional.normalize(vectors_ED, dim=-1)

    def logits(self, query_PD: Tensor, vectors_ED: Tensor) -> Tensor:
        """The scores ``(P, E)`` whose softmax is the model's probability; training, evaluation and serving alike."""
        return self.query_side(query_PD) @ self.item_side(vectors_ED).T
