"""Inputs of a model, described on the command line."""

from __future__ import annotations

from typing import Any

from holdfast.errors import ArgumentError
from holdfast.state.paths import printable

_SEED = 0
_MOST = 1 << 31


def random_inputs(inputs: tuple[str, ...]) -> tuple[Any, ...] | None:
    """Random tensors, the same each time: normals, or integers from 0 to below what is given; None for no inputs.

    Args:
        inputs: each as ``1x3x32x32`` or ``1x16:int64:1000``.

    Raises:
        ArgumentError: one is written otherwise, or of no dtype of torch.
    """
    if not inputs:
        return None
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    made = []
    for text in inputs:
        shape, dtype, below = _input(text)
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ArgumentError(f"--input {printable(text)!r}: torch has no dtype {printable(dtype)!r}")
        if kind.is_floating_point or kind.is_complex:
            made.append(torch.randn(shape, generator=generator).to(kind))
        else:
            made.append(torch.randint(0, below, shape, generator=generator).to(kind))
    return tuple(made)


def _input(text: str) -> tuple[list[int], str, int]:
    """``1x16:int64:1000`` as its shape, dtype and bound."""
    shape, _, rest = text.partition(":")
    dtype, _, below = rest.partition(":")
    sizes = shape.split("x") if shape else []
    if not all(size.isdecimal() and int(size) < _MOST for size in sizes) or (below and not below.isdecimal()):
        raise ArgumentError(
            f"--input {printable(text)!r}: write SHAPE, SHAPE:DTYPE or SHAPE:DTYPE:N, as 1x16:int64:1000"
        )
    if below and not 0 < int(below) < _MOST:
        raise ArgumentError(f"--input {printable(text)!r}: integers are drawn from 0 to below N; N is at least 1")
    return [int(size) for size in sizes], dtype or "float32", int(below or 2)
