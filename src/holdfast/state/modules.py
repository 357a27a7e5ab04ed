"""Whole modules out of a pickle: recognised by what ``torch.nn.Module`` keeps, without their classes.

A pickled module is an object whose state is the ``__dict__`` of an ``nn.Module``: ``_parameters``, ``_buffers`` and
``_modules``, in every torch since 0.1, and plain attributes beside them. Out of these comes the state_dict that the
living module would have given. Source: ``torch/nn/modules/module.py`` of torch 2.13, ``_save_to_state_dict``.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from holdfast.errors import MissingPart
from holdfast.spec import Path
from holdfast.state.flatten import below
from holdfast.state.paths import dotted, printable
from holdfast.state.values import ATOMS, TENSOR_KINDS, Opaque, Tree, Typed

_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
_BOOKKEEPING = frozenset({*_TABLES, "_non_persistent_buffers_set", "_backend", "training", "dump_patches"})
"""What torch keeps in every module, beside its hooks."""
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "apex.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
"""Classes that hold the user's module under one name and add nothing to its weights."""
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
_OLD_PARAMETERS = frozenset({"torch.nn.parameter.Parameter", "torch.autograd.variable.Variable"})
_PACKED = "torch.ScriptObject"
_SHOWN = 8
ROOT = dotted(())
"""What the path of a whole file prints as."""


class Module(msgspec.Struct, eq=False):
    """A module as a pickle keeps it.

    Attributes:
        class_name: ``torch.nn.modules.linear.Linear``, ``my.pkg.Net``.
        attributes: what it had beside its tables, by name: inert trees.
        parameters: by name; None where one was left out (``bias=False``).
        buffers: likewise.
        children: by name; the tree itself where it is no module that can be read.
        transient: names of buffers that are not in the state_dict.
        hooks: the tables of hooks that are not empty.
    """

    class_name: str
    attributes: dict[str, Tree] = {}
    parameters: dict[str, Tree] = {}
    buffers: dict[str, Tree] = {}
    children: dict[str, Module | Tree] = {}
    transient: frozenset[str] = frozenset()
    hooks: tuple[str, ...] = ()


def module_of(tree: Tree) -> Module | None:
    """The module that a tree is, without wrappers (DataParallel, torch.compile), or None."""
    if type(tree) is not Opaque:
        return None
    if tree.type_name == _COMPILED and type(tree.args) is list and tree.args:
        return module_of(tree.args[0])
    state = _state(tree)
    if state is None:
        return None
    parameters, buffers, children = (_table(state[name]) for name in _TABLES)
    if parameters is None or buffers is None or children is None:
        return None
    inner = _WRAPPERS.get(tree.type_name) or ("_orig_mod" if list(children) == ["_orig_mod"] else None)
    if inner is not None and inner in children:
        return module_of(children[inner])
    return Module(
        tree.type_name,
        {name: value for name, value in state.items() if name not in _BOOKKEEPING and not _is_hook(name)},
        parameters,
        buffers,
        {name: module_of(child) or child for name, child in children.items()},
        _names(state.get("_non_persistent_buffers_set")),
        tuple(name for name in _HOOKS if _table_size(state.get(name))),
    )


def _state(tree: Opaque) -> dict[str, Tree] | None:
    """The ``__dict__`` of a module; torch.fx passes it to a function instead of setting it."""
    for state in (tree.state, *(tree.args if type(tree.args) is list else ())):
        if type(state) is dict and all(name in state for name in _TABLES):
            return state
    return None


def _table(tree: Tree) -> dict[str, Tree] | None:
    """A dict with names for keys, whichever class of dict it was."""
    if type(tree) is dict:
        return tree
    if type(tree) is Typed and tree.kind in ("dict", "ordered_dict") and type(tree.payload) is list:
        pairs = [pair for pair in tree.payload if type(pair) is list and len(pair) == 2 and type(pair[0]) is str]
        return dict(pairs) if len(pairs) == len(tree.payload) else None
    return None


def _table_size(tree: Tree) -> int:
    if type(tree) is Typed and type(tree.payload) is list:
        return len(tree.payload)
    return len(tree) if type(tree) is dict else 0


def _is_hook(name: str) -> bool:
    return name.startswith("_") and ("_hooks" in name or name == "_is_full_backward_hook")


def _names(tree: Tree) -> frozenset[str]:
    items = tree.payload if type(tree) is Typed and tree.kind == "set" else ()
    return frozenset(item for item in items if type(item) is str)


# -- what they hold


