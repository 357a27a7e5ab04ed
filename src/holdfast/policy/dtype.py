"""Which casts keep every value."""

from __future__ import annotations

_WIDER: dict[str, frozenset[str]] = {
    "float8_e4m3fn": frozenset({"float16", "bfloat16", "float32", "float64"}),
    "float8_e5m2": frozenset({"float16", "bfloat16", "float32", "float64"}),
    "float16": frozenset({"float32", "float64"}),
    "bfloat16": frozenset({"float32", "float64"}),
    "float32": frozenset({"float64"}),
    "complex64": frozenset({"complex128"}),
    "uint8": frozenset(
        {"int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"}
    ),
    "int8": frozenset({"int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"}),
    "int16": frozenset({"int32", "int64", "float32", "float64"}),
    "int32": frozenset({"int64", "float64"}),
}


def is_lossless(source: str, target: str) -> bool:
    """Whether every value of dtype ``source`` is exactly a value of ``target``."""
    return source == target or target in _WIDER.get(source, frozenset())
