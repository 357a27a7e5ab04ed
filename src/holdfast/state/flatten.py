"""Walking an inert tree: its leaves with their paths, and the same tree with other leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from holdfast.spec import Path
from holdfast.state.values import ATOMS, Opaque, Tree, Typed, needed_class

PAIR_KINDS = frozenset({"dict", "ordered_dict", "counter"})
"""Kinds whose payload is a list of [key, value]."""


def leaves(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf that is neither an atom nor a container, with its path, in the order of :func:`encoding.to_json`.

    The path is what a user would index with: ``Typed`` adds no level, so a Parameter under ``w`` is at ``("w",)``; the
    parts of a sparse tensor under ``s`` are at ``("s", "indices")`` and ``("s", "values")``.
    """
    stack = [iter([(path, tree)])]  # not recursive: files from outside nest as deep as they like
    while stack:
        for at, node in stack[-1]:
            cls = type(node)
            if cls in ATOMS:
                continue
            if cls is dict or cls is list or cls is Typed or cls is Opaque:
                stack.append(below(at, node))
                break
            yield at, node
        else:
            stack.pop()


def below(path: Path, node: Any) -> Iterator[tuple[Path, Tree]]:
    """The direct parts of a container with their paths."""
    if type(node) is dict:
        return (((*path, key), item) for key, item in node.items())
    if type(node) is list:
        return (((*path, index), item) for index, item in enumerate(node))
    if type(node) is Opaque:
        return iter([((*path, "args"), node.args), ((*path, "state"), node.state)])
    return ((path if key is _SAME else (*path, key), item) for key, item, _ in _parts(node))


def seen_parts(path: Path, node: Tree) -> list[tuple[Path, Tree]]:
    """The direct parts of a node that a user would see, with their paths; none of a leaf or an atom."""
    if type(node) is Typed:
        return [(path if key is _SAME else (*path, key), item) for key, item, seen in _parts(node) if seen]
    return list(below(path, node)) if type(node) in (dict, list, Opaque) else []


_WITH_ITEMS = frozenset({"state_dict", "defaultdict"})
_SAME: Any = object()
_TRANSPARENT = {"items", "data", "fields", "tensor"}
"""Parts of a payload that are the value itself to a reader: they add no level to the path."""


def _parts(tree: Typed) -> Iterator[tuple[Any, Tree, bool]]:
    """The direct parts of a Typed value as (key, inert tree, whether a user sees it as a part of the value).

    The key is ``_SAME`` where the part is the value. Not seen are keys that are containers, and what stands beside the
    items of a state_dict: the versions of its modules.
    """
    payload = tree.payload
    if tree.kind in PAIR_KINDS and type(payload) is list:
        yield from _pairs(payload)
    elif tree.kind in _WITH_ITEMS and type(payload) is dict:
        for name, part in payload.items():
            if name != "items":
                yield name, part, False
            elif type(part) is dict:
                yield from ((key, item, True) for key, item in part.items())
            else:
                yield from _pairs(part)
    elif type(payload) is dict:
        transparent = () if tree.kind == "namespace" else _TRANSPARENT
        yield from ((_SAME if name in transparent else name, item, True) for name, item in payload.items())
    elif type(payload) is list:
        yield from ((index, item, True) for index, item in enumerate(payload))
    else:
        yield _SAME, payload, True


def _pairs(pairs: Tree) -> Iterator[tuple[Any, Tree, bool]]:
    """Pairs as a file gives them; what is no pair is walked as it is, and lifting says what is wrong with it."""
    if type(pairs) is not list:
        yield _SAME, pairs, True
        return
    for index, pair in enumerate(pairs):
        if type(pair) is not list or len(pair) != 2:
            yield index, pair, True
        elif type(pair[0]) in ATOMS:
            yield pair[0], pair[1], True
        else:
            label = str(pair[0].payload if type(pair[0]) is Typed else pair[0])
            yield label, pair[0], False
            yield label, pair[1], True


def needed_classes(tree: Tree) -> list[str]:
    """Names of the classes in a tree that are not rebuilt from a file, sorted."""
    found: set[str] = set()
    stack: list[Tree] = [tree]
    while stack:
        node = stack.pop()
        name = needed_class(node)
        if name is not None:
            found.add(name)
        stack.extend(item for _, item in seen_parts((), node))
    return sorted(found)


def child(tree: Tree, key: Any) -> Tree | None:
    """The part of a container that a user would get by ``tree[key]``, or None where it has none."""
    if type(tree) is dict:
        return tree.get(key)
    if type(tree) is list:
        return tree[key] if type(key) is int and 0 <= key < len(tree) else None
    if type(tree) is Typed:
        items = tree.payload.get("items") if tree.kind in _WITH_ITEMS and type(tree.payload) is dict else None
        if type(items) is dict:
            return items.get(key)  # not a search: a model asks for each of its many tensors
        for name, item, seen in _parts(tree):
            if name is _SAME:
                found = child(item, key)
                if found is not None:
                    return found
            elif seen and name == key and type(name) is type(key):
                return item
    return None


def keys(tree: Tree) -> list[Any]:
    """The keys that a user would see in a mapping-like container; [] for everything else."""
    if type(tree) is dict:
        return list(tree)
    if type(tree) is Typed:
        found: list[Any] = []
        for name, item, seen in _parts(tree):
            if name is _SAME:
                found.extend(keys(item))
            elif seen:
                found.append(name)
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