def state_of(module: Module) -> dict[str, Tree]:
    """The state_dict of a module, in torch's order; a tied tensor is the same leaf under each of its names."""
    return {name: tensor for name, tree in _tensors(module, "") if (tensor := tensor_of(tree)) is not None}


def lost_of(module: Module) -> list[tuple[str, str]]:
    """What a module holds that no state_dict can be made of: (name, what it is)."""
    lost = [(name, what_is(tree)) for name, tree in _tensors(module, "") if tensor_of(tree) is None]
    for prefix, part in submodules(module):
        for name, value in (*part.attributes.items(), *part.children.items()):
            if type(value) is Opaque and (value.type_name == _PACKED or name in part.children):
                lost.append((f"{prefix}{name}", what_is(value)))
    return lost


def submodules(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """A module and all below it, each with the prefix of its names: ``""``, ``layers.``, ``layers.0.``."""
    yield prefix, module
    for name, child in module.children.items():
        if isinstance(child, Module):
            yield from submodules(child, f"{prefix}{name}.")


def _tensors(module: Module, prefix: str) -> Iterator[tuple[str, Tree]]:
    for start, part in submodules(module, prefix):
        for name, tree in part.parameters.items():
            if tree is not None:
                yield f"{start}{name}", tree
        for name, tree in part.buffers.items():
            if tree is not None and name not in part.transient:
                yield f"{start}{name}", tree


def tensor_of(tree: Tree) -> Tree | None:
    """The tensor that a parameter or buffer is, without what makes it a Parameter; None when it is no tensor."""
    if type(tree) is Typed and tree.kind == "parameter":
        return tensor_of(tree.payload["data"])
    if type(tree) is Typed:
        return tree if tree.kind in TENSOR_KINDS else None
    if type(tree) is Opaque:  # torch before 0.4
        return tensor_of(tree.args[0]) if tree.type_name in _OLD_PARAMETERS and tree.args else None
    return None if type(tree) in ATOMS or type(tree) in (dict, list) else tree


def what_is(tree: Tree) -> str:
    """What stands where a tensor or module should, for messages."""
    if type(tree) is Opaque:
        return "packed parameters of a quantized layer" if tree.type_name == _PACKED else f"a {tree.type_name}"
    if tensor_of(tree) is not None:
        return "a tensor"
    return f"a {tree.kind if type(tree) is Typed else type(tree).__name__}"


# -- where they are


def find_modules(tree: Tree) -> dict[Path, Module]:
    """Every outermost module of a tree by its path; inside objects of unknown classes too."""
    found: dict[Path, Module] = {}
    stack: list[tuple[Path, Tree]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        module = module_of(node)
        if module is not None:
            found[path] = module
        elif type(node) in (dict, list, Typed, Opaque):
            stack.extend(reversed(list(below(path, node))))
    return found


def modules_at(tree: Tree, at: str | None, file: str) -> dict[str, Module]:
    """The outermost modules of a tree by their dotted paths, or the one module or part of a module at ``at``.

    Raises:
        MissingPart: there is none; says what is there. ``file`` is named in it.
    """
    modules = {dotted(path): module for path, module in find_modules(tree).items()}
    if not modules:
        raise MissingPart(
            f"`{printable(file)}`: holds no whole module to rescue; its tensors and values are read with holdfast.load",
            file=file,
        )
    if at is None:
        return modules
    for name, module in modules.items():
        above = "" if name == ROOT else f"{name}."
        for prefix, part in submodules(module, above):
            if at == (prefix[:-1] or ROOT):
                return {at: part}
    shown = ", ".join(f"`{printable(name)}`" for name in list(modules)[:_SHOWN])
    raise MissingPart(
        f"`{printable(file)}`: has no module at `{printable(at)}`; there are {shown} and their parts",
        file=file,
        path=at,
    )


def with_states(tree: Tree) -> tuple[Tree, list[str]]:
    """The tree with the state_dict of each module in its place, and the dotted paths where modules were.

    A module that holds something else than tensors stays what it was: no part of it is passed off as the whole.
    """
    whole = {path: module for path, module in find_modules(tree).items() if not lost_of(module)}
    return (_replaced(tree) if whole else tree), [dotted(path) for path in whole]


def _replaced(tree: Tree) -> Tree:
    if type(tree) is dict:
        return {key: _replaced(item) for key, item in tree.items()}
    if type(tree) is list:
        return [_replaced(item) for item in tree]
    if type(tree) is Typed:
        return Typed(tree.kind, _replaced(tree.payload))
    module = module_of(tree)
    return tree if module is None or lost_of(module) else state_of(module)
