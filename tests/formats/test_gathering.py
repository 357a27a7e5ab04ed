"""Strided tensors in row-major order."""

from __future__ import annotations

import itertools
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from holdfast.formats import gathering
from holdfast.formats.gathering import Gathered
from holdfast.spec import TensorSpec, contiguous_stride
from holdfast.storage.source import MemorySource


@st.composite
def strided(draw: st.DrawFn) -> TensorSpec:
    """A shape under a permuted stride, with and without gaps."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    order = draw(st.permutations(range(len(shape))))
    steps, step = [0] * len(shape), 1
    for axis in order:
        steps[axis] = step
        step *= max(shape[axis], 1) + draw(st.integers(0, 1))
    return TensorSpec(
        draw(st.sampled_from(["uint8", "int16", "float32", "complex64", "complex128"])), shape, tuple(steps)
    )


def row_major(data: bytes, spec: TensorSpec) -> bytes:
    """The elements one by one, by index arithmetic."""
    size, wanted = spec.itemsize, b""
    for index in itertools.product(*map(range, spec.shape)):
        at = size * sum(place * step for place, step in zip(index, spec.stride or (), strict=True))
        wanted += data[at : at + size]
    return wanted


@given(strided())
def test_gathering_agrees_with_index_arithmetic(spec: TensorSpec) -> None:
    data = bytes(index % 251 for index in range(spec.extent * spec.itemsize))
    wanted = row_major(data, spec)
    rows = Gathered(MemorySource(data), spec)
    half = rows.size // 2
    for _ in range(2):  # read once it forgets, and can be read again
        assert rows.read(half, rows.size - half) + rows.read(0, half) == wanted[half:] + wanted[:half]
    if spec.stride == contiguous_stride(spec.shape):
        assert wanted == data


@given(strided(), st.sampled_from([16, 48, 1024]), st.sampled_from([16, 64, 4096]), st.sampled_from([0, 8, 4096]))
def test_slabs_and_short_reads_give_the_same(spec: TensorSpec, slab: int, read: int, gap: int) -> None:
    data = bytes(index % 251 for index in range(spec.extent * spec.itemsize))
    wanted = row_major(data, spec)
    sizes = {"_SLAB": slab, "_READ": read, "_GAP": gap}
    with mock.patch.multiple(gathering, **sizes):
        rows = Gathered(MemorySource(data), spec)
        third = rows.size // 3
        assert rows.read(0, third) + rows.read(third, rows.size - third) == wanted


def test_a_large_transposed_tensor_is_never_whole_in_memory() -> None:
    spec = TensorSpec("uint8", (9000, 8000), (1, 9000))  # three slabs
    reads: list[int] = []

    class Column(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            reads.append(buffer.nbytes)
            super().read_into(offset, buffer)

    columns = bytes(range(250)) * 36
    rows = Gathered(Column(columns * 8000), spec)
    assert rows.read(4500 * 8000, 8000) == columns[4500:4501] * 8000
    assert max(reads) <= 4 << 20
    assert sum(reads) < spec.nbytes * 2
