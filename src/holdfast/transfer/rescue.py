"""Weights out of whole pickled modules, and models of torch.nn's own layers without a factory."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from torch import nn

from holdfast.errors import ArgumentError, RefusedFile, UntrustedType
from holdfast.formats.base import Document, StoredTensor
from holdfast.formats.writing import format_for, shown_name, write_document
from holdfast.objects.layers import check_attributes, construct_layers, give_state
from holdfast.serialization.devices import Placement
from holdfast.serialization.reading import read_tree, verify_segments
from holdfast.spec import Path, TensorSpec
from holdfast.state.flatten import below, child, keys, map_leaves
from holdfast.state.layers import layer_from_json, layer_of
from holdfast.state.modules import (
    ROOT,
    Module,
    find_modules,
    lost_of,
    modules_at,
    state_of,
    submodules,
    tensor_of,
    with_states,
)
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Opaque, Tree, Typed, needed_class
from holdfast.transfer.opened import opened_document
from holdfast.transfer.save import Saved

_SHOWN = 8


def rescue_state(f: Any, placement: Placement, at: str | None) -> dict[str, Any]:
    """The state_dict of the whole module that a file holds, or of several by their paths; see ``holdfast.rescue``."""
    with opened_document(f) as (document, file):
        state: dict[str, Any] = read_tree(_states(document.tree, at, file), file, placement=placement)
    return state


def write_rescued(f: Any, dst: Any, at: str | None) -> Saved:
    """Writes what ``rescue`` gives as a file, streaming; see the command ``holdfast rescue``."""
    begin, name = time.perf_counter(), format_for(dst, None)
    with opened_document(f) as (document, file):
        states = _states(document.tree, at, file)
        stored: list[StoredTensor] = []
        map_leaves(states, stored.append)
        unverified = verify_segments(leaf.segment for leaf in stored)
        size, notes = write_document(Document(states), dst, name)
    if unverified:
        notes.append(f"{unverified} tensors of the source carry no digest and could not be verified")
    return Saved(shown_name(dst), name, len(stored), size, time.perf_counter() - begin, notes)


def _states(tree: Tree, at: str | None, file: str) -> dict[str, Tree]:
    modules = modules_at(tree, at, file)
    for name, module in modules.items():
        check_whole(module, name, file)
    states = {name: map_leaves(state_of(module), _detached) for name, module in modules.items()}
    return next(iter(states.values())) if len(states) == 1 else states


def _detached(leaf: StoredTensor) -> StoredTensor:
    return msgspec.structs.replace(leaf, requires_grad=False) if leaf.requires_grad else leaf


def check_whole(module: Module, name: str, file: str) -> None:
    """Refuses a module whose state_dict would lack something.

    Raises:
        RefusedFile: names what can't be read without running its class.
    """
    lost = lost_of(module)
    if lost:
        shown = "; ".join(f"`{printable(key[:100])}`: {printable(what[:100])}" for key, what in lost[:_SHOWN])
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise RefusedFile(
            f"`{file}`: the module at `{printable(name)}` holds what no state_dict can be made of without running its "
            f"classes: {shown}{more}. Rescue the parts you need with at=, or, where you trust the file, load it with "
            "torch.load(weights_only=False) in the version that wrote it",
            file=file,
            path=name,
        )


# -- restoring from them


def states_for_modules(document: Document, kinds: Iterable[str], file: str) -> tuple[Document, list[str]]:
    """The document with state_dicts in place of whole modules, and notes that say so.

    Args:
        document: what a file holds.
        kinds: of the objects that are restored.
        file: named in errors.

    Raises:
        RefusedFile: no module of the file can be read whole, and one is asked for.
    """
    modules = {} if document.objects else find_modules(document.tree)  # a file of our own has states
    if not modules:
        return document, []
    tree, paths = with_states(document.tree)
    if not paths and "module" in kinds:
        name, module = next((dotted(path), module) for path, module in modules.items())
        check_whole(module, name, file)
    names = {dotted(path): module.class_name for path, module in modules.items()}
    notes = [
        f"the file holds a whole pickled {printable(names[path][:100])} at `{printable(path)}`: its weights were "
        "taken, and nothing of its class was needed or run"
        for path in paths
    ]
    return msgspec.structs.replace(document, tree=tree), notes


# -- refusing to load what only a pickle would rebuild


def untrusted(tree: Tree, file: str, trusted: Collection[str] = ()) -> UntrustedType | None:
    """The error for a tree with objects in it that are not rebuilt: names their classes and the ways on."""
    names: list[str] = []
    stack: list[tuple[Path, Tree]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        name = needed_class(node)
        if name is not None and name not in names and name not in trusted:
            names.append(name)
        if type(node) in (dict, list, Typed, Opaque):
            stack.extend(reversed(list(below(path, node))))
    if not names:
        return None
    names.sort(key=lambda name: name.startswith(("torch.", "builtins.", "collections.")))  # the user's own first
    shown = ", ".join(printable(name[:100]) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    whole = find_modules(tree)
    rescue = "holdfast.rescue(f) for the weights of its modules, " if whole else ""
    return UntrustedType(
        f"`{printable(file)}`: holds objects of classes that are not rebuilt from a file: {shown}{more}. Ways on: "
        f"{rescue}holdfast.restore(f, model=net) or holdfast.open(f) for the parts you need, trusted={{...}} with the "
        "names of those that are your own code, opaque=True for inert placeholders",
        file=file,
    )


# -- models of torch.nn's own layers


def build_layers(document: Document, file: str, placement: Placement) -> nn.Module:
    """The model of a file that consists of torch.nn's own layers.

    Raises:
        ArgumentError: it does not, or the file does not say.
        FormatError, MismatchError: what the file says of its layers is not true.
    """
    kept = _only_module(document, file)
    if kept is None:
        layer, state = _recorded(document, file)
    else:
        check_whole(kept, ROOT, file)
        layer, state = layer_of(kept), state_of(kept)
        if layer is None:
            raise ArgumentError(_needs_factory(file, f"the file holds {_strange(kept)}"), file=file)
    shapes = {name: _shape(leaf, name, file) for name, leaf in state.items()}
    made = construct_layers(layer, shapes, file)
    if kept is not None:
        check_attributes(made, kept, file)
    tensors = read_tree(map_leaves(state, _detached), file, placement=placement)
    give_state(made, tensors, _tied(state), frozenset() if kept is None else _frozen(kept))
    return made


def _tied(state: dict[str, Tree]) -> dict[str, str]:
    """Name -> the earlier name of the same tensor."""
    first: dict[tuple[int, int, TensorSpec], str] = {}
    tied = {}
    for name, tree in state.items():
        leaf = tensor_of(tree)
        if isinstance(leaf, StoredTensor) and leaf.spec.numel:
            known = first.setdefault((id(leaf.segment), leaf.offset, leaf.spec), name)
            if known != name:
                tied[name] = known
    return tied


def _only_module(document: Document, file: str) -> Module | None:
    modules = find_modules(document.tree)
    if len(modules) > 1:
        shown = ", ".join(f"`{printable(dotted(path))}`" for path in list(modules)[:_SHOWN])
        raise ArgumentError(
            f"`{file}`: holds {len(modules)} modules ({shown}); construct them and use holdfast.restore", file=file
        )
    return next(iter(modules.values()), None)


def _recorded(document: Document, file: str) -> tuple[Any, dict[str, Tree]]:
    """The structure that ``save`` recorded of its only module, and the module's state."""
    found = {path: record["structure"] for path, record in document.objects.items() if "structure" in record}
    if len(found) != 1:
        named = [str(one.get("class")) for one in document.objects.values() if one.get("kind") == "module"]
        says = f"{len(named)} modules are recorded in it"
        if len(named) == 1:
            says = f"the file says it is a {printable(named[0])}"
        raise ArgumentError(_needs_factory(file, says), file=file)
    (path,) = found
    layer = layer_from_json(found[path])
    tree = document.tree
    for key in path.split(".") if path else ():
        tree = child(tree, key)
    if layer is None:
        raise ArgumentError(_needs_factory(file, "its record names layers that are not known here"), file=file)
    return layer, {str(key): child(tree, key) for key in keys(tree)}


