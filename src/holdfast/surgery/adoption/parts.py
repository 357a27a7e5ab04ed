"""The tree of an old checkpoint as a run's checkpoint has it: one key for each object, none taken for the run's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from holdfast.formats.base import Document, StoredTensor
from holdfast.state.flatten import below, child, keys
from holdfast.state.modules import with_states
from holdfast.state.values import TENSOR_KINDS, Opaque, Tree, Typed
from holdfast.transfer.locate import looks_like

_RUNS_OWN = ("rng", "loader")
"""Parts that a run writes and restores itself: what a file calls so is something else."""
_LISTS = {"optimizer": ("optimizer_states", "optimizers", "optimizer"), "scheduler": ("lr_schedulers", "schedulers")}
"""Where Lightning and others keep a list of states."""
_SCHEDULER_NAMES = ("scheduler", "scheduler_state_dict", "lr_scheduler", "lr_scheduler_state_dict")
_MARKS = ("_step_count", "base_lrs", "_last_lr", "num_bad_epochs")


class Laid(msgspec.Struct):
    """A checkpoint, laid out as a run's.

    Attributes:
        document: what is stored.
        modules: keys of models' states.
        optimizers: keys of optimizers' states.
        schedulers: keys of schedulers' states.
        others: keys of other objects' states, such as a GradScaler's.
        inert: keys of parts with objects that are not rebuilt, and the class of the first in each.
        notes: what has another name now, for people.
    """

    document: Document
    modules: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    inert: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def objects(self) -> tuple[str, ...]:
        """Keys of all that is known to be an object's state."""
        return (*self.modules, *self.optimizers, *self.schedulers, *self.others)


def lay_out(document: Document) -> Laid | None:
    """Finds the parts of a document and gives each a key of its own at the top.

    Returns:
        None when the file is no dict with names for keys.
    """
    own = bool(document.objects)  # a file of holdfast has states where modules were
    tree, whole = (document.tree, []) if own else with_states(document.tree)
    names = keys(tree)
    if not names or not all(type(name) is str for name in names):
        return None
    notes = [f"a whole pickled module at `{path}`: its weights were taken" for path in whole]
    parts, moved = _hoisted(_top(tree))
    parts, listed = _unlisted(parts)
    parts, renamed = _renamed(parts)
    moved = {**moved, **listed, **renamed}
    notes += [f"`{old}` is `{new}` in the run" for old, new in {**listed, **renamed}.items() if old != new]
    return Laid(
        Document(
            parts,
            _records(document.objects, moved, bare=list(parts) == ["model"] and "model" not in names),
            document.metadata,
        ),
        tuple(key for key, part in parts.items() if is_model(part)),
        tuple(key for key, part in parts.items() if looks_like("optimizer", part)),
        tuple(key for key, part in parts.items() if is_scheduler(part)),
        tuple(key for key, part in parts.items() if {"scale", "growth_factor"} <= set(keys(part))),
        {key: name for key, part in parts.items() if (name := next(_classes(part), None)) is not None},
        tuple(notes),
    )


def is_model(part: Tree) -> bool:
    """Whether a part looks like a state_dict, and not like metrics in tensors or random states."""
    if _is_tensor(part) or not looks_like("module", part) or looks_like("optimizer", part):
        return False
    return any(_is_weight(child(part, key)) for key in keys(part))


def _is_weight(tree: Tree) -> bool:
    if type(tree) is Typed:
        return tree.kind == "parameter" or tree.kind in TENSOR_KINDS
    return isinstance(tree, StoredTensor) and len(tree.spec.shape) > 0 and tree.spec.dtype.startswith(_FLOATING)


_FLOATING = ("float", "bfloat", "complex")


def is_scheduler(part: Tree) -> bool:
    """Whether a part looks like the state of a learning-rate scheduler."""
    names = keys(part)
    return "last_epoch" in names and any(mark in names for mark in _MARKS)


