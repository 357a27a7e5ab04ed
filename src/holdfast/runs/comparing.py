"""Two opened files against each other, without torch: what is the same, to the last byte, and what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from holdfast.formats.base import Container, Document, StoredTensor
from holdfast.formats.index import users_metadata
from holdfast.formats.sameness import content, same_content
from holdfast.formats.writing import shown_name
from holdfast.runs.checkpoint import Checkpoint
from holdfast.runs.opening import open_any
from holdfast.state.diff import Diff, Side, alike, describe, may_be_renamed, pair
from holdfast.state.flatten import leaves
from holdfast.state.modules import with_states
from holdfast.state.paths import dotted
from holdfast.state.tree_view import value_nodes
from holdfast.state.values import Tree
from holdfast.storage import meter
from holdfast.storage.workers import run_jobs

Item = TypeVar("Item")


class Contents(msgspec.Struct, frozen=True):
    """One side, opened.

    Attributes:
        side: what it holds, as values.
        stored: its tensors by dotted path.
    """

    side: Side
    stored: dict[str, StoredTensor]


def contents(document: Document, name: str, container: Container | None = None) -> Contents:
    """What a document holds, ready to be compared.

    Args:
        document: open.
        name: what the diff calls it.
        container: where it came from, None for a tree in memory.
    """
    tree = with_states(document.tree)[0]
    stored: dict[str, StoredTensor] = _by_name((dotted(path), leaf) for path, leaf in leaves(tree))
    values = _by_name((dotted(path), (repr(node), text)) for path, node, text in value_nodes(tree))
    specs = {one: leaf.spec for one, leaf in stored.items()}
    return Contents(Side(name, specs, values, _facts(document, container), _ties(stored)), stored)


def _by_name(items: Iterable[tuple[str, Item]]) -> dict[str, Item]:
    """Items by name; keys that print the same, such as 0 and "0", stay two: ``0`` and ``0'2``."""
    found: dict[str, Item] = {}
    times: Counter[str] = Counter()  # not a search: a file may have a hundred thousand keys that print the same
    for name, item in items:
        label = name
        while label in found:
            times[name] += 1
            label = f"{name}'{times[name] + 1}"
        found[label] = item
    return found


def _facts(document: Document, container: Container | None) -> dict[str, dict[str, tuple[str, str]]]:
    """What was recorded beside the tree."""
    sections: dict[str, Tree] = {"metadata": document.metadata}
    if container is not None:
        sections["metadata"] = users_metadata(container, document)
    if isinstance(container, Checkpoint):
        manifest = container.manifest
        sections["position"] = {"step": manifest.step, "epoch": manifest.epoch, "batch": manifest.batch}
        sections["metrics"], sections["environment"] = manifest.metrics, manifest.environment
    return {
        section: {dotted(path): (repr(node), text) for path, node, text in value_nodes(tree)}
        for section, tree in sections.items()
        if tree
    }


def _ties(stored: Mapping[str, StoredTensor]) -> dict[str, list[str]]:
    """The group of each tensor that shares its memory."""
    groups: dict[int, list[str]] = {}
    for name, leaf in stored.items():
        groups.setdefault(id(leaf.segment), []).append(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def compare(left: Contents, right: Contents, glob: str | None = None) -> Diff:
    """What differs between two sides; reads what no recorded digest answers.

    Args:
        left: A.
        right: B.
        glob: only what has a matching name, on either side.
    """
    pairing = pair(left.side, right.side, glob)
    equal: set[str] = set()

    def look(names: tuple[str, str]) -> None:
        if same_content(left.stored[names[0]], right.stored[names[1]]):
            equal.add(names[0])

    pairs = alike(left.side, right.side, pairing)
    meter.begin("comparing", sum(left.side.tensors[name].nbytes for name, _ in pairs))
    run_jobs(pairs, look)
    lost, new = may_be_renamed(left.side, right.side, pairing)
    moved = _moved({name: left.stored[name] for name in lost}, {name: right.stored[name] for name in new})
    return describe(left.side, right.side, pairing, equal, moved, glob)


def _moved(lost: Mapping[str, StoredTensor], new: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Name in A -> name in B of tensors with the same elements, each used once, in order."""
    places: dict[Any, list[str]] = {}
    for name, leaf in reversed(list(new.items())):
        places.setdefault((leaf.spec.dtype, leaf.spec.shape, content(leaf)), []).append(name)
    found = {}
    for name, leaf in lost.items():
        names = places.get((leaf.spec.dtype, leaf.spec.shape, content(leaf)))
        if names:
            found[name] = names.pop()
    return found


def to_measure(diff: Diff, left: Contents, right: Contents) -> list[tuple[str, StoredTensor, StoredTensor]]:
    """The tensors of a diff of which it can be said by how much they differ: name in A, and both."""
    return [(one.name, left.stored[one.name], right.stored[one.other]) for one in (*diff.changed, *diff.recast)]


@contextmanager
def opened(f: Any) -> Iterator[Contents]:
    """The contents of a path, reference, stream or folder; headers are read, tensors are not."""
    with open_any(f) as container:
        yield contents(container.document(), shown_name(f), container)
