"""One tensor out of rectangles: every way to cut it, every window of it."""

from __future__ import annotations

import itertools
import random
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptFile, RefusedFile
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.boxes import MAX_RECTANGLES
from holdfast.formats.gathering import Gathered
from holdfast.formats.rectangles import Assembled, Rectangle, check_cover
from holdfast.spec import TensorSpec, contiguous_stride
from holdfast.storage.source import MemorySource

Box = tuple[tuple[int, ...], tuple[int, ...]]


def part(whole: bytes, spec: TensorSpec, box: Box, *, columns: bool = False, damaged: bool = False) -> Rectangle:
    """The rectangle of a tensor, with its CRC; ``columns`` stores it in the other order."""
    offsets, sizes = box
    strides = contiguous_stride(spec.shape)
    order = sizes[::-1] if columns else sizes
    steps = strides[::-1] if columns else strides
    start = sum(at * step for at, step in zip(offsets, strides, strict=True)) * spec.itemsize
    rows = Gathered(MemorySource(whole[start:]), TensorSpec(spec.dtype, order, steps))
    data = rows.read(0, rows.size)
    crc = zlib.crc32(data) ^ damaged
    stride = tuple(reversed(contiguous_stride(order))) if columns else None
    return Rectangle(
        offsets,
        sizes,
        StoredTensor(TensorSpec(spec.dtype, sizes, stride), Segment(MemorySource(data), 0, len(data), "p", crc32=crc)),
    )


@st.composite
def cut(draw: Any) -> tuple[TensorSpec, list[Box]]:
    """A tensor and its pieces: cut in two again and again, along any axis, also into nothing."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, sizes[axis]))
        boxes.append((offsets, (*sizes[:axis], at, *sizes[axis + 1 :])))
        moved = (*offsets[:axis], offsets[axis] + at, *offsets[axis + 1 :])
        boxes.append((moved, (*sizes[:axis], sizes[axis] - at, *sizes[axis + 1 :])))
    return TensorSpec(draw(st.sampled_from(["uint8", "float32", "complex128"])), shape), draw(st.permutations(boxes))


@given(cut(), st.booleans(), st.randoms(use_true_random=False))
def test_every_window_of_every_cut(drawn: tuple[TensorSpec, list[Box]], columns: bool, chance: random.Random) -> None:
    spec, boxes = drawn
    whole = bytes(index * 7 % 251 for index in range(spec.nbytes))
    parts = [part(whole, spec, box, columns=columns) for box in boxes]
    check_cover(spec.shape, parts, "w", "f")
    source = Assembled("w", spec, parts)
    assert source.size == spec.nbytes
    assert source.read(0, spec.nbytes) == whole
    for _ in range(5):
        begin, end = sorted(chance.randint(0, spec.nbytes) for _ in range(2))
        assert source.read(begin, end - begin) == whole[begin:end]


def numbered(*boxes: Box) -> list[Rectangle]:
    leaf = StoredTensor(TensorSpec("uint8", ()), Segment(MemorySource(b"1"), 0, 1))
    return [Rectangle(offsets, sizes, leaf) for offsets, sizes in boxes]


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([((0, 0), (4, 7))], r"the rectangle of \(4, 7\) at \(0, 0\) is outside of \(4, 6\)"),
        ([((0, 1), (4, 6))], r"is outside of \(4, 6\)"),
        ([((0, 0), (4,))], "is outside of"),
        ([((0,), (4, 6))], "is outside of"),
        ([((-1, 0), (4, 6))], "is outside of"),
        ([((0, 0), (4, -6))], "is outside of"),
        ([], r"its rectangles have 0 elements, \(4, 6\) has 24"),
        ([((0, 0), (4, 5))], r"its rectangles have 20 elements, \(4, 6\) has 24"),
        ([((0, 0), (2, 6)), ((1, 0), (2, 6))], r"the rectangles at \(0, 0\) and \(1, 0\) overlap"),
        ([((0, 0), (4, 3)), ((0, 0), (4, 3))], "overlap"),
        ([((0, 0), (4, 3)), ((0, 3), (3, 3)), ((2, 5), (1, 1)), ((3, 3), (1, 2))], "overlap"),
    ],
)
def test_what_is_no_cover(boxes: list[Box], reason: str) -> None:
    with pytest.raises(CorruptFile, match=reason) as caught:
        check_cover((4, 6), numbered(*boxes), "w", "ckpt/.metadata")
    assert str(caught.value).startswith("`ckpt/.metadata`: `w`: ")


def test_many_rectangles_are_checked_in_time_and_too_many_are_refused() -> None:
    side = 128
    grid = numbered(*(((row, column), (1, 1)) for row, column in itertools.product(range(side), repeat=2)))
    check_cover((side, side), grid, "w", "f")
    with pytest.raises(RefusedFile, match=r"`f`: `w` is in 65,537 rectangles, the limit is 65,536"):
        check_cover((side, side), numbered(*[((0, 0), (1, 1))]) * (MAX_RECTANGLES + 1), "w", "f")


def test_a_rectangle_that_differs_from_its_crc_is_never_handed_out() -> None:
    spec = TensorSpec("uint8", (4, 3))
    whole = bytes(range(12))
    parts = [part(whole, spec, ((0, 0), (2, 3))), part(whole, spec, ((2, 0), (2, 3)), damaged=True)]
    source = Assembled("w", spec, parts)
    assert source.read(0, 6) == whole[:6]
    for _ in range(2):
        with pytest.raises(CorruptFile, match=r"`memory`: at byte 0: .*`p`.* has crc32 \w{8}, the file says crc32"):
            source.read(5, 2)


def test_a_window_takes_the_memory_of_a_window() -> None:
    spec = TensorSpec("uint8", (1 << 12, 1 << 12))
    whole = bytes(spec.nbytes)
    half = 1 << 11
    parts = [part(whole, spec, ((0, at), (1 << 12, half))) for at in (0, half)]
    source = Assembled("w", spec, parts)
    buffer = memoryview(bytearray(1 << 20))
    tracemalloc.start()
    try:
        source.read_into(1 << 23, buffer)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
