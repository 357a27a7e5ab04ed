"""What a tensor is, without a tensor: dtypes, shapes and digests.

This is the only place that lists dtypes. Names are torch's (``float32``); the other columns say what each container
calls the same thing. Sources: ``torch.storage._dtype_to_storage_type_map`` of torch 2.13 and the dtype list of the
safetensors format (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

CHUNK = 8 * 1024 * 1024
"""Bytes under one digest: small enough to locate damage, large enough to cost nothing."""


class DType(msgspec.Struct, frozen=True):
    """One row of the dtype table.

    Attributes:
        name: torch's name, ``float32``.
        itemsize: bytes of one element.
        safetensors: the code in a safetensors header, or None when the format lacks it.
        storage: the class that names it in torch pickles before UntypedStorage, or None for newer dtypes.
        export: its number in archives of torch.export, or None when the schema lacks it.
    """

    name: str
    itemsize: int
    safetensors: str | None = None
    storage: str | None = None
    export: int | None = None


DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        DType("float64", 8, "F64", "DoubleStorage", export=8),
        DType("float32", 4, "F32", "FloatStorage", export=7),
        DType("float16", 2, "F16", "HalfStorage", export=6),
        DType("bfloat16", 2, "BF16", "BFloat16Storage", export=13),
        DType("float8_e4m3fn", 1, "F8_E4M3", export=29),
        DType("float8_e5m2", 1, "F8_E5M2", export=30),
        DType("float8_e4m3fnuz", 1, "F8_E4M3FNUZ", export=31),
        DType("float8_e5m2fnuz", 1, "F8_E5M2FNUZ", export=32),
        DType("float8_e8m0fnu", 1, "F8_E8M0", export=33),
        DType("float4_e2m1fn_x2", 1),
        DType("int64", 8, "I64", "LongStorage", export=5),
        DType("int32", 4, "I32", "IntStorage", export=4),
        DType("int16", 2, "I16", "ShortStorage", export=3),
        DType("int8", 1, "I8", "CharStorage", export=2),
        DType("uint8", 1, "U8", "ByteStorage", export=1),
        DType("uint16", 2, "U16", export=28),
        DType("uint32", 4, "U32", export=34),
        DType("uint64", 8, "U64", export=35),
        DType("bool", 1, "BOOL", "BoolStorage", export=12),
        DType("complex128", 16, None, "ComplexDoubleStorage", export=11),
        DType("complex64", 8, "C64", "ComplexFloatStorage", export=10),
        DType("complex32", 4, export=9),
        DType("qint8", 1, None, "QInt8Storage"),
        DType("quint8", 1, None, "QUInt8Storage"),
        DType("qint32", 4, None, "QInt32Storage"),
        DType("quint4x2", 1, None, "QUInt4x2Storage"),
        DType("quint2x4", 1, None, "QUInt2x4Storage"),
        DType("bits8", 1),
        DType("bits16", 2),
        DType("bits1x8", 1),
        DType("bits2x4", 1),
        DType("bits4x2", 1),
    )
}
BY_SAFETENSORS = {row.safetensors: row for row in DTYPES.values() if row.safetensors}
BY_STORAGE = {row.storage: row for row in DTYPES.values() if row.storage}
BY_EXPORT = {row.export: row for row in DTYPES.values() if row.export}


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """The row-major stride of ``shape``, in elements, as torch computes it (zero-size dimensions count as one)."""
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a tensor is: dtype, shape and stride.

    Attributes:
        dtype: a name of :data:`DTYPES`.
        shape: elements per dimension.
        stride: elements between neighbours per dimension; None means row-major.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize

    @property
    def extent(self) -> int:
        """Elements from the first to the last one, both included: what the stride reaches over."""
        if 0 in self.shape:
            return 0
        if self.stride is None:
            return self.numel
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether elements lie in row-major order without gaps; the stride of a dimension of size one is ignored."""
        if self.stride is None or 0 in self.shape:
            return True
        wanted = contiguous_stride(self.shape)
        return all(size == 1 or have == want for size, have, want in zip(self.shape, self.stride, wanted, strict=True))

    def __str__(self) -> str:
        return f"{tuple(self.shape)} {self.dtype}"


Key = str | int | float | bool | None
"""A key of one level of the tree. Typed: the string "0" is not the integer 0."""
Path = tuple[Key, ...]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor of a checkpoint: the wire form of ``entries.json`` (see docs/format.md).

    Attributes:
        path: where it goes in the tree.
        spec: what it is; ``spec.stride`` is how the elements lie in the file (None: row-major).
        file: the container in the checkpoint's folder, and ``name`` the tensor's name inside it.
        offset: first byte of the tensor in ``file``, counted from the start of the file.
        length: its bytes there.
        chunks: one digest (hex) for each chunk of 8 MiB, the last shorter.
        alias_of: the path of the entry that stores the bytes, when this one shares them; ``offset`` then lies inside
            it.
        live_stride: the stride that the tensor had in memory, when it is not that of ``spec``.
        requires_grad: as saved.
        rectangles: for a tensor that lies in parts: (number of the entry of a part, the part's first element per
            dimension) for each. Such an entry has no bytes of its own, so ``file`` and ``name`` are empty.
    """

    path: Path
    spec: TensorSpec
    file: str
    name: str
    offset: int
    length: int
    chunks: tuple[str, ...] = ()
    alias_of: Path | None = None
    live_stride: tuple[int, ...] | None = None
    requires_grad: bool = False
    rectangles: tuple[tuple[int, tuple[int, ...]], ...] = ()
