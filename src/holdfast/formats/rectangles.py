"""One tensor out of rectangles of it, as sharded training leaves them: read in place, a window at a time."""

from __future__ import annotations

import bisect
import math
import threading

import msgspec

from holdfast.errors import CorruptFile, RefusedFile
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.damage import verify_segments
from holdfast.formats.packing import tensor_bytes
from holdfast.spec import TensorSpec, contiguous_stride
from holdfast.storage.source import ByteSource, FilledSource, check_inside, shown

MAX_RECTANGLES = 1 << 16
"""Rectangles that one tensor may be cut into: checking that they fit together takes time with their number."""


class Rectangle(msgspec.Struct, eq=False):
    """A part of a tensor.

    Attributes:
        offsets: its first element, per dimension.
        sizes: its elements per dimension.
        leaf: the part, stored as a tensor of its own.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    leaf: StoredTensor

    def end(self, axis: int) -> int:
        """The first index after it."""
        return self.offsets[axis] + self.sizes[axis]


def check_cover(shape: tuple[int, ...], parts: list[Rectangle], name: str, file: str) -> None:
    """Raises unless the rectangles cover a tensor of ``shape`` exactly: none outside, no hole, no overlap.

    Raises:
        CorruptFile: they do not.
        RefusedFile: there are too many to tell.
    """
    if len(parts) > MAX_RECTANGLES:
        raise RefusedFile(
            f"`{shown(file)}`: `{shown(name)}` is in {len(parts):,} rectangles, the limit is {MAX_RECTANGLES:,}",
            file=file,
            path=name,
        )
    for part in parts:
        inside = len(part.offsets) == len(part.sizes) == len(shape) and all(
            min(at, size) >= 0 and at + size <= length
            for at, size, length in zip(part.offsets, part.sizes, shape, strict=True)
        )
        if not inside:
            raise _lie(file, name, f"the rectangle of {part.sizes} at {part.offsets} is outside of {shape}")
    held = sum(math.prod(part.sizes) for part in parts)
    if held != math.prod(shape):
        raise _lie(file, name, f"its rectangles have {held:,} elements, {shape} has {math.prod(shape):,}")
    _refuse_overlap([part for part in parts if math.prod(part.sizes)], len(shape), name, file)


def _refuse_overlap(parts: list[Rectangle], rank: int, name: str, file: str) -> None:
    """Sweeps along the axis with the most cuts; only rectangles that are open at the same index are compared."""
    axis = max(range(rank), key=lambda axis: len({part.offsets[axis] for part in parts}), default=0)
    open_parts: list[Rectangle] = []
    for part in sorted(parts, key=lambda part: part.offsets[axis : axis + 1]):
        if rank:
            open_parts = [other for other in open_parts if other.end(axis) > part.offsets[axis]]
        for other in open_parts:
            if all(part.offsets[i] < other.end(i) and other.offsets[i] < part.end(i) for i in range(rank)):
                raise _lie(file, name, f"the rectangles at {other.offsets} and {part.offsets} overlap")
        open_parts.append(part)


class _Rows:
    """Where the bytes of one rectangle go: runs of equal length, in the order of both sides.

    Args:
        part: the rectangle.
        spec: the whole tensor.
    """

    def __init__(self, part: Rectangle, spec: TensorSpec) -> None:
        self.part = part
        self.source: ByteSource = tensor_bytes(part.leaf)
        stride = contiguous_stride(spec.shape)
        axes = [axis for axis, size in enumerate(spec.shape) if part.sizes[axis] != size]
        cut = axes[-1] if axes else 0  # behind the last axis that is cut, elements of the rectangle are neighbours
        self._sizes = part.sizes[:cut]
        self._steps = [step * spec.itemsize for step in stride[:cut]]
        self._first = sum(at * step for at, step in zip(part.offsets, stride, strict=True)) * spec.itemsize
        self.run = math.prod(part.sizes[cut:]) * spec.itemsize
        self.count = math.prod(self._sizes)
        self.begin, self.end = self._first, self.start(self.count - 1) + self.run

    def start(self, number: int) -> int:
        """The first byte of a run in the whole tensor."""
        at = self._first
        for size, step in zip(reversed(self._sizes), reversed(self._steps), strict=True):
            number, index = divmod(number, size)
            at += index * step
        return at

    def fill(self, begin: int, buffer: memoryview) -> None:
        """Puts what this rectangle has of the window that begins at byte ``begin`` into ``buffer``."""
        end = begin + buffer.nbytes
        numbers = range(self.count)
        first = bisect.bisect_right(numbers, begin - self.run, key=self.start)
        stop = bisect.bisect_left(numbers, end, lo=first, key=self.start)
        if first == stop:
            return
        low = first * self.run + max(0, begin - self.start(first))
        high = (stop - 1) * self.run + min(self.run, end - self.start(stop - 1))
        if stop - first == 1:
            at = max(self.start(first), begin) - begin
            self.source.read_into(low, buffer[at : at + high - low])
            return
        block = memoryview(bytearray(high - low))
        self.source.read_into(low, block)
        for number in range(first, stop):
            start = self.start(number)
            at, until = max(start, begin), min(start + self.run, end)
            place = number * self.run + at - start - low
            buffer[at - begin : until - begin] = block[place : place + until - at]


class Assembled(FilledSource):
    """The row-major bytes of a tensor that is stored as rectangles.

    A rectangle's own CRC is compared before its first byte is handed out: the whole has none.

    Args:
        name: what messages call the tensor.
        spec: of the whole; row-major.
        parts: rectangles that cover it; see :func:`check_cover`.
    """

    def __init__(self, name: str, spec: TensorSpec, parts: list[Rectangle]) -> None:
        self.name = name
        self._size = spec.nbytes
        self._rows = sorted([_Rows(part, spec) for part in parts if math.prod(part.sizes)], key=lambda row: row.begin)
        self._unchecked = {id(row) for row in self._rows}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._size

    def segments(self) -> list[Segment]:
        """The bytes of the rectangles, with their CRCs."""
        return [row.part.leaf.segment for row in self._rows]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        view = buffer.cast("B")
        for row in self._rows:
            if row.begin >= offset + view.nbytes:
                break
            if row.end > offset:
                self._check(row)
                row.fill(offset, view)

    def _check(self, row: _Rows) -> None:
        with self._lock:
            if id(row) not in self._unchecked:
                return
            verify_segments([row.part.leaf.segment], workers=1)
            self._unchecked.discard(id(row))


def _lie(file: str, name: str, what: str) -> CorruptFile:
    return CorruptFile(f"`{shown(file)}`: `{shown(name)}`: {what}: corrupt", file=file, path=name)
