"""Numbers of two stored tensors against the same computed at once by torch."""

from __future__ import annotations

import math

import pytest
import torch

from holdfast.formats.base import Segment, StoredTensor
from holdfast.serialization import differences
from holdfast.serialization.differences import numbers, numbers_of
from holdfast.spec import TensorSpec
from holdfast.state.diff import Numbers
from holdfast.state.flatten import leaves
from holdfast.storage.source import FilledSource
from holdfast.transfer.save import document_of

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def stored(tensor: torch.Tensor) -> StoredTensor:
    document, _ = document_of({"t": tensor}, row_major=False)
    ((_, leaf),) = leaves(document.tree)
    assert isinstance(leaf, StoredTensor)
    return leaf


def measured(left: torch.Tensor, right: torch.Tensor) -> Numbers:
    found = numbers(stored(left), stored(right))
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_BLOCK", 14)
    monkeypatch.setattr(differences, "_PART", 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_against_torch(dtype: torch.dtype, seeded: int) -> None:
    left, right = (torch.randn(5, 11, dtype=torch.complex128) * 3 for _ in range(2))
    if not dtype.is_complex:
        left, right = left.real.contiguous(), right.real.contiguous()
    left, right = left.to(dtype), right.to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    a, b = left.to(wide), right.to(wide)
    found = measured(left, right)
    assert found.elements == 55
    assert found.differing == int((a != b).sum())
    assert math.isclose(found.norm, float((b - a).norm()))
    assert found.relative is not None
    assert math.isclose(found.relative, float((b - a).norm() / a.norm()))
    assert found.largest == float((b - a).abs().max())
    assert found.cosine is not None
    assert math.isclose(found.cosine, float(torch.vdot(a.flatten(), b.flatten()).real / a.norm() / b.norm()))
    assert found.cast is None


def test_zero_dimensions_and_no_elements() -> None:
    assert measured(torch.tensor(1.0), torch.tensor(3.0)) == Numbers(1, 1, 2.0, 2.0, 2.0, 1.0)
    assert measured(torch.empty(0, 3), torch.empty(0, 3)) == Numbers(0, 0, 0.0, None, 0.0, None)


def test_from_zeros_has_no_relative_norm_and_no_angle() -> None:
    assert measured(torch.zeros(2), torch.ones(2)) == Numbers(2, 2, math.sqrt(2), None, 1.0, None)


def test_nan_and_infinities_are_counted_and_left_out_of_sums() -> None:
    nan, inf = float("nan"), float("inf")
    left = torch.tensor([nan, nan, 1.0, inf, -inf, 2.0, 0.0, 0.0, 3.0])
    right = torch.tensor([nan, 1.0, nan, inf, inf, 2.0, 0.0, 0.0, 4.0])
    found = measured(left, right)
    assert (found.nan, found.infinite) == ((2, 2), (2, 2))
    assert found.differing == 4
    assert (found.norm, found.largest) == (1.0, 1.0)
    complex_one = measured(torch.tensor([complex(nan, 1), 1j]), torch.tensor([1j, 2j]))
    assert (complex_one.nan, complex_one.norm) == ((1, 0), 1.0)


def test_integers_past_float64_are_told_apart() -> None:
    large = 2**53
    assert measured(torch.tensor([large, 5]), torch.tensor([large + 1, 5])).differing == 1


def test_other_bits_of_equal_numbers_are_no_difference_in_numbers() -> None:
    assert measured(torch.tensor([0.0]), torch.tensor([-0.0])).differing == 0


@pytest.mark.parametrize(
    ("narrow", "equal"),
    [(torch.bfloat16, True), (torch.float16, True), (torch.float8_e5m2, True), (torch.int32, False)],
    ids=str,
)
@pytest.mark.parametrize("swap", [False, True])
def test_a_cast_is_recognised_in_both_directions(narrow: torch.dtype, equal: bool, swap: bool, seeded: int) -> None:
    left = torch.randn(40)
    right = left.to(narrow) if equal else left.to(narrow) + 1
    found = measured(right, left) if swap else measured(left, right)
    assert found.cast is equal
    assert found.norm > 0


def test_a_cast_that_loses_the_imaginary_part_is_none() -> None:
    left = torch.tensor([1 + 2j, 3 + 4j])
    found = measured(left, left.real.contiguous())
    assert found.cast is False
    assert math.isclose(found.norm, math.sqrt(4 + 16))
    assert measured(torch.tensor([1.0]), torch.tensor([1 + 0j])).cast is True


STRIDED = {
    "transposed": lambda t: t.t(),
    "every other": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(6, 8),
    "rows": lambda t: t[1:3],
    "overlapping": lambda t: t.as_strided((5, 4), (3, 2)),
}


@pytest.mark.parametrize("how", STRIDED)
def test_strides_are_walked_in_the_order_of_the_elements(how: str, seeded: int) -> None:
    left, right = (STRIDED[how](torch.randn(6, 8)) for _ in range(2))
    found = measured(left, right.contiguous())
    assert math.isclose(found.norm, float((right.double() - left.double()).norm()))
    assert found.elements == left.numel()


def test_a_dtype_without_arithmetic_has_no_numbers() -> None:
    bits = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    assert numbers(stored(bits), stored(bits)) is None
    assert list(
        numbers_of([("bits", stored(bits), stored(bits)), ("w", stored(torch.ones(1)), stored(torch.ones(1)))])
    ) == ["w"]


class Endless(FilledSource):
    """Zeros, and the longest read of them."""

    name, size, longest = "zeros", 1 << 26, 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.longest = max(self.longest, buffer.nbytes)
        buffer[:] = bytes(buffer.nbytes)


def test_a_block_of_each_side_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sources = Endless(), Endless()
    spec = TensorSpec("float32", (1 << 24,))
    found = numbers(*(StoredTensor(spec, Segment(source, 0, source.size)) for source in sources))
    assert found is not None
    assert found.elements == 1 << 24
    assert [source.longest for source in sources] == [differences._BLOCK * 4] * 2
    assert differences._BLOCK * 4 <= 4 << 20
