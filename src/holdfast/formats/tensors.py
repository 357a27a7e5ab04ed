"""The one check between a tensor's numbers in a file and a ``StoredTensor``: what passes lies inside its segment.

Python integers do not wrap, so a product that would overflow in C is simply too large here.
"""

from __future__ import annotations

import math
from typing import Any

from holdfast.errors import CorruptFile
from holdfast.formats.base import Segment, StoredTensor
from holdfast.spec import DTYPES, TensorSpec, contiguous_stride
from holdfast.storage.source import shown

MAX_RANK = 64
"""Dimensions that a tensor may have: torch's own limit."""
_MAX_INT = 2**63 - 1
PACKED = {"quint4x2": 2, "quint2x4": 4}
"""Elements in one byte of the dtypes that torch packs along the last dimension."""


def stored_tensor(
    segment: Segment, spec: TensorSpec, *, offset: int = 0, requires_grad: bool = False, file: str
) -> StoredTensor:
    """A tensor that certainly lies inside its segment.

    Args:
        segment: the bytes.
        spec: as the file gives it; any value may be a lie. A row-major stride is kept as None.
        offset: bytes from the start of the segment to the first element.
        requires_grad: as saved.
        file: named in errors.

    Raises:
        CorruptFile: the spec is no tensor's, or reaches past the segment.
    """
    return TensorPlacer(file).place(segment, (spec.dtype, spec.shape, spec.stride), offset, requires_grad)


class TensorPlacer:
    """:func:`stored_tensor` for the many tensors of one file: each distinct spec is checked once.

    Args:
        file: named in errors.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._checked: dict[Any, tuple[TensorSpec, int]] = {}

    def place(self, segment: Segment, numbers: tuple[Any, Any, Any], offset: Any, requires_grad: Any) -> StoredTensor:
        """A tensor in a segment; ``numbers`` are dtype, shape and stride, and like the rest may be lies."""
        try:
            known = self._checked.get(numbers)
        except TypeError:  # a list among the sizes; the check says so
            known = None
        if known is None:
            spec = checked_spec(TensorSpec(*numbers), segment.name, file=self._file)
            known = self._checked[numbers] = spec, needed_bytes(spec)
        spec, need = known
        if type(offset) is not int or offset < 0 or offset + need > segment.length:
            raise _lie(
                self._file,
                segment.name,
                f"a tensor {spec}, stride {spec.stride}, at byte {offset!r:.100} needs {need:,} bytes, the record has "
                f"{segment.length:,}",
            )
        if type(requires_grad) is not bool:
            raise _lie(self._file, segment.name, "requires_grad is no bool")
        return StoredTensor(spec, segment, offset, requires_grad)


def checked_spec(spec: TensorSpec, name: str, *, file: str) -> TensorSpec:
    """``spec`` with sizes, strides and dtype that a tensor can have, and None for a row-major stride.

    Raises:
        CorruptFile: they are not.
    """
    shape, stride = spec.shape, spec.stride
    if spec.dtype not in DTYPES:
        raise _lie(file, name, f"no dtype is called {spec.dtype!r:.100}")
    if len(shape) > MAX_RANK:
        raise _lie(file, name, f"a tensor of {len(shape)} dimensions; {MAX_RANK} is the most")
    if not _naturals(shape) or (stride is not None and not _naturals(stride)):
        raise _lie(file, name, f"sizes {shape!r:.200} or strides {stride!r:.200} are not all integers of at least 0")
    if math.prod(shape) > _MAX_INT:
        raise _lie(file, name, f"a tensor of shape {shape!r:.200} has more elements than 64 bits can count")
    if stride is None:
        return spec
    if len(stride) != len(shape):
        raise _lie(file, name, f"{len(shape)} sizes but {len(stride)} strides")
    return TensorSpec(spec.dtype, shape) if stride == contiguous_stride(shape) else spec


def needed_bytes(spec: TensorSpec) -> int:
    """Bytes from the first element of a tensor to its last, both included."""
    return packed_bytes(spec) if spec.dtype in PACKED else spec.extent * spec.itemsize


def packed_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor whose dtype holds several elements in one byte: each row starts a new byte."""
    per = PACKED[spec.dtype]
    return math.prod(spec.shape[:-1]) * -(-spec.shape[-1] // per) if spec.shape else 1


def _naturals(values: object) -> bool:
    return type(values) is tuple and all(type(value) is int and 0 <= value <= _MAX_INT for value in values)


def _lie(file: str, name: str, what: str) -> CorruptFile:
    return CorruptFile(f"`{shown(file)}`: {shown(name)}: {what}: corrupt", file=file)
