"""Which storages of a tree no typed storage class fits."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.formats.base import StoredTensor
from holdfast.spec import DTYPES
from holdfast.state.values import Tree, Typed


def untyped_segments(tree: Tree) -> set[int]:
    """The ids of segments with a dtype without a class, several dtypes, or a length between two elements."""
    dtypes: dict[int, str] = {}
    untyped: set[int] = set()
    for leaf in _leaves(tree):
        row, segment = DTYPES[leaf.spec.dtype], leaf.segment
        if dtypes.setdefault(id(segment), row.name) != row.name or not row.storage or segment.length % row.itemsize:
            untyped.add(id(segment))
    return untyped


def _leaves(tree: Tree) -> Iterator[StoredTensor]:
    """Every tensor of a tree, however deep, keys and all."""
    rest = [tree]
    while rest:
        item = rest.pop()
        cls = type(item)
        if cls is StoredTensor:
            yield item
        elif cls is dict:
            rest.extend(item.values())
        elif cls is list:
            rest.extend(item)
        elif cls is Typed:
            rest.append(item.payload)
