"""Axes whose size is left open, ``dynamic={"input": {0: "batch"}}``: resolved, named, and as torch.export says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from holdfast.errors import ArgumentError
from holdfast.export.example import Example
from holdfast.state.paths import printable

Axes = dict[int, dict[int, str]]
"""For each leaf that has any: its open axes and their names."""

_TRACED = 2
"""The size with which an open axis is traced when the example's is 0 or 1: those two are taken for constants."""


def resolve_axes(dynamic: Any, example: Example, given: Sequence[str] | None) -> Axes:
    """Which axes of which leaves are open.

    Args:
        dynamic: by input (its own name, the parameter of ``forward``, or its position among the tensors), axes with
            their names ``{0: "batch"}``, or only axes ``{0}``. Axes of one name have one size. Those without a name
            have one where the axis and the example's size are the same.
        example: what they belong to.
        given: the caller's names of the inputs, in order.

    Raises:
        ArgumentError: no such input or axis, or one name for axes of two sizes.
    """
    if dynamic is None:
        return {}
    if not isinstance(dynamic, Mapping):
        raise ArgumentError('dynamic= maps inputs to their open axes: dynamic={"input": {0: "batch"}}')
    tensors = example.tensors
    names = {example.names[leaf]: leaf for leaf in tensors} | dict(zip(given or (), tensors, strict=False))
    names |= {str(at): leaf for at, leaf in enumerate(tensors)}
    axes: Axes = {}
    unnamed: dict[tuple[int, int], str] = {}
    for key, wanted in dynamic.items():
        leaf = names.get(str(key))
        if leaf is None:
            known = ", ".join(printable(name) for name in given or [example.names[leaf] for leaf in tensors])
            raise ArgumentError(f"dynamic=: no input {printable(str(key))!r}; the inputs are {known}")
        axes[leaf] = _axes_of(str(key), wanted, example.leaves[leaf], unnamed)
    sizes_of(axes, example.leaves)
    return {leaf: found for leaf, found in axes.items() if found}


def _axes_of(key: str, wanted: Any, tensor: torch.Tensor, unnamed: dict[tuple[int, int], str]) -> dict[int, str]:
    named = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted) if _is_axes(wanted) else None
    if named is None:
        raise ArgumentError(f"dynamic=: {printable(key)!r} takes axes, {{0: 'batch'}} or {{0}}, not {wanted!r}")
    found = {}
    for given, name in named.items():
        if type(given) is not int or not -tensor.ndim <= given < tensor.ndim:
            raise ArgumentError(
                f"dynamic=: {printable(key)!r} has no axis {given!r}; it has {tensor.ndim}: {tuple(tensor.shape)}"
            )
        axis = given % tensor.ndim
        found[axis] = _free_name(axis, tensor.shape[axis], unnamed) if name is None else name
        if not isinstance(found[axis], str) or not found[axis].isidentifier():
            raise ArgumentError(f"dynamic=: the name of an axis is a word such as 'batch', not {name!r}")
    return found


def _free_name(axis: int, size: int, unnamed: dict[tuple[int, int], str]) -> str:
    """One name for the axes of this number that have this size in the example."""
    taken = set(unnamed.values())
    free = next(one for one in _candidates(axis) if one not in taken)
    return unnamed.setdefault((axis, size), free)


def _candidates(axis: int) -> list[str]:
    return [f"axis{axis}", *(f"axis{axis}_{number}" for number in range(2, 100))]


def _is_axes(wanted: Any) -> bool:
    return isinstance(wanted, set | frozenset | list | tuple)


def sizes_of(axes: Axes, leaves: Sequence[Any]) -> dict[str, int]:
    """The size of each open axis in these leaves, by its name."""
    sizes: dict[str, int] = {}
    for leaf, named in axes.items():
        for axis, name in named.items():
            size = leaves[leaf].shape[axis]
            if sizes.setdefault(name, size) != size:
                raise ArgumentError(
                    f"dynamic=: axes named {name!r} have one size; the example has {sizes[name]}, {size}"
                )
    return sizes


def traced_leaves(axes: Axes, leaves: Sequence[Any]) -> list[Any]:
    """The leaves with at least two along every open axis, by repetition."""
    traced = list(leaves)
    for leaf, named in axes.items():
        for axis in named:
            size = traced[leaf].shape[axis]
            if size < _TRACED:
                shape = list(traced[leaf].shape)
                shape[axis] = _TRACED
                traced[leaf] = traced[leaf].expand(shape).clone() if size else traced[leaf].new_zeros(shape)
    return traced


def export_shapes(axes: Axes, example: Example, *, bounded: bool = False) -> dict[str, Any] | None:
    """What torch.export takes as ``dynamic_shapes``; None when no axis is open.

    Args:
        axes: the open axes.
        example: the inputs.
        bounded: leave it to torch up to which size each may go; otherwise all sizes have to do.
    """
    if not axes:
        return None
    dims = {
        name: torch.export.Dim.DYNAMIC if bounded else torch.export.Dim(name)
        for named in axes.values()
        for name in named.values()
    }
    marks = [
        {axis: dims[name] for axis, name in axes.get(leaf, {}).items()} or None for leaf in range(len(example.leaves))
    ]
    return example.by_parameter(marks)


def shown_shape(tensor: torch.Tensor, named: Mapping[int, str]) -> list[str | int]:
    """A shape for people: ``["batch", 3, 32, 32]``."""
    return [named.get(axis, size) for axis, size in enumerate(tensor.shape)]