def _top(tree: Tree) -> dict[str, Tree]:
    """The parts at the top; the tensors of a bare state_dict become one part, ``model``."""
    parts = {str(key): child(tree, key) for key in keys(tree)}
    if looks_like("optimizer", tree) or not is_model(tree) or any(map(_is_object, parts.values())):
        return {"optimizer": tree} if looks_like("optimizer", tree) else parts
    tensors = {key for key, part in parts.items() if _is_tensor(part) or key.endswith("_extra_state")}
    if len(tensors) == len(parts):
        return {"model": tree}
    rest = {key: part for key, part in parts.items() if key not in tensors}
    return {"model": {key: part for key, part in parts.items() if key in tensors}, **rest}


def _is_object(part: Tree) -> bool:
    return is_model(part) or looks_like("optimizer", part) or is_scheduler(part)


def _is_tensor(part: Tree) -> bool:
    return isinstance(part, StoredTensor) or (
        type(part) is Typed and (part.kind == "parameter" or part.kind in TENSOR_KINDS)
    )


def _hoisted(parts: dict[str, Tree]) -> tuple[dict[str, Tree], dict[str, str]]:
    """Objects that stand one level down, as in ``{"state": {"model": ..., "optimizer": ...}}``, at the top."""
    if any(map(_is_object, parts.values())):
        return parts, {}
    holders = [key for key, part in parts.items() if any(_is_object(child(part, one)) for one in keys(part))]
    if len(holders) != 1:
        return parts, {}
    (holder,) = holders
    inner = {str(key): child(parts[holder], key) for key in keys(parts[holder])}
    if set(inner) & (set(parts) - {holder}):
        return parts, {}
    moved = {f"{holder}.{key}": key for key in inner}
    return {**inner, **{key: part for key, part in parts.items() if key != holder}}, moved


def _unlisted(parts: dict[str, Tree]) -> tuple[dict[str, Tree], dict[str, str]]:
    """States in a list, each under a key of its own: the only one as ``optimizer``, of several ``optimizer_0``."""
    laid: dict[str, Tree] = {}
    moved: dict[str, str] = {}
    for key, part in parts.items():
        kind = next((kind for kind, names in _LISTS.items() if key in names), None)
        items = part if type(part) is list else part.payload if type(part) is Typed and part.kind == "tuple" else None
        if kind is None or type(items) is not list or not items or not all(map(_is_object, items)):
            laid[key] = part
            continue
        for index, item in enumerate(items):
            name = _free(kind if len(items) == 1 else f"{kind}_{index}", {*laid, *parts} - {key})
            laid[name], moved[f"{key}.{index}"] = item, name
    return laid, moved


def _renamed(parts: dict[str, Tree]) -> tuple[dict[str, Tree], dict[str, str]]:
    """No key that a run takes for its own, and the only scheduler under a name that a restore looks for."""
    moved = {key: _free(f"{key}_of_file", set(parts)) for key in _RUNS_OWN if key in parts}
    schedulers = [key for key, part in parts.items() if is_scheduler(part)]
    if len(schedulers) == 1 and schedulers[0] not in (*_SCHEDULER_NAMES, *moved) and "scheduler" not in parts:
        moved[schedulers[0]] = "scheduler"
    return {moved.get(key, key): part for key, part in parts.items()}, moved


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _records(
    objects: Mapping[str, dict[str, object]], moved: Mapping[str, str], *, bare: bool
) -> dict[str, dict[str, object]]:
    """What a file of holdfast recorded of its objects, under their keys in the run."""
    records = {}
    for path, record in objects.items():
        old = next((one for one in moved if path == one or path.startswith(f"{one}.")), None)
        records["model" if bare and not path else path if old is None else moved[old] + path[len(old) :]] = record
    return records


def _classes(part: Tree) -> Iterator[str]:
    """The classes of objects in a part that are not rebuilt."""
    stack = [part]
    while stack:
        node = stack.pop()
        if type(node) is Opaque:
            yield node.type_name
        if type(node) in (dict, list, Typed, Opaque):
            stack.extend(item for _, item in below((), node))
