"""An inert tree under the names that ``torch.distributed.checkpoint`` gives: its planner's rule, without live values.

Mappings are walked into, their keys as text; lists where they hold tensors or mappings; all else is one item. Source:
``torch/distributed/checkpoint/_traverse.py`` of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.formats.base import StoredTensor
from holdfast.spec import Path
from holdfast.state.flatten import seen_parts
from holdfast.state.values import DRESSED, Tree, Typed

_MAPPINGS = frozenset({"dict", "ordered_dict", "state_dict", "defaultdict", "counter"})


def flat_items(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Tree]]:
    """Every item with its path; a tensor is a StoredTensor."""
    tree = undressed(tree)
    if _is_mapping(tree):
        for key, item in _parts(tree):
            yield from flat_items(item, (*path, str(key)))
    elif type(tree) is list and _is_walked(tree):
        for index, item in enumerate(tree):
            yield from flat_items(item, (*path, index))
    else:
        yield path, tree


def undressed(tree: Tree) -> Tree:
    """A tensor without what a program put around it: DCP keeps values alone."""
    while type(tree) is Typed and tree.kind in DRESSED and type(tree.payload) is dict:
        tree = tree.payload.get("data")
    return tree


def _parts(tree: Tree) -> Iterator[tuple[object, Tree]]:
    return ((path[-1], item) for path, item in seen_parts((), tree))


def _is_mapping(tree: Tree) -> bool:
    return type(tree) is dict or (type(tree) is Typed and tree.kind in _MAPPINGS)


def _is_walked(items: list[Tree]) -> bool:
    return any(
        _is_mapping(item) or type(undressed(item)) is StoredTensor or (type(item) is list and _is_walked(item))
        for item in items
    )
