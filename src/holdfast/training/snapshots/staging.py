"""Memory that snapshots copy into, kept from one save to the next: fresh pages cost ten times the copy into them."""

from __future__ import annotations

import mmap
from collections.abc import Callable

SLAB = 64 << 20
"""Bytes of one piece of memory, at least."""
_ALIGNMENT = 64


def host_memory(size: int) -> memoryview:
    """Fresh memory of the host; large pages where the system has them, which it hands out faster."""
    slab = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        slab.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(slab)


class Staging:
    """Memory that is taken piece by piece and given back all at once; it grows to what the largest snapshot needed.

    Args:
        make: gives fresh memory of so many bytes.
    """

    def __init__(self, make: Callable[[int], memoryview] = host_memory) -> None:
        self._make = make
        self._slabs: list[memoryview] = []
        self._used: list[int] = []

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return sum(slab.nbytes for slab in self._slabs)

    def take(self, length: int) -> memoryview:
        """``length`` bytes that nobody else has until :meth:`give_back`."""
        for index, slab in enumerate(self._slabs):
            if self._used[index] + length <= slab.nbytes:
                return self._take(index, length)
        self._slabs.append(self._make(max(SLAB, length)))
        self._used.append(0)
        return self._take(len(self._slabs) - 1, length)

    def _take(self, index: int, length: int) -> memoryview:
        begin = self._used[index]
        self._used[index] = -(-(begin + length) // _ALIGNMENT) * _ALIGNMENT
        return self._slabs[index][begin : begin + length]

    def give_back(self) -> None:
        """All of it is free again, and stays warm."""
        self._used = [0] * len(self._slabs)
