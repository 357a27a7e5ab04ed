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
_DIGITS = 20
"""Digits that a number of a block has fewer of; Python refuses to read thousands."""
_MANY = 12
"""Groups of numbered siblings on one level; past it, those that differ in sizes alone are shown as one."""


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
        """Equal for levels with the same below, texts included."""
        self.form: object = None
        """Equal for levels with the same names below."""


class _Group(msgspec.Struct):
    """Neighbours that are shown as one: their names, what each is like, and how often its bytes count."""

    names: list[str]
    node: _Node
    copies: int


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
    return list(_lines(root, 0))


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
        form = tuple((name, below.form) for name, below in node.below.items()), len(node.leaves)
        node.form = known.setdefault(form, len(known))


def _lines(root: _Node, depth: int) -> Iterator[Line]:
    stack = [(depth, 1, 1, group) for group in reversed(_groups(root))]
    while stack:
        depth, count, copies, group = stack.pop()
        label, node = _label(group.names), group.node
        count, copies = count * len(group.names), copies * group.copies
        while len(node.below) and not node.leaves:
            groups = _groups(node)
            if len(groups) > 1:
                break
            (group,) = groups
            label, node = f"{label}.{_label(group.names)}", group.node
            count, copies = count * len(group.names), copies * group.copies
        if node.below:
            yield Line(depth, label, "", count, node.nbytes * copies)
        for leaf in node.leaves:
            yield Line(depth, label, leaf.text, count, leaf.nbytes * copies)
        stack += [(depth + 1, count, copies, below) for below in reversed(_groups(node))]


def _groups(node: _Node) -> list[_Group]:
    """Siblings in order; neighbours with numbers for names and the same below together."""
    groups: list[_Group] = []
    for name, below in node.below.items():
        last = groups[-1] if groups else None
        if last and _is_number(name) and _is_number(last.names[-1]) and below.shape == last.node.shape:
            last.names.append(name)
            last.copies += 1
        else:
            groups.append(_Group([name], below, 1))
    return groups if len(groups) <= _MANY else _grouped_by_form(groups)


def _grouped_by_form(groups: list[_Group]) -> list[_Group]:
    """Neighbouring groups of numbers that have the same names below, whatever their sizes, as one."""
    rows: list[list[_Group]] = []
    for group in groups:
        numbered = _is_number(group.names[0]) and bool(rows) and _is_number(rows[-1][0].names[0])
        if numbered and group.node.form == rows[-1][0].node.form:
            rows[-1].append(group)
        else:
            rows.append([group])
    return [
        row[0] if len(row) == 1 else _Group([name for group in row for name in group.names], _merged(row), 1)
        for row in rows
    ]


def _merged(groups: list[_Group]) -> _Node:
    """One level in place of several: sizes are added up, texts that differ are counted."""
    root = _Node()
    stack = [(root, [(group.node, group.copies) for group in groups])]
    while stack:
        into, parts = stack.pop()
        into.shape = into.form = into  # like no other
        into.nbytes = sum(part.nbytes * copies for part, copies in parts)
        for at, leaf in enumerate(parts[0][0].leaves):
            texts = list(dict.fromkeys(part.leaves[at].text for part, _ in parts))
            text = leaf.text if len(texts) == 1 else f"{texts[0]}, ... {len(texts)} kinds"
            nbytes = sum(part.leaves[at].nbytes * copies for part, copies in parts)
            into.leaves.append(Leaf(leaf.path, text, nbytes))
        for name in parts[0][0].below:
            below = into.below[name] = _Node()
            stack.append((below, [(part.below[name], copies) for part, copies in parts]))
    return root


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) < _DIGITS


def _label(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    ordered = sorted(names, key=int)  # files may have them as text: 0, 1, 10, 11, ..., 2
    numbers = [int(name) for name in ordered]
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{{{ordered[0]}..{ordered[-1]}}}"
    return f"{{{','.join(ordered)}}}" if len(names) <= _LIST else f"{{{','.join(ordered[:_LIST])},..{ordered[-1]}}}"


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
