"""Parts of a file's tree: a model's state_dict, its items, and the tree with other items in it. Nothing is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.errors import AmbiguousPart, MismatchError, MissingPart
from holdfast.formats.base import StoredTensor
from holdfast.spec import Path
from holdfast.state.flatten import child, keys, leaves, seen_parts
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Opaque, Tree, Typed
from holdfast.transfer.locate import find_part, looks_like

_SHOWN = 10
Item = tuple[str, Tree]


def find_state(tree: Tree, at: str | None, file: str) -> tuple[Path, Tree]:
    """The model's state_dict in a tree: where ``at`` says, else the one that ``restore`` would take for a model.

    Args:
        tree: a file's.
        at: a dotted path; None to find it.
        file: named in errors.

    Raises:
        MissingPart: there is none, or nothing at ``at``.
        AmbiguousPart: there are several.
        MismatchError: what is there is no dict with names for keys, or has no tensors.
    """
    if at is None:
        path, state = _only_state(tree, file)
    else:
        path, state = find_at(tree, at, file)
    if items_of(state) is None:
        raise MismatchError(
            f"`{printable(file)}`: `{printable(dotted(path))}` is no state_dict: a dict of tensors by name is wanted",
            file=file,
            path=dotted(path),
        )
    if not tensors_of(state):
        raise MismatchError(
            f"`{printable(file)}`: `{printable(dotted(path))}` has no tensors; say where the weights are with at='...'",
            file=file,
            path=dotted(path),
        )
    return path, state


def _only_state(tree: Tree, file: str) -> tuple[Path, Tree]:
    try:
        part = find_part(tree, "model", "module", kinds={"model": "module"}, at=None, file=file)
    except AmbiguousPart:
        names = [str(key) for key in keys(tree) if looks_like("module", child(tree, key))]
        shown = ", ".join(f"at={name!r}" for name in names[:_SHOWN])
        raise AmbiguousPart(
            f"`{printable(file)}`: several parts could be the model: say which with {shown}", file=file
        ) from None
    except MissingPart:
        whole = "; `holdfast rescue` takes the weights out of a pickled module" if type(tree) is Opaque else ""
        raise MissingPart(
            f"`{printable(file)}`: no state_dict of a model is found; it has {_listed(tree)}. Say where one is with "
            f"at='...'{whole}",
            file=file,
        ) from None
    return part.path, part.tree


def find_at(tree: Tree, at: str, file: str, *, beginnings: bool = False) -> tuple[Path, Tree]:
    """The part of a tree under a dotted path, whose keys may have dots themselves: ``model.fc.weight``.

    Args:
        tree: a file's.
        at: the path; "" is the whole tree.
        file: named in errors.
        beginnings: where no key is called so but several begin so (``model.encoder``), take those, without the
            beginning, as a new state_dict.

    Raises:
        MissingPart: there is nothing of this name.
        AmbiguousPart: there are several, as ``{"a.b": x, "a": {"b": y}}`` has two of ``a.b``.
    """
    if not at:
        return (), tree
    places, near = list(_descend(tree, at)), tree
    found = [(path, node) for path, node, rest in places if not rest]
    if len(found) > 1:
        raise AmbiguousPart(f"`{printable(file)}`: has {len(found)} parts called `{printable(at)}`", file=file, path=at)
    if found:
        return found[0]
    for path, node, rest in places:
        near = node if len(rest) < len(at) else near
        below = _beginning(node, rest) if beginnings else None
        if below is not None:
            return (*path, rest), below
    raise MissingPart(
        f"`{printable(file)}`: has no part `{printable(at)}`; there are {_listed(near)}", file=file, path=at
    )


def _descend(tree: Tree, at: str) -> Iterator[tuple[Path, Tree, str]]:
    """Every node on the way to ``at``, with what of ``at`` is still to go."""
    stack: list[tuple[Path, Tree, str]] = [((), tree, at)]
    while stack:
        path, node, rest = stack.pop()
        yield path, node, rest
        for sub, item in seen_parts(path, node) if rest else ():
            name = str(sub[-1]) if len(sub) > len(path) else ""
            if sub == path:
                stack.append((path, item, rest))
            elif name == rest:
                stack.append((sub, item, ""))
            elif rest.startswith(f"{name}."):
                stack.append((sub, item, rest[len(name) + 1 :]))


def _beginning(node: Tree, name: str) -> Tree | None:
    """The items of a state_dict whose keys begin with ``name``, as a state_dict of their own."""
    items = items_of(node)
    prefix = f"{name}."
    if items is None or not any(key.startswith(prefix) for key, _ in items):
        return None
    taken = [(key.removeprefix(prefix), item) for key, item in items if key.startswith(prefix)]
    versions = [
        ("" if module == name else module.removeprefix(prefix), version)
        for module, version in versions_of(node)
        if module == name or module.startswith(prefix)
    ]
    return with_items(node, taken, versions)


def items_of(tree: Tree) -> list[Item] | None:
    """The items of a dict whose keys are all strings, an OrderedDict or a state_dict; None for anything else."""
    pairs: list[tuple[object, Tree]] | None = None
    if type(tree) is dict:
        pairs = list(tree.items())
    elif type(tree) is Typed and tree.kind == "ordered_dict":
        pairs = [(key, item) for key, item in tree.payload]
    elif type(tree) is Typed and tree.kind == "state_dict" and type(tree.payload["items"]) is dict:
        pairs = list(tree.payload["items"].items())
    if pairs is None or not all(type(key) is str for key, _ in pairs):
        return None
    return [(str(key), item) for key, item in pairs]


def versions_of(tree: Tree) -> list[Item]:
    """What a state_dict records of its modules' versions, by the module's name."""
    if type(tree) is not Typed or tree.kind != "state_dict":
        return []
    return [(key, version) for key, version in tree.payload["metadata"] if type(key) is str]


def with_items(tree: Tree, items: Sequence[Item], versions: Sequence[Item]) -> Tree:
    """A mapping of the same type with other items."""
    if type(tree) is dict:
        return dict(items)
    if tree.kind == "ordered_dict":
        return Typed("ordered_dict", [[key, item] for key, item in items])
    return Typed("state_dict", {"items": dict(items), "metadata": [[key, version] for key, version in versions]})


def with_part(tree: Tree, path: Path, old: Tree, new: Tree) -> Tree:
    """The tree with ``new`` where ``old`` stands, which is at ``path``."""
    return _replaced(tree, old, new, 4 * len(path) + 4)


def _replaced(tree: Tree, old: Tree, new: Tree, levels: int) -> Tree:
    """Looks no deeper than ``levels``: a key of a path takes three at most, and trees nest as deep as they like."""
    cls = type(tree)
    if tree is old:
        return new
    if levels and cls is dict:
        return {key: _replaced(item, old, new, levels - 1) for key, item in tree.items()}
    if levels and cls is list:
        return [_replaced(item, old, new, levels - 1) for item in tree]
    return Typed(tree.kind, _replaced(tree.payload, old, new, levels - 1)) if levels and cls is Typed else tree


def beside(tree: Tree, path: Path, part: Tree) -> list[tuple[Path, Tree]]:
    """Everything that is not in the part at ``path``, as the largest pieces that have a name."""
    at: Path = ()
    node, found = tree, []
    while node is not part:
        way = None
        for sub, item in seen_parts(at, node):
            if sub == path[: len(sub)]:
                way = sub, item
            else:
                found.append((sub, item))
        if way is None:
            break
        at, node = way
    return found


def stored_bytes(tree: Tree, *, besides: Tree = None) -> int:
    """Bytes that are stored for the tensors of a tree, what they share counted once, without those of ``besides``."""
    segments = {id(leaf.segment): leaf.segment.length for leaf in tensors_of(tree)}
    shared = {id(leaf.segment) for leaf in tensors_of(besides)}
    return sum(length for key, length in segments.items() if key not in shared)


def tensors_of(tree: Tree) -> list[StoredTensor]:
    """All tensors of a tree."""
    return [leaf for _, leaf in leaves(tree) if isinstance(leaf, StoredTensor)]


def _listed(tree: Tree) -> str:
    names = [printable(str(key)) for key in keys(tree)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more if names else "no named parts"
