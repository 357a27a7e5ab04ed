"""Which casts keep every value, and which a policy allows."""

from __future__ import annotations

from typing import Literal

from holdfast.policy.policies import Policy, Warm

_FLOATS = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64")
_WIDER: dict[str, frozenset[str]] = {
    "float8_e4m3fn": frozenset({"float16", "bfloat16", "float32", "float64"}),
    "float8_e5m2": frozenset({"float16", "bfloat16", "float32", "float64"}),
    "float16": frozenset({"float32", "float64"}),
    "bfloat16": frozenset({"float32", "float64"}),
    "float32": frozenset({"float64"}),
    "complex64": frozenset({"complex128"}),
    "uint8": frozenset({"int16", "int32", "int64", "uint16", "uint32", "uint64"} | set(_FLOATS[2:])),
    "int8": frozenset({"int16", "int32", "int64"} | set(_FLOATS[2:])),
    "int16": frozenset({"int32", "int64", "float32", "float64"}),
    "int32": frozenset({"int64", "float64"}),
}

Cast = Literal["same", "lossless", "checked", "refused"]
"""``checked``: allowed when every value, looked at before anything is written, stays finite."""


def is_lossless(source: str, target: str) -> bool:
    """Whether every value of dtype ``source`` is exactly a value of ``target``."""
    return source == target or target in _WIDER.get(source, frozenset())


def judge_cast(source: str, target: str, policy: Policy) -> Cast:
    """Whether a policy lets a tensor go from one dtype to another."""
    if source == target:
        return "same"
    if is_lossless(source, target):
        return "lossless"
    if not isinstance(policy, Warm) or policy.cast is False:
        return "refused"
    if policy.cast == "any":
        return "lossless"
    narrowing = (source in _FLOATS and target in _FLOATS) or {source, target} == {"complex128", "complex64"}
    return "checked" if narrowing else "refused"
