"""From a tree to the flat list of named arrays that an npz holds, and what has no place in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from holdfast.formats.archive import is_plain
from holdfast.formats.arrays import numpy_code
from holdfast.formats.base import Document, StoredTensor
from holdfast.formats.lost import Lost
from holdfast.formats.packing import can_gather
from holdfast.spec import Path
from holdfast.state.flatten import PAIR_KINDS, seen_parts
from holdfast.state.paths import dotted
from holdfast.state.values import Opaque, Tree, Typed

_CONTAINERS = PAIR_KINDS | {"state_dict", "defaultdict", "namespace", "tuple"}
"""Kinds that are seen through: their items have names."""
_WRAPPED = frozenset({"parameter", "tensor"})
"""Kinds that are a tensor and a little more."""
_LONGEST_NAME = 60_000
"""Bytes: a zip counts those of a name in 16 bits."""


class Array(msgspec.Struct, eq=False):
    """One array to be written.

    Attributes:
        name: unique: the dotted path.
        path: where it is in the tree.
        value: a tensor, or the payload of an array of numpy.
    """

    name: str
    path: Path
    value: StoredTensor | dict[str, Any]


def arrays_of(document: Document) -> tuple[list[Array], list[Lost]]:
    """The arrays of a document by name, and what is none."""
    arrays: dict[str, Array] = {}
    lost: list[Lost] = []
    for path, value in _flat(document.tree, ()):
        name = dotted(path) if path else "arr_0"  # what numpy calls an array without a name
        why = _why_not(value)
        if not why and name in arrays:
            why = f"the name is taken by {list(arrays[name].path)}"
        if not why and not _can_name(name):
            why = "a zip can't hold that name"
        if why:
            lost.append(Lost(dotted(path), why))
        else:
            arrays[name] = Array(name, path, value)
    lost += [Lost(f"metadata.{key}", "metadata") for key in document.metadata]
    return list(arrays.values()), lost


def _flat(tree: Tree, path: Path) -> Iterator[tuple[Path, Any]]:
    """Everything that is no container that is seen through, with its path."""
    stack = [iter([(path, tree)])]  # not recursive: files from outside nest as deep as they like
    while stack:
        for at, node in stack[-1]:
            cls = type(node)
            if cls is Typed and node.kind in _WRAPPED and type(node.payload) is dict:
                yield at, node.payload.get("data")
            elif cls is Typed and node.kind == "numpy.array" and type(node.payload) is dict:
                yield at, node.payload.get("tensor", node.payload)
            elif cls in (dict, list) or (cls is Typed and node.kind in _CONTAINERS):
                parts = seen_parts(at, node)
                if not parts and at:
                    yield at, node
                stack.append(iter(parts))
                break
            else:
                yield at, node
        else:
            stack.pop()


def _why_not(value: Any) -> str:
    """Why a value is no array of numpy; empty when it is one."""
    cls = type(value)
    if cls is StoredTensor:
        spec = value.spec
        if numpy_code(spec.dtype) is None:
            return f"{spec.dtype}, which numpy lacks"
        return "" if spec.is_contiguous or can_gather(spec) else "its elements share memory: it was expanded"
    if cls is dict and "data" in value and "dtype" in value:
        return ""
    if cls is Opaque:
        return f"an object of class {value.type_name}"
    if cls is Typed:
        return f"a {value.kind}{' tensor' if value.kind in ('sparse', 'quantized', 'meta', 'conj', 'neg') else ''}"
    if cls in (dict, list):
        return f"an empty {cls.__name__}"
    return "None" if value is None else f"a {cls.__name__}"


def _can_name(name: str) -> bool:
    try:
        return is_plain(f"{name}.npy") and len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False
