"""A long list of dotted paths as a short tree: levels are indented, repeated blocks are shown once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from holdfast.spec import Path
from holdfast.state.flatten import seen_parts
from holdfast.state.foreign import scalar_text
from holdfast.state.paths import dotted
from holdfast.state.values import ATOMS, Opaque, Tree, Typed

_LONG = 60
_LIST = 8


class Leaf(msgspec.Struct, frozen=True):
    """One named thing of a list.

    Attributes:
        path: dotted.
        text: what it is, ``(64, 3) float32``. Blocks are repeated when names and texts are.
        nbytes: its size, which the lines above it add up.
    """

    path: str
    text: str
    nbytes: int = 0


class Line(msgspec.Struct, frozen=True):
    """One line of the tree.

    Attributes:
        depth: levels of indentation.
        name: one level or several (``encoder.layers``); ``{0..31}`` for repeated blocks.
        text: of a leaf; empty for a level.
        count: how many blocks the line stands for.
        nbytes: of everything below, in all the blocks.
    """

    depth: int
    name: str
    text: str
    count: int
    nbytes: int


class _Node:
    """One level: either leaves or further levels below it."""

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.leaves: list[Leaf] = []
        self.nbytes = 0
        self.shape: object = None


def tree_lines(leaves: Sequence[Leaf]) -> list[Line]:
    """A list as a tree.

    Siblings with numbers for names and the same below become one line, ``{0..31}``, with their count. A level with a
    single level below it shares its line.

    Args:
        leaves: in the order in which they are shown.

    Example:
        >>> for line in tree_lines([Leaf(f"layers.{i}.weight", "(4,) float32", 16) for i in range(32)]):
        ...     print(line.depth, line.name, line.text, line.count, line.nbytes)
        0 layers.{0..31}.weight (4,) float32 32 512
    """
    root = _Node()
    for leaf in leaves:
        node = root
        node.nbytes += leaf.nbytes
        for part in leaf.path.split("."):
            node = node.below.setdefault(part, _Node())
            node.nbytes += leaf.nbytes
        node.leaves.append(leaf)
    _sign(root, {})
    return list(_lines(root, 0, 1))


def _sign(root: _Node, known: dict[object, int]) -> None:
    """Gives equal subtrees equal numbers, from the leaves up; no recursion, since names can have any depth."""
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(node.below.values())
    for node in reversed(order):
        content = (
            tuple((name, below.shape) for name, below in node.below.items()),
            tuple((leaf.text, leaf.nbytes) for leaf in node.leaves),
        )
        node.shape = known.setdefault(content, len(known))


def _lines(root: _Node, depth: int, count: int) -> Iterator[Line]:
    stack = [(depth, count, names, node) for names, node in reversed(list(_groups(root)))]
    while stack:
        depth, count, names, node = stack.pop()
        label, times = _label(names), count * len(names)
        while len(node.below) and not node.leaves:
            groups = list(_groups(node))
            if len(groups) > 1:
                break
            label, times, node = f"{label}.{_label(groups[0][0])}", times * len(groups[0][0]), groups[0][1]
        if node.below:
            yield Line(depth, label, "", times, node.nbytes * times)
        for leaf in node.leaves:
            yield Line(depth, label, leaf.text, times, leaf.nbytes * times)
        stack += [(depth + 1, times, below, first) for below, first in reversed(list(_groups(node)))]


def _groups(node: _Node) -> Iterator[tuple[list[str], _Node]]:
    """Siblings in order; neighbours with numbers for names and the same below together."""
    names: list[str] = []
    first: _Node | None = None
    for name, below in node.below.items():
        if first is not None and name.isdecimal() and names[-1].isdecimal() and below.shape == first.shape:
            names.append(name)
            continue
        if first is not None:
            yield names, first
        names, first = [name], below
    if first is not None:
        yield names, first


def _label(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = [int(name) for name in names]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{{{names[0]}..{names[-1]}}}"
    return f"{{{','.join(names)}}}" if len(names) <= _LIST else f"{{{','.join(names[:_LIST])},..{names[-1]}}}"


# ---- plain values ----------------------------------------------------------------------------------------------------


def value_lines(tree: Tree) -> Iterator[tuple[str, str]]:
    """The plain values of an inert tree: dotted path and text. A list of plain values is one value."""
    return ((dotted(path), text) for path, _, text in value_nodes(tree))


def value_nodes(tree: Tree) -> Iterator[tuple[Path, Tree, str]]:
    """As :func:`value_lines`, with the value itself between its path and its text."""
    stack: list[tuple[Path, Tree]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        text = _value_text(node)
        if text is not None:
            yield path, node, text
            continue
        stack.extend(reversed(seen_parts(path, node)))


def _value_text(node: Tree) -> str | None:
    """The text of an atom, of a flat list of atoms, or of what wraps one; None for what is shown part by part."""
    cls = type(node)
    if cls in ATOMS:
        return _shortened(repr(node), _LONG)
    if cls is Typed and node.kind == "numpy.scalar":
        return scalar_text(node.payload)
    if cls is Typed and type(node.payload) is not dict:
        inside = _value_text(node.payload)
        return inside if inside is None or node.kind == "tuple" else f"{node.kind}({inside})"
    if cls is Opaque and not node.args and not node.state:
        return f"object of class {node.type_name}"
    if cls is list and all(type(item) in ATOMS for item in node):
        if len(node) <= _LIST:
            return f"[{', '.join(_shortened(repr(item), _LONG) for item in node)}]"
        return f"[{', '.join(_shortened(repr(item), _LONG) for item in node[:3])}, ... {len(node):,} items]"
    if (cls is dict or cls is list) and not node:
        return repr(node)
    return None


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}... {len(text):,} characters"
