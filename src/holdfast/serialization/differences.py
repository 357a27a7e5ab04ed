"""By how much two stored tensors differ: both are streamed, a block of each in memory at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import StoredTensor
from holdfast.formats.packing import tensor_bytes
from holdfast.formats.tensors import PACKED
from holdfast.serialization.kinds import live_dtype
from holdfast.serialization.memory import view_memory
from holdfast.state.diff import Numbers
from holdfast.storage import meter
from holdfast.storage.workers import run_jobs

_BLOCK = 1 << 19
"""Elements of each side that are read at a time."""
_PART = 1 << 15
"""Elements that are worked on at a time: in float64 they fit the cache, and torch uses one thread for them."""
_LARGE = (torch.int64, torch.uint64)


def numbers_of(pairs: Sequence[tuple[str, StoredTensor, StoredTensor]]) -> dict[str, Numbers]:
    """The numbers of many pairs by name, without those whose dtype has no arithmetic."""
    meter.begin("measuring", sum(left.spec.nbytes for _, left, _ in pairs))
    found: dict[str, Numbers | None] = dict.fromkeys(name for name, _, _ in pairs)

    def measure(pair: tuple[str, StoredTensor, StoredTensor]) -> None:
        found[pair[0]] = numbers(*pair[1:])

    run_jobs(pairs, measure)
    return {name: one for name, one in found.items() if one is not None}


def numbers(left: StoredTensor, right: StoredTensor) -> Numbers | None:
    """By how much a tensor (B) differs from another of its shape (A).

    Sums are taken in float64 over the elements that are finite on both sides; the others are counted.

    Args:
        left: A, of a file or of memory.
        right: B.

    Returns:
        The numbers; None for dtypes without arithmetic, such as packed ones.

    Raises:
        StorageError, CorruptFile: a side can't be read.
    """
    if not (_is_number(left) and _is_number(right)):
        return None
    sums = _Sums(live_dtype(left.spec), live_dtype(right.spec))
    for ours, theirs in zip(_blocks(left), _blocks(right), strict=True):
        for part in zip(torch.split(ours, _PART), torch.split(theirs, _PART), strict=True):
            sums.add(*part)
        meter.pass_by(ours.nbytes)
    return sums.result()


def _is_number(leaf: StoredTensor) -> bool:
    if leaf.spec.dtype in PACKED:
        return False
    with contextlib.suppress(RuntimeError, UnsupportedValue):  # the latter: a dtype that is newer than this torch
        _wide(torch.zeros(1, dtype=live_dtype(leaf.spec)))
        return True
    return False


def _blocks(leaf: StoredTensor) -> Iterator[torch.Tensor]:
    """The elements in row-major order, some at a time, always in the same numbers."""
    source, dtype, size = tensor_bytes(leaf), live_dtype(leaf.spec), leaf.spec.itemsize
    for first in range(0, leaf.spec.numel, _BLOCK):
        block = torch.empty(min(_BLOCK, leaf.spec.numel - first), dtype=dtype)
        source.read_into(first * size, view_memory(block.data_ptr(), block.numel() * size))
        yield block


def _wide(block: torch.Tensor) -> torch.Tensor:
    return block.to(torch.complex128 if block.is_complex() else torch.float64)


class _Sums:
    """What adds up over the blocks of two tensors."""

    def __init__(self, left: torch.dtype, right: torch.dtype) -> None:
        self._dtypes = left, right
        self._elements = self._differing = 0
        self._nan, self._infinite = [0, 0], [0, 0]
        self._difference, self._left, self._right = 0.0, 0.0, 0.0
        self._product: complex = 0.0
        self._largest = 0.0
        self._becomes = [left != right, left != right]

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Takes in the same elements of both."""
        left, right = _wide(ours), _wide(theirs)
        self._elements += left.numel()
        self._cast(0, ours, right)
        self._cast(1, theirs, left)
        difference = right - left
        squares = _squares(difference)
        if not math.isfinite(squares):
            left, right, difference = self._finite(left, right)
            squares = _squares(difference)
        exact = ours.dtype == theirs.dtype and ours.dtype in _LARGE  # float64 would round them
        unequal = ours.view(torch.int64) != theirs.view(torch.int64) if exact else difference
        self._differing += int(unequal.count_nonzero())
        self._difference += squares
        self._left += _squares(left)
        self._right += _squares(right)
        self._product += torch.vdot(*_alike(left, right)).item()
        if difference.numel():
            self._largest = max(self._largest, float(torch.linalg.vector_norm(difference, math.inf)))

    def _finite(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is finite on both sides, and its difference, after what is not has been counted."""
        for index, one in enumerate((left, right)):
            self._nan[index] += int(one.isnan().count_nonzero())
            self._infinite[index] += int(one.isinf().count_nonzero())
        finite = left.isfinite() & right.isfinite()
        self._differing += int((~_equal(left, right) & ~finite).count_nonzero())
        left, right = left[finite], right[finite]
        return left, right, right - left

    def _cast(self, index: int, block: torch.Tensor, other: torch.Tensor) -> None:
        """Whether a side is still all that the other becomes."""
        if self._becomes[index]:
            dtype = self._dtypes[1 - index]
            same = dtype.is_complex or not block.is_complex()  # a cast would lose the imaginary part
            self._becomes[index] = same and bool(_equal(_wide(block.to(dtype)), other).all())

    def result(self) -> Numbers:
        """The numbers."""
        norm, ours, theirs = (math.sqrt(one) for one in (self._difference, self._left, self._right))
        cosine = None
        if ours and theirs:
            cosine = max(-1.0, min(1.0, self._product.real / (ours * theirs)))
        return Numbers(
            elements=self._elements,
            differing=self._differing,
            norm=norm,
            relative=norm / ours if ours else None,
            largest=self._largest,
            cosine=cosine,
            nan=(self._nan[0], self._nan[1]),
            infinite=(self._infinite[0], self._infinite[1]),
            cast=any(self._becomes) if self._dtypes[0] != self._dtypes[1] else None,
        )


def _equal(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left == right) | (left.isnan() & right.isnan())


def _squares(one: torch.Tensor) -> float:
    return float(torch.vdot(one, one).real)


def _alike(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(left.dtype, right.dtype)
    return left.to(wide), right.to(wide)
