"""What the loop needs of its peers: a sum and a gather. One process needs no peers at all."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]


class Group(Protocol):
    """The ranks that train together. Every rank makes the same calls in the same order."""

    rank: int
    world: int

    def sum_(self, tensor: Tensor) -> None:
        """Replace ``tensor`` (on the training device) by its sum over ranks, equal to the byte on all of them."""
        ...

    def gather(self, arrays: Arrays) -> list[Arrays]:
        """Every rank's arrays, in rank order, on every rank; through host memory."""
        ...


class Solo:
    """A group of one: benchmarks, `try` and tests."""

    rank = 0
    world = 1

    def sum_(self, tensor: Tensor) -> None:
        """Nothing to add."""

    def gather(self, arrays: Arrays) -> list[Arrays]:
        """Only one's own."""
        return [arrays]
