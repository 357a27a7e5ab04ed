"""numpy's scalars and arrays as bytes with a dtype, and the nearest plain values, without numpy.

A dtype is numpy's array-interface code, ``<f8``: byte order, kind, item size
(https://numpy.org/doc/stable/reference/arrays.interface.html).
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Sequence
from typing import Any

from holdfast.formats.base import Segment, StoredTensor
from holdfast.spec import TensorSpec
from holdfast.state.values import Tree
from holdfast.storage.source import MemorySource

CODE = re.compile(r"[<>|=]?([biufcSUmM])(\d{1,9})(\[\d*[a-zA-Z]+\])?", re.ASCII)
"""A dtype whose bytes mean the same everywhere: neither objects nor records."""
_TORCH = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128",
}  # fmt: skip
_STRUCT = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
           "f2": "e", "f4": "f", "f8": "d", "c8": "ff", "c16": "dd"}  # fmt: skip
_WORDS = {2: "H", 4: "I", 8: "Q"}


_CODES = {dtype: code for code, dtype in _TORCH.items()}


def torch_dtype(code: str) -> str | None:
    """The torch dtype of a numpy code, or None where torch has none."""
    match = CODE.fullmatch(code)
    return _TORCH.get(match[1] + match[2]) if match else None


def numpy_code(dtype: str) -> str | None:
    """The little-endian numpy code of a torch dtype, or None where numpy has none (bfloat16, float8)."""
    code = _CODES.get(dtype)
    return None if code is None else ("|" if code[1:] == "1" else "<") + code


def itemsize(code: str) -> int | None:
    """Bytes of one item, or None for a dtype that is not plain."""
    match = CODE.fullmatch(code)
    if match is None:
        return None
    return int(match[2]) * (4 if match[1] == "U" else 1)


def plain_scalar(payload: dict[str, Any]) -> Tree:
    """A numpy scalar as the Python value that it equals; as its bytes where Python has none."""
    code, data = payload["dtype"], payload["data"]
    match = CODE.fullmatch(code)
    if match is None:
        return bytes(data)
    kind, size = match[1], match[2]
    order = ">" if code[0] == ">" else "<"
    if kind + size in _STRUCT and struct.calcsize(order + _STRUCT[kind + size]) == len(data):
        values = struct.unpack(order + _STRUCT[kind + size], data)
        return complex(*values) if kind == "c" else values[0]
    if kind == "U" and len(data) % 4 == 0:
        return str(data, "utf-32-be" if order == ">" else "utf-32-le", "surrogatepass").rstrip("\0")
    if kind in "mM" and len(data) == 8:
        return int.from_bytes(data, "big" if order == ">" else "little", signed=True)
    return bytes(data).rstrip(b"\0") if kind == "S" else bytes(data)


def plain_array(payload: dict[str, Any]) -> Tree:
    """A numpy array as a tensor; one of a dtype that torch lacks as a dict with its bytes."""
    if "tensor" in payload:
        return payload["tensor"]
    match = CODE.fullmatch(payload["dtype"])
    dtype = _TORCH.get(match[1] + match[2]) if match else None
    if dtype is None or match is None:
        return dict(payload)
    data, shape = bytes(payload["data"]), tuple(payload["shape"])
    if payload["dtype"][0] == ">":
        data = swapped(data, int(match[2]) // (2 if match[1] == "c" else 1))
    segment = Segment(MemorySource(data), 0, len(data))
    return StoredTensor(TensorSpec(dtype, shape), segment)


def swapped(data: bytes, width: int) -> bytes:
    """Words of ``width`` bytes with their bytes in reverse order."""
    if width == 1:
        return data
    words = array(_WORDS[width], data)
    words.byteswap()
    return words.tobytes()


def row_major(data: bytes, shape: Sequence[int], size: int) -> bytes:
    """Items of ``size`` bytes in column-major (Fortran) order, put into row-major order.

    Taking every n-th item leaves the array of one dimension less, again column-major, so each dimension is one
    round of slices, and slicing runs in C.
    """
    if len(shape) < 2 or math.prod(shape) < 2:
        return data
    items: Any = array({1: "B", **_WORDS}[size], data) if size in (1, 2, 4, 8) else _pieces(data, size)
    parts = [items]
    for length in shape[:-1]:
        parts = [part[index::length] for part in parts for index in range(length)]
    return b"".join(bytes(part) if size in (1, 2, 4, 8) else b"".join(part) for part in parts)


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
