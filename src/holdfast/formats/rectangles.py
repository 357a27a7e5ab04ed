"""One tensor out of rectangles of it, as sharded training leaves them, and one rectangle out of a tensor.

Both are read in place, a window at a time.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Iterator

from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.boxes import Box as Box
from holdfast.formats.boxes import check_cover as check_cover
from holdfast.formats.composed import ComposedSource
from holdfast.formats.damage import verify_segments
from holdfast.formats.packing import tensor_bytes
from holdfast.spec import CHUNK, TensorSpec, contiguous_stride
from holdfast.storage.source import ByteSource, FilledSource, check_inside
from holdfast.storage.workers import BLOCK, PAGE, lent_block

_NEAR = 16
"""How many times longer than the runs in it a span may be: reading past a gap costs less than another call."""


class Rectangle(Box, eq=False):
    """A part of a tensor.

    Attributes:
        leaf: the part, stored as a tensor of its own.
    """

    leaf: StoredTensor


class _Runs:
    """The bytes of a box of a row-major tensor: runs of equal length, in the order of both.

    Args:
        box: the part.
        spec: the whole tensor.
    """

    def __init__(self, box: Box, spec: TensorSpec) -> None:
        stride = contiguous_stride(spec.shape)
        axes = [axis for axis, size in enumerate(spec.shape) if box.sizes[axis] != size]
        cut = axes[-1] if axes else 0  # behind the last axis that is cut, elements of the box are neighbours
        self._sizes = box.sizes[:cut]
        self._steps = [step * spec.itemsize for step in stride[:cut]]
        self._first = sum(at * step for at, step in zip(box.offsets, stride, strict=True)) * spec.itemsize
        self.run = math.prod(box.sizes[cut:]) * spec.itemsize
        self.count = math.prod(self._sizes)
        self.begin, self.end = self._first, self.start(self.count - 1) + self.run

    def start(self, number: int) -> int:
        """The first byte of a run in the whole tensor."""
        at = self._first
        for size, step in zip(reversed(self._sizes), reversed(self._steps), strict=True):
            number, index = divmod(number, size)
            at += index * step
        return at

    def starts(self, first: int, stop: int) -> Iterator[int]:
        """The first bytes of the runs from ``first`` to ``stop``: on the innermost axis they lie at equal distances."""
        inner, step = (self._sizes[-1], self._steps[-1]) if self._sizes else (1, 1)
        while first < stop:
            count, begin = min(inner - first % inner, stop - first), self.start(first)
            yield from range(begin, begin + count * step, step)
            first += count


class _Rows(_Runs):
    """Where the bytes of one rectangle go in the whole tensor."""

    def __init__(self, part: Rectangle, spec: TensorSpec) -> None:
        super().__init__(part, spec)
        self.part = part
        self.source: ByteSource = tensor_bytes(part.leaf)

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
        run, place = self.run, first * self.run - low
        for start in self.starts(first, stop):
            at, until = max(start, begin), min(start + run, end)  # the first and the last may be cut
            buffer[at - begin : until - begin] = block[place + at - start : place + until - start]
            place += run


class Assembled(ComposedSource):
    """The row-major bytes of a tensor that is stored as rectangles.

    A rectangle's own digests are compared before its first byte is handed out: the whole has none.

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
        """The bytes of the rectangles, with their digests or CRCs."""
        return [row.part.leaf.segment for row in self._rows]

    def parts(self) -> list[Rectangle]:
        """The rectangles that have elements."""
        return [row.part for row in self._rows]

    def beneath(self) -> ByteSource | None:
        return self._rows[0].part.leaf.segment.source if self._rows else None

    def trust(self) -> None:
        with self._lock:
            self._unchecked.clear()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.fill(offset, buffer, checked=True)

    def fill(self, offset: int, buffer: memoryview, *, checked: bool) -> None:
        """As ``read_into``; a reader that compares digests itself leaves that out here."""
        check_inside(self.name, self._size, offset, buffer.nbytes)
        view = buffer.cast("B")
        for row in self._rows:
            if row.begin >= offset + view.nbytes:
                break
            if row.end > offset:
                if checked:
                    self._check(row)
                row.fill(offset, view)

    def _check(self, row: _Rows) -> None:
        with self._lock:
            if id(row) not in self._unchecked:
                return
            verify_segments([row.part.leaf.segment], workers=1)
            self._unchecked.discard(id(row))


