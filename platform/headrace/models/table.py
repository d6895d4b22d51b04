"""The item table: rows in, vectors out.

It grows by doubling, so that its shape, which decides the last bits of a product, changes rarely; the capacity is part
of every commit.
"""

import torch
from torch import Tensor, nn

from headrace.records import hash64


class ItemTable(nn.Module):
    """Item vectors by slot. Slots beyond those in use are there, initialised, and receive no gradient.

    A row's start depends on (seed, slot) alone: neither on the capacity nor on when it was added.
    """

    _CHUNK = 4096  # rows drawn from one seed

    def __init__(self, width: int, capacity: int, seed: int, scale: float) -> None:
        super().__init__()
        self.width = width
        self.seed = seed
        self.scale = scale
        """Standard deviation of a fresh row's entries."""
        self.weight = nn.Parameter(self._fresh(0, capacity))

    @classmethod
    def from_rows(cls, weight: Tensor, seed: int, scale: float) -> "ItemTable":
        """A table that holds these rows; ``seed`` and ``scale`` are for rows to come."""
        table = cls(int(weight.shape[1]), 0, seed, scale)
        table.weight = nn.Parameter(weight)
        return table

    @property
    def capacity(self) -> int:
        """Rows of the table."""
        return int(self.weight.shape[0])

    def grow(self, num_slots: int) -> bool:
        """Double the capacity until ``num_slots`` fit. Whether it grew: then ``weight`` is a new parameter."""
        capacity = self.capacity
        while capacity < num_slots:
            capacity *= 2
        if capacity == self.capacity:
            return False
        added = self._fresh(self.capacity, capacity).to(self.weight)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), added]))
        return True

    def rows(self, slot_BL: Tensor) -> Tensor:
        """The raw rows ``(B, L, D)``; zeros where the slot is -1."""
        return read_rows(self.weight, slot_BL)

    def vectors(self, slot_E: Tensor) -> Tensor:
        """The rows ``(E, D)`` of these ascending slots; a view where they are a prefix of the table."""
        return read_vectors(self.weight, slot_E)

    def reset(self, slot_R: Tensor) -> None:
        """These slots belong to other items from now on: their rows are as they were at the start."""
        with torch.no_grad():
            for chunk in torch.unique(slot_R // self._CHUNK).tolist():
                start = chunk * self._CHUNK
                member_R = slot_R[slot_R // self._CHUNK == chunk]
                fresh_CD = self._fresh(start, start + self._CHUNK).to(self.weight)
                self.weight[member_R] = fresh_CD[member_R - start]

    def _fresh(self, start: int, stop: int) -> Tensor:
        chunks = [torch.empty(0, self.width)]
        for chunk in range(start // self._CHUNK, -(-stop // self._CHUNK)):
            draw = torch.Generator().manual_seed(hash64(self.seed, "item rows", chunk) >> 1)
            rows_CD = torch.randn(self._CHUNK, self.width, generator=draw) * self.scale
            base = chunk * self._CHUNK
            chunks.append(rows_CD[max(start - base, 0) : stop - base])
        return torch.cat(chunks)


def read_rows(weight_VD: Tensor, slot_BL: Tensor) -> Tensor:
    """Rows ``(B, L, D)`` of a table, or of a part of one; zeros where the slot is -1."""
    row_BLD = nn.functional.embedding(slot_BL.clamp(min=0), weight_VD)
    return row_BLD if bool((slot_BL >= 0).all()) else row_BLD * (slot_BL >= 0).unsqueeze(-1)


def read_vectors(weight_VD: Tensor, slot_E: Tensor) -> Tensor:
    """Rows ``(E, D)`` at these ascending slots; a view where they are a prefix."""
    num_slots = int(slot_E.shape[0])
    if num_slots and int(slot_E[-1]) == num_slots - 1:
        return weight_VD[:num_slots]
    return weight_VD.index_select(0, slot_E)
