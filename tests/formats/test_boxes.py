"""One box out of a stored tensor: its bytes, and how far its file is read for them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from holdfast.errors import CorruptFile
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.rectangles import Assembled, Box, Rectangle, boxed
from holdfast.spec import CHUNK, TensorSpec
from holdfast.storage.digest import chunk_digests
from holdfast.storage.source import MemorySource


@pytest.mark.parametrize("cut", [(), (1,), (0, 2)])
def test_a_box_is_the_bytes_that_numpy_slices(cut: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 6, 3))
        whole = rng.integers(0, 255, shape, dtype=np.uint8)
        low = [int(rng.integers(0, n)) for n in shape]
        high = [int(rng.integers(at + 1, n + 1)) for at, n in zip(low, shape, strict=True)]
        leaf = _split(whole, cut) if cut else _leaf(whole)
        box = Box(tuple(low), tuple(end - at for at, end in zip(low, high, strict=True)))
        found = boxed(leaf, box).segment
        wanted = whole[tuple(slice(at, end) for at, end in zip(low, high, strict=True))].tobytes()
        assert found.source.read(found.offset, found.length) == wanted
        if len(wanted) > 2:
            assert found.source.read(found.offset + 1, len(wanted) - 2) == wanted[1:-1]


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ((3000, 1024), (7, 100), (2990, 612)),  # a few megabytes of short runs
        ((3000, 1024), (0, 1000), (3000, 1001)),  # far apart
        ((40, 60, 1000), (3, 5, 10), (39, 55, 990)),  # at two distances
        ((6, 600_000), (1, 5), (6, 599_000)),  # two do not fit a block
        ((3, 3_000_000), (0, 1), (3, 2_999_999)),  # one does not
    ],
)
@pytest.mark.parametrize("cut", [(), (0,), (1,)])
def test_large_boxes_are_read_in_many_blocks(
    shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], cut: tuple[int, ...]
) -> None:
    whole = np.random.default_rng(5).integers(0, 255, shape, dtype=np.uint8)
    leaf = _split(whole, cut) if cut else _leaf(whole)
    wanted = whole[tuple(map(slice, low, high))].tobytes()
    box = Box(low, tuple(end - at for at, end in zip(low, high, strict=True)))
    found = boxed(leaf, box).segment
    assert found.source.read(found.offset, found.length) == wanted
    at, end = len(wanted) // 3 + 1, len(wanted) - 5
    assert found.source.read(found.offset + at, end - at) == wanted[at:end]


def _leaf(data: NDArray[np.uint8]) -> StoredTensor:
    return StoredTensor(TensorSpec("uint8", data.shape), Segment(MemorySource(data.tobytes()), 0, data.nbytes, "w"))


def _split(whole: NDArray[np.uint8], axes: tuple[int, ...]) -> StoredTensor:
    """The same tensor in rectangles, halved along some axes."""
    boxes = [(tuple(slice(0, n) for n in whole.shape))]
    for axis in axes:
        half = whole.shape[axis] // 2
        cuts = [slice(0, half), slice(half, whole.shape[axis])] if half else [slice(0, whole.shape[axis])]
        boxes = [(*box[:axis], cut, *box[axis + 1 :]) for box in boxes for cut in cuts]
    parts = [Rectangle(tuple(s.start for s in box), whole[box].shape, _leaf(whole[box].copy())) for box in boxes]
    spec = TensorSpec("uint8", whole.shape)
    return StoredTensor(spec, Segment(Assembled("w", spec, parts), 0, spec.nbytes, "w"))


def test_a_box_reads_its_own_digest_chunks_and_compares_them() -> None:
    rows = 6
    data = np.arange(rows * CHUNK // 2, dtype=np.uint32).view(np.uint8).reshape(rows, -1)[:, : CHUNK // 2 + 16].copy()
    source = Counted(data.tobytes())
    chunks = tuple(chunk_digests(data.tobytes()))
    leaf = StoredTensor(TensorSpec("uint8", data.shape), Segment(source, 0, data.nbytes, "w", chunks))
    one = boxed(leaf, Box((1, 0), (1, data.shape[1])))
    assert one.segment.source.read(0, data.shape[1]) == data[1].tobytes()
    assert max(source.touched) <= 2 * CHUNK, "the third chunk and all behind it are left alone"
    lied = StoredTensor(leaf.spec, Segment(source, 0, data.nbytes, "w", ("0" * 32, *chunks[1:])))
    with pytest.raises(CorruptFile, match="corrupt"):
        boxed(lied, Box((0, 0), (1, 4))).segment.source.read(0, 4)
    assert boxed(lied, Box((rows - 1, 0), (1, 4))).segment.source.read(0, 4) == data[-1, :4].tobytes()


class Counted(MemorySource):
    """Remembers how far it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.touched: list[int] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.touched.append(offset + buffer.nbytes)
        super().read_into(offset, buffer)