class _Unchecked(FilledSource):
    """An assembled tensor, read by who compares the digests."""

    def __init__(self, source: Assembled) -> None:
        self.name = source.name
        self._source = source

    @property
    def size(self) -> int:
        return self._source.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._source.fill(offset, buffer, checked=False)


class Boxed(ComposedSource):
    """The row-major bytes of a box of a stored tensor: what one rank needs of it, and no more is read.

    What lies in the same digest chunks is read once more, to compare them, before the first byte is handed out.

    Args:
        leaf: the tensor.
        box: inside of it.
    """

    def __init__(self, leaf: StoredTensor, box: Box) -> None:
        self.name = leaf.segment.name
        self._leaf, self._box = leaf, box
        self._size = math.prod(box.sizes) * leaf.spec.itemsize
        self._runs = _Runs(box, leaf.spec)
        segment = leaf.segment
        if isinstance(segment.source, Assembled):
            raw = Segment(_Unchecked(segment.source), segment.offset, segment.length, segment.name)
            leaf = StoredTensor(leaf.spec, raw, leaf.offset)
        self._source = tensor_bytes(leaf)
        self._checked = False
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._size

    def segments(self) -> list[Segment]:
        """The digest chunks that the box lies in."""
        segment = self._leaf.segment
        if isinstance(segment.source, Assembled):
            found = ((part, part.common(self._box)) for part in segment.source.parts())
            return [
                one
                for part, common in found
                if common is not None
                for one in Boxed(part.leaf, _moved(common, part.offsets)).segments()
            ]
        if segment.chunks is None or not self._leaf.spec.is_contiguous or not self._size:
            return [segment]
        first = (self._leaf.offset + self._runs.begin) // CHUNK
        last = (self._leaf.offset + self._runs.end - 1) // CHUNK
        begin, end = first * CHUNK, min((last + 1) * CHUNK, segment.length)
        chunks = segment.chunks[first : last + 1]
        return [Segment(segment.source, segment.offset + begin, end - begin, segment.name, chunks)]

    def beneath(self) -> ByteSource | None:
        source = self._leaf.segment.source
        return source.beneath() if isinstance(source, ComposedSource) else source

    def trust(self) -> None:
        self._checked = True

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        with self._lock:
            if not self._checked:
                verify_segments(self.segments(), workers=1)
                self._checked = True
        view, run, done = buffer.cast("B"), self._runs.run, 0
        while done < view.nbytes:
            number, inside = divmod(offset + done, run)
            count = 0 if inside else self._read_runs(number, view[done:])
            if not count:  # one run, or what is asked of it
                count = min(run - inside, view.nbytes - done)
                self._source.read_into(self._runs.start(number) + inside, view[done : done + count])
            done += count

    def _read_runs(self, first: int, view: memoryview) -> int:
        """Reads neighbouring runs from the one with the number ``first`` at once, with the gaps between.

        Returns:
            Their bytes; 0 where they are too long or lie too far apart.
        """
        run, begin, most = self._runs.run, self._runs.start(first), view.nbytes // self._runs.run
        if most < 2 or self._runs.start(first + 1) - begin > max(_NEAR * run, PAGE):
            return 0
        numbers = range(first, first + most)
        count = bisect.bisect_right(numbers, begin + BLOCK - run, key=self._runs.start)
        if count < 2:
            return 0
        with lent_block() as lent:
            block = lent[: self._runs.start(first + count - 1) + run - begin]
            self._source.read_into(begin, block)
            place = 0
            for start in self._runs.starts(first, first + count):
                at = start - begin
                view[place : place + run] = block[at : at + run]
                place += run
        return place


def _moved(box: Box, offsets: tuple[int, ...]) -> Box:
    return Box(tuple(at - first for at, first in zip(box.offsets, offsets, strict=True)), box.sizes)


def boxed(leaf: StoredTensor, box: Box) -> StoredTensor:
    """A box of a stored tensor as a stored tensor of its own; the tensor itself where the box is all of it."""
    if box.sizes == leaf.spec.shape:
        return leaf
    spec = TensorSpec(leaf.spec.dtype, box.sizes)
    source = Boxed(leaf, box)
    segment = Segment(source, 0, source.size, leaf.segment.name, location=leaf.segment.location)
    return StoredTensor(spec, segment, 0, leaf.requires_grad)
