"""The item table: rows in, vectors out.

It grows by doubling, so that its shape, which decides the last bits of a product, changes rarely; the capacity is part
of every commit.
"""

import mmap
from typing import Any

import torch
from torch import Tensor, nn

from headrace.records import hash64

_LARGE_BYTES = 16 * 2**20


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
        rows_VD = grown(torch.empty(0, width), capacity)
        self._fill(rows_VD, 0)
        self.weight = nn.Parameter(rows_VD)

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
        before = self.capacity
        grown_VD = grown(self.weight.detach(), capacity)
        self._fill(grown_VD[before:], before)
        self.weight = nn.Parameter(grown_VD)
        return True

    def rows(self, slot_BL: Tensor) -> Tensor:
        """The raw rows ``(B, L, D)``; zeros where the slot is -1."""
        return read_rows(self.weight, slot_BL)

    def vectors(self, slot_E: Tensor) -> Tensor:
        """The rows ``(E, D)`` of these slots; a view where they are a prefix of the table."""
        return read_vectors(self.weight, slot_E)

    def reset(self, slot_R: Tensor) -> None:
        """These slots belong to other items from now on: their rows are as they were at the start."""
        with torch.no_grad():
            for chunk in torch.unique(slot_R // self._CHUNK).tolist():
                start = chunk * self._CHUNK
                member_R = slot_R[slot_R // self._CHUNK == chunk]
                fresh_CD = torch.empty(self._CHUNK, self.width)
                self._fill(fresh_CD, start)
                self.weight[member_R] = fresh_CD.to(self.weight)[member_R - start]

    def _fill(self, rows_RD: Tensor, start: int) -> None:
        """Write the fresh rows of the slots from ``start`` on."""
        stop = start + len(rows_RD)
        for chunk in range(start // self._CHUNK, -(-stop // self._CHUNK)):
            draw = torch.Generator().manual_seed(hash64(self.seed, "item rows", chunk) >> 1)
            drawn_CD = torch.randn(self._CHUNK, self.width, generator=draw) * self.scale
            first, last = max(start, chunk * self._CHUNK), min(stop, (chunk + 1) * self._CHUNK)
            rows_RD[first - start : last - start] = drawn_CD[first - chunk * self._CHUNK : last - chunk * self._CHUNK]


def grown(old: Tensor, num_rows: int) -> Tensor:
    """A tensor of ``num_rows`` rows that begins with the old ones; zeros beyond them.

    In host memory a large one lies in huge pages, where the system grants them: rows are read and written here and
    there, and with pages of 4 KB that took two to three times as long over a million rows.
    """
    shape = (num_rows, *old.shape[1:])
    size_bytes = old.element_size() * torch.Size(shape).numel()
    if old.device.type != "cpu" or size_bytes < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        new = old.new_zeros(shape)
    else:
        memory: Any = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # zeros
        memory.madvise(mmap.MADV_HUGEPAGE)
        new = torch.frombuffer(memory, dtype=old.dtype).view(shape)  # keeps the memory as long as it lives
    new[: len(old)] = old
    return new


def read_rows(weight_VD: Tensor, slot_BL: Tensor) -> Tensor:
    """Rows ``(B, L, D)`` of a table, or of a part of one; zeros where the slot is -1."""
    row_BLD = nn.functional.embedding(slot_BL.clamp(min=0), weight_VD)
    return row_BLD if bool((slot_BL >= 0).all()) else row_BLD * (slot_BL >= 0).unsqueeze(-1)


def read_vectors(weight_VD: Tensor, slot_E: Tensor) -> Tensor:
    """Rows ``(E, D)`` at these slots; a view where they are a prefix, in order."""
    num_slots = int(slot_E.shape[0])
    if num_slots and int(slot_E[-1]) == num_slots - 1 and bool((slot_E.diff() == 1).all()):
        return weight_VD[:num_slots]
    return weight_VD.index_select(0, slot_E)