def _needs_factory(file: str, why: str) -> str:
    return (
        f"`{file}`: build needs to be told which code it may use: factory=Net (the class or a function), or its name "
        f"in trusted=. Without one it makes models of torch.nn's own layers alone, and {why}"
    )


def _strange(module: Module) -> str:
    """The first part that no constructor of the table makes."""
    for prefix, part in submodules(module):
        inside = (one for one in part.children.values() if isinstance(one, Module))
        if layer_of(part) is None and all(layer_of(one) is not None for one in inside):
            hooks = f" with hooks ({', '.join(part.hooks)})" if part.hooks else ""
            return f"`{printable(prefix[:-1] or ROOT)}`: {printable(part.class_name[:100])}{hooks}"
    return printable(module.class_name[:100])


def _shape(leaf: Tree, name: str, file: str) -> tuple[int, ...]:
    tensor = tensor_of(leaf)
    if not isinstance(tensor, StoredTensor):
        raise ArgumentError(_needs_factory(file, f"`{printable(name)}` is no plain tensor"), file=file)
    return tensor.spec.shape


def _frozen(module: Module) -> frozenset[str]:
    """Parameters that were saved without a wish for a gradient."""
    return frozenset(
        f"{prefix}{name}"
        for prefix, part in submodules(module)
        for name, tree in part.parameters.items()
        if type(tree) is Typed and tree.kind == "parameter" and not tree.payload["requires_grad"]
    )
