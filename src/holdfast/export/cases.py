"""Inputs to try an exported file on: the example, and fresh ones that a file made of one recorded run would fail on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from holdfast.export.dynamic import Axes, sizes_of
from holdfast.export.example import Example

SIZES = (1, 2, 3, 7)
"""Sizes that each open axis is tried with: the two that exporters take for constants, and two odd ones."""
_SEED = 20_240_229


class Case(NamedTuple):
    """An input: what reports call it, its leaves, and which open axis has another size than in the example."""

    name: str
    leaves: list[Any]
    resized: tuple[str, int] | None = None


def cases_for(example: Example, axes: Axes) -> list[Case]:
    """The example, four inputs of its shapes, and one for each size of each open axis; always the same ones."""
    generator = torch.Generator().manual_seed(_SEED)

    def each(change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> list[Any]:
        return [change(leaf, generator) if isinstance(leaf, torch.Tensor) else leaf for leaf in example.leaves]

    made = [
        Case("example", example.leaves),
        Case("negated", each(_negated)),
        Case("shuffled", each(_shuffled)),
        Case("fresh, as the example", each(_like)),
        Case("fresh, around zero", each(_around_zero)),
    ]
    sizes = sizes_of(axes, example.leaves)
    for name, usual in sizes.items():
        for size in SIZES:
            if size != usual:
                leaves = _resized(example.leaves, axes, name, size, generator)
                made.append(Case(f"{name}={size}", leaves, (name, size)))
    return made


def _resized(leaves: list[Any], axes: Axes, name: str, size: int, generator: torch.Generator) -> list[Any]:
    resized = list(leaves)
    for leaf, named in axes.items():
        if name in named.values():
            shape = [size if named.get(axis) == name else was for axis, was in enumerate(leaves[leaf].shape)]
            resized[leaf] = _drawn(leaves[leaf], shape, generator)
    return resized


def _negated(tensor: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    """Integers stay: a negative index is another mistake than the one looked for."""
    if tensor.dtype is torch.bool:
        return ~tensor
    return -tensor if tensor.is_floating_point() or tensor.is_complex() else tensor


def _shuffled(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.reshape(-1)[order].reshape(tensor.shape)


def _like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _drawn(tensor, list(tensor.shape), generator)


def _around_zero(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _drawn(tensor, list(tensor.shape), generator, mean=0.0)


def _drawn(
    tensor: torch.Tensor, shape: list[int], generator: torch.Generator, *, mean: float | None = None
) -> torch.Tensor:
    """A tensor of this kind: normals of its mean and spread, integers within its range, bools."""
    if tensor.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if tensor.is_complex():
        parts = [_drawn(part, shape, generator, mean=mean) for part in (tensor.real, tensor.imag)]
        return torch.complex(parts[0].float(), parts[1].float()).to(tensor.dtype)
    if not tensor.is_floating_point():
        low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 0)
        return torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int64).to(tensor.dtype)
    values = tensor.double()
    values = values[values.isfinite()]
    spread = float(values.std(correction=0)) if values.numel() else 0.0
    center = float(values.mean()) if values.numel() and mean is None else mean or 0.0
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * (spread or 1.0) + center).to(tensor.dtype)
