"""Finding an object's part in a file of any tutorial, by name and by look; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from holdfast.errors import AmbiguousPart, ArgumentError, MissingPart
from holdfast.formats.base import StoredTensor
from holdfast.spec import Path
from holdfast.state.flatten import child, keys
from holdfast.state.paths import dotted, printable
from holdfast.state.quantization import is_packed
from holdfast.state.values import TENSOR_KINDS, Tree, Typed

_MODULE_NAMES = ("state_dict", "model_state_dict", "model", "net", "network")
_OPTIMIZER_NAMES = ("optimizer", "optimizer_state_dict", "optim", "opt")
_SCHEDULER_NAMES = ("scheduler", "scheduler_state_dict", "lr_scheduler", "lr_scheduler_state_dict")
_USUAL = {"module": _MODULE_NAMES, "optimizer": _OPTIMIZER_NAMES, "scheduler": _SCHEDULER_NAMES}


class Part(msgspec.Struct):
    """Where one object's state is in a file.

    Attributes:
        path: in the tree; () is the whole file.
        tree: the state.
        by_name: whether it stands under the object's own name, or was told by ``at=``.
    """

    path: Path
    tree: Tree
    by_name: bool


def looks_like(kind: str, tree: Tree) -> bool:
    """Whether a tree looks like the state of an object of ``kind``: ``module``, ``optimizer`` or another."""
    names = keys(tree)
    if not names:
        return False
    if kind == "optimizer":
        return "param_groups" in names and "state" in names
    if kind == "module":
        return all(type(name) is str for name in names) and any(_is_tensor(child(tree, name)) for name in names)
    return True


def _is_empty(tree: Tree) -> bool:
    """Whether a tree is the state of a module without tensors."""
    return not keys(tree) and (isinstance(tree, dict) or (isinstance(tree, Typed) and tree.kind == "state_dict"))


def _is_tensor(tree: Tree) -> bool:
    """Whether a value is what a module's state is made of; packed parameters of quantized layers count."""
    if isinstance(tree, Typed):
        return tree.kind == "parameter" or tree.kind in TENSOR_KINDS
    return isinstance(tree, StoredTensor) or is_packed(tree)


def find_part(tree: Tree, name: str, kind: str, *, kinds: Mapping[str, str], at: str | None, file: str) -> Part:
    """The part of a file that belongs to one object.

    In this order: where ``at`` says; under the object's own name; under ``NAME_state_dict``; and, when it is the only
    object of its kind, under the names that tutorials use, at the root, or in the one part that looks right.

    Args:
        tree: the file's tree.
        name: what the caller calls the object.
        kind: ``module``, ``optimizer``, ``scheduler``, ...
        kinds: the kinds of all objects asked for, by name.
        at: a dotted path, or None.
        file: named in errors.

    Raises:
        MissingPart: nothing fits; lists what the file has.
        AmbiguousPart: several parts fit; lists them.
    """
    if at is not None:
        return Part(*_follow(tree, at, file), by_name=True)
    for candidate in (name, f"{name}_state_dict", f"{name}_state"):
        found = child(tree, candidate)
        if found is not None and (kind not in ("module", "optimizer") or looks_like(kind, found) or _is_empty(found)):
            return Part((candidate,), found, by_name=True)
    alone = sum(other == kind for other in kinds.values()) == 1
    if alone and kind in _USUAL:
        candidates = _candidates(tree, kind, taken=set(kinds) - {name})
        if len(candidates) == 1:
            return Part(*candidates[0], by_name=False)
        if candidates:
            shown = ", ".join(f"at={{{name!r}: {dotted(path)!r}}}" for path, _ in candidates)
            raise AmbiguousPart(
                f"`{file}`: several parts could be `{name}`: say which with {shown}", file=file, path=name
            )
    raise MissingPart(
        f"`{file}`: has no part for `{name}`; it has {_listed(tree)}. Say where it is with at={{{name!r}: '...'}}",
        file=file,
        path=name,
    )


def _candidates(tree: Tree, kind: str, taken: set[str]) -> list[tuple[Path, Tree]]:
    parts = [(key, part) for key in keys(tree) if (part := child(tree, key)) is not None and str(key) not in taken]
    usual: list[tuple[Path, Tree]] = [
        ((key,), part) for key, part in parts if key in _USUAL[kind] and looks_like(kind, part)
    ]
    if usual:
        return usual
    if kind == "scheduler":  # nothing about its content tells a scheduler's state from another dict
        return []
    if looks_like(kind, tree) or (kind == "module" and _is_empty(tree)):
        return [((), tree)]
    return [((key,), part) for key, part in parts if looks_like(kind, part)]


def _follow(tree: Tree, at: str, file: str) -> tuple[Path, Tree]:
    if not isinstance(at, str):
        raise ArgumentError(f"at= maps names to dotted paths, not to {type(at).__name__}")
    path: tuple[Any, ...] = ()
    node = tree
    for segment in at.split(".") if at else ():
        found = child(node, segment)
        if found is None and segment.lstrip("-").isdigit():
            segment_number = int(segment)
            found, key = child(node, segment_number), segment_number
        else:
            key = segment  # type: ignore[assignment]
        if found is None:
            raise MissingPart(f"`{file}`: has no `{at}`; `{dotted(path)}` has {_listed(node)}", file=file, path=at)
        node, path = found, (*path, key)
    return path, node


def _listed(tree: Tree) -> str:
    names = keys(tree)
    if not names:
        return "no named parts"
    shown = ", ".join(f"`{printable(str(name))}`" for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
