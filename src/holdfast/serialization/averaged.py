"""Weighted averages of stored tensors as bytes, computed block by block when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Segment
from holdfast.serialization.memory import view_memory
from holdfast.state.paths import printable
from holdfast.storage.source import ByteSource, FilledSource, byte_view, check_inside

_BLOCK = 1 << 20


class Term(msgspec.Struct, eq=False):
    """One tensor of an average.

    Attributes:
        file: named in errors.
        elements: its bytes, one element after the other.
        weight: how much it counts.
        segment: where they are stored, for verification.
    """

    file: str
    elements: ByteSource
    weight: float
    segment: Segment


class Averaged(FilledSource):
    """The bytes of an average, for whoever writes them; a few blocks are in memory, whatever the size.

    Sums are taken in float64 (complex128) and rounded once to the tensors' own dtype.

    Args:
        name: the tensor's path; errors name it.
        terms: tensors of one dtype and size.
        dtype: theirs, floating or complex.
        nonfinite: whether NaN and infinities are averaged as they are.

    Raises:
        UnsupportedValue: no arithmetic is possible with this dtype.
    """

    def __init__(self, name: str, terms: Sequence[Term], dtype: torch.dtype, *, nonfinite: bool) -> None:
        self.name = name
        self._terms = terms
        self._dtype = dtype
        self._wide = torch.complex128 if dtype.is_complex else torch.float64
        self._total = sum(term.weight for term in terms)
        self._nonfinite = nonfinite
        self._itemsize = dtype.itemsize
        try:
            torch.ones(1, dtype=self._wide).to(dtype).to(self._wide)
        except RuntimeError as reason:
            raise UnsupportedValue(
                f"`{printable(terms[0].file)}`: `{printable(name)}` is {dtype}, which can't be averaged: {reason}",
                file=terms[0].file,
                path=name,
            ) from None

    @property
    def size(self) -> int:
        return self._terms[0].elements.size

    def segments(self) -> list[Segment]:
        """The bytes that it is computed from."""
        return [term.segment for term in self._terms]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills ``buffer``. Raises UnsupportedValue at the first NaN or infinity, unless these were allowed."""
        check_inside(self.name, self.size, offset, buffer.nbytes)
        into, end = byte_view(buffer), offset + buffer.nbytes
        at = offset - offset % self._itemsize
        while at < end:
            count = min(_BLOCK, -(-(end - at) // self._itemsize) * self._itemsize)
            block = self._average(at, count)
            first, last = max(at, offset), min(at + count, end)
            into[first - offset : last - offset] = view_memory(block.data_ptr(), count)[first - at : last - at]
            at += count

    def _average(self, at: int, count: int) -> torch.Tensor:
        """The average of ``count`` bytes of whole elements from byte ``at``."""
        block = torch.empty(count // self._itemsize, dtype=self._dtype)
        view = view_memory(block.data_ptr(), count)
        total = torch.zeros(block.shape, dtype=self._wide)
        for term in self._terms:
            term.elements.read_into(at, view)
            total.add_(block.to(self._wide), alpha=term.weight)
        total.div_(self._total)
        if not self._nonfinite and not bool(total.isfinite().all()):
            raise self._refused(at // self._itemsize, total)
        return total.to(self._dtype)

    def _refused(self, first: int, total: torch.Tensor) -> UnsupportedValue:
        place = int((~total.isfinite()).nonzero()[0])
        one = torch.empty(1, dtype=self._dtype)
        for term in self._terms:
            term.elements.read_into((first + place) * self._itemsize, view_memory(one.data_ptr(), self._itemsize))
            if not bool(one.to(self._wide).isfinite()):
                return UnsupportedValue(
                    f"`{printable(term.file)}`: `{printable(self.name)}`: element {first + place:,} is "
                    f"{one.to(self._wide).item()}; leave this checkpoint out, or say nonfinite='keep'",
                    file=term.file,
                    path=self.name,
                )
        return UnsupportedValue(
            f"`{printable(self._terms[0].file)}`: `{printable(self.name)}`: the sum of element {first + place:,} is "
            "past what float64 holds; use smaller weights",
            file=self._terms[0].file,
            path=self.name,
        )
