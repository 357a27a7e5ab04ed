"""The row-major bytes of strided tensors, from a file, a piece at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

from holdfast.spec import CHUNK, TensorSpec, contiguous_stride
from holdfast.storage.source import ByteSource, FilledSource, MadeSource, byte_view, check_inside

ITEM: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Formats of memoryview and array by item size."""
Axis = tuple[int, int, int]
"""(size, step where the elements are, step where they go), steps in items."""
_SLAB = 4 * CHUNK
"""Bytes that are gathered together, and in memory while they are handed out."""
_READ = 4 << 20
"""Bytes that one read may span when it takes bytes along that are not wanted."""
_GAP = 8 << 10
"""Bytes between wanted ones that are read along: they cost less than another read."""


class Gathered(FilledSource):
    """The elements of a strided tensor in row-major order, gathered slab by slab as they are asked for.

    So a transposed tensor of any size needs no copy of itself in memory.

    Args:
        source: the tensor's bytes, from its first element to its last.
        spec: dtype, shape and stride; elements that lie in one place are handed out for each of their places.
    """

    def __init__(self, source: ByteSource, spec: TensorSpec) -> None:
        self.name = source.name
        self._source = source
        self._size = spec.nbytes
        self._item, self._axes = axes_of(spec)
        self._slabs = [self._slab(begin) for begin in range(0, self._size, _SLAB)]

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        view = byte_view(buffer)
        while view:
            number, start = divmod(offset, _SLAB)
            slab = self._slabs[number]
            count = min(slab.size - start, view.nbytes)
            slab.read_into(start, view[:count])
            offset, view = offset + count, view[count:]

    def _slab(self, begin: int) -> MadeSource:
        size = min(_SLAB, self._size - begin)

        def make() -> bytearray:
            made = bytearray(size)
            want = memoryview(made).cast(ITEM[self._item])
            self._fill(want, 0, 0, begin // self._item, (begin + size) // self._item)
            return made

        return MadeSource(self.name, size, make)

    def _fill(self, want: memoryview, depth: int, base: int, begin: int, end: int) -> None:
        """Items ``begin`` to ``end`` of what lies below the axis ``depth`` at ``base``."""
        if begin == end:
            return
        _, step, inner = self._axes[depth]
        first, cut = divmod(begin, inner)
        if cut or end - begin < inner:  # less than a row, or the end of one
            stop = min(end, (first + 1) * inner)
            self._fill(want[: stop - begin], depth + 1, base + first * step, cut, stop - first * inner)
            self._fill(want[stop - begin :], depth, base, stop, end)
            return
        rows = (end - begin) // inner
        self._box(want[: rows * inner], base + first * step, [(rows, step, inner), *self._axes[depth + 1 :]])
        self._fill(want[rows * inner :], depth, base, begin + rows * inner, end)

    def _box(self, want: memoryview, base: int, axes: list[Axis]) -> None:
        """All elements of some axes: those axes that lie close are read at once, for each place on the others."""
        close: list[Axis] = []
        others = sorted(axes, key=lambda axis: axis[1])
        reach = 1
        while others and (others[0][1] - reach) * self._item <= _GAP:
            size, step, to = others[0]
            fits = (_READ // self._item - reach) // step + 1 if step else size
            if fits < size:
                break
            close.append(others.pop(0))
            reach += (size - 1) * step
        else:
            fits = 1
        if fits > 1:  # the axis is close, and too long for one read
            size, step, to = others.pop(0)
            for at in range(0, size, fits):
                part = (min(fits, size - at), step, to)
                self._box(want[at * to :], base + at * step, [*close, part, *others])
            return
        data = bytearray(reach * self._item)
        have = memoryview(data).cast(ITEM[self._item])
        for begin, start in zip(starts(others, 1), starts(others, 2), strict=True):
            self._source.read_into((base + begin) * self._item, memoryview(data))
            scatter(have, want[start:], close or [(1, 1, 1)])


def axes_of(spec: TensorSpec) -> tuple[int, list[Axis]]:
    """Bytes of an item, and the axes in items, the outermost first; the last one always has neighbours side by side."""
    scale = 2 if spec.itemsize == 16 else 1  # a complex128 is copied as two words
    steps = zip(spec.shape, spec.stride or contiguous_stride(spec.shape), contiguous_stride(spec.shape), strict=True)
    axes = [(size, at * scale, to * scale) for size, at, to in steps if size != 1] + [(scale, 1, 1)]
    return spec.itemsize // scale, merged(axes)


def scatter(have: memoryview, want: memoryview, axes: Sequence[Axis]) -> None:
    """Copies a box of items: the longest axis by strided slices, which run in C; Python loops over the others.

    An axis without a step, whose items are all the same one, can't be a slice.
    """
    others = list(axes)
    longest = max(range(len(others)), key=lambda index: others[index][0] if others[index][1] else 0)
    size, step_from, step_to = others.pop(longest)
    reach_from, reach_to = (size - 1) * step_from + 1, (size - 1) * step_to + 1
    for begin, start in zip(starts(others, 1), starts(others, 2), strict=True):
        want[start : start + reach_to : step_to] = have[begin : begin + reach_from : step_from]


def merged(axes: Iterable[Axis]) -> list[Axis]:
    """Neighbours that are walked as one on both sides, as one."""
    result: list[Axis] = []
    for size, at, to in axes:
        if result and result[-1][1] == size * at and result[-1][2] == size * to:
            result[-1] = (result[-1][0] * size, at, to)
        else:
            result.append((size, at, to))
    return result


def starts(axes: Sequence[Axis], side: int) -> Iterable[int]:
    """Where each copy begins on one side."""
    steps = ((axis[0], axis[side]) for axis in axes)
    places = (range(0, size * step, step) if step else itertools.repeat(0, size) for size, step in steps)
    return map(sum, itertools.product(*places))
