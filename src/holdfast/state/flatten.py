"""Walking an inert tree: its leaves with their paths, and the same tree with other leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from holdfast.spec import Path
from holdfast.state.values import ATOMS, Opaque, Tree, Typed

PAIR_KINDS = frozenset({"dict", "ordered_dict", "counter"})
"""Kinds whose payload is a list of [key, value]."""


def leaves(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf that is neither an atom nor a container, with its path, in the order of the tree.

    The path is what a user would index with: ``Typed`` adds no level, so a Parameter under ``w`` is at ``("w",)``; the
    parts of a sparse tensor under ``s`` are at ``("s", "indices")`` and ``("s", "values")``.
    """
    cls = type(tree)
    if cls in ATOMS:
        return
    if cls is dict:
        for key, item in tree.items():
            yield from leaves(item, (*path, key))
    elif cls is list:
        for index, item in enumerate(tree):
            yield from leaves(item, (*path, index))
    elif cls is Typed:
        yield from _typed_leaves(tree, path)
    elif cls is Opaque:
        yield from leaves(tree.args, (*path, "args"))
        yield from leaves(tree.state, (*path, "state"))
    else:
        yield path, tree


def _typed_leaves(tree: Typed, path: Path) -> Iterator[tuple[Path, Any]]:
    for key, item in children(tree):
        yield from leaves(item, path if key is _SAME else (*path, key))


_SAME: Any = object()
_TRANSPARENT = {"items", "data", "fields", "tensor"}
"""Parts of a payload that are the value itself to a reader: they add no level to the path."""


def children(tree: Typed) -> Iterator[tuple[Any, Tree]]:
    """The direct parts of a Typed value as (key, inert tree); the key is ``_SAME`` where the part is the value."""
    payload = tree.payload
    if tree.kind in PAIR_KINDS and type(payload) is list:
        yield from ((key if _plain_key(key) else str(key), item) for key, item in payload)
    elif tree.kind in ("state_dict", "defaultdict") and type(payload["items"]) is list:
        yield from ((key if _plain_key(key) else str(key), item) for key, item in payload["items"])
    elif tree.kind == "namespace":
        yield from payload.items()
    elif type(payload) is dict:
        yield from ((_SAME if name in _TRANSPARENT else name, item) for name, item in payload.items())
    elif type(payload) is list:
        yield from enumerate(payload)
    else:
        yield _SAME, payload


def _plain_key(key: Any) -> bool:
    return type(key) in ATOMS


def child(tree: Tree, key: Any) -> Tree | None:
    """The part of a container that a user would get by ``tree[key]``, or None where it has none."""
    if type(tree) is dict:
        return tree.get(key)
    if type(tree) is list:
        return tree[key] if type(key) is int and 0 <= key < len(tree) else None
    if type(tree) is Typed:
        for name, item in children(tree):
            if name is _SAME:
                found = child(item, key)
                if found is not None:
                    return found
            elif name == key and type(name) is type(key):
                return item
    return None


def keys(tree: Tree) -> list[Any]:
    """The keys that a user would see in a mapping-like container; [] for everything else."""
    if type(tree) is dict:
        return list(tree)
    if type(tree) is Typed:
        found: list[Any] = []
        for name, item in children(tree):
            found.extend(keys(item) if name is _SAME else [name])
        return found
    return []


def map_leaves(tree: Tree, change: Callable[[Any], Any]) -> Tree:
    """The same tree with ``change(leaf)`` in place of each leaf."""
    cls = type(tree)
    if cls in ATOMS:
        return tree
    if cls is dict:
        return {key: map_leaves(item, change) for key, item in tree.items()}
    if cls is list:
        return [map_leaves(item, change) for item in tree]
    if cls is Typed:
        return Typed(tree.kind, map_leaves(tree.payload, change))
    if cls is Opaque:
        return Opaque(tree.type_name, map_leaves(tree.args, change), map_leaves(tree.state, change))
    return change(tree)
