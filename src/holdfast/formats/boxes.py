"""Boxes of a tensor: where a part of it is, and whether parts are the whole. Numbers alone, no bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from holdfast.errors import CorruptFile, RefusedFile
from holdfast.storage.source import shown

MAX_RECTANGLES = 1 << 16
"""Rectangles that one tensor may be cut into: checking that they fit together takes time with their number."""


class Box(msgspec.Struct, eq=False):
    """Where a part of a tensor is.

    Attributes:
        offsets: its first element, per dimension.
        sizes: its elements per dimension.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def end(self, axis: int) -> int:
        """The first index after it."""
        return self.offsets[axis] + self.sizes[axis]

    def common(self, other: Box) -> Box | None:
        """What both have; None for nothing."""
        offsets = tuple(map(max, self.offsets, other.offsets))
        ends = [min(self.end(axis), other.end(axis)) for axis in range(len(offsets))]
        sizes = tuple(end - at for at, end in zip(offsets, ends, strict=True))
        return Box(offsets, sizes) if all(size > 0 for size in sizes) else None


def check_cover(shape: tuple[int, ...], parts: Sequence[Box], name: str, file: str) -> None:
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


def _refuse_overlap(parts: Sequence[Box], rank: int, name: str, file: str) -> None:
    """Sweeps along the axis with the most cuts; only rectangles that are open at the same index are compared."""
    axis = max(range(rank), key=lambda axis: len({part.offsets[axis] for part in parts}), default=0)
    open_parts: list[Box] = []
    for part in sorted(parts, key=lambda part: part.offsets[axis : axis + 1]):
        if rank:
            open_parts = [other for other in open_parts if other.end(axis) > part.offsets[axis]]
        for other in open_parts:
            if all(part.offsets[i] < other.end(i) and other.offsets[i] < part.end(i) for i in range(rank)):
                raise _lie(file, name, f"the rectangles at {other.offsets} and {part.offsets} overlap")
        open_parts.append(part)


def _lie(file: str, name: str, what: str) -> CorruptFile:
    return CorruptFile(f"`{shown(file)}`: `{shown(name)}`: {what}: corrupt", file=file, path=name)
