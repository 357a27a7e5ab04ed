"""What a restore will do with each object: decided from headers, before a byte of a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from holdfast.errors import CorruptFile, MismatchError
from holdfast.formats.base import Document, StoredTensor
from holdfast.objects.module import ModulePart, aliases
from holdfast.objects.optimizer import OptimizerPart
from holdfast.objects.stateful import StatefulPart
from holdfast.policy.match import Exact, check, match
from holdfast.policy.names import align, without_wrappers
from holdfast.policy.report import LoadReport
from holdfast.serialization.lowering import DTYPE_NAMES
from holdfast.spec import TensorSpec
from holdfast.state.flatten import child, keys
from holdfast.state.paths import dotted
from holdfast.state.values import Tree, Typed
from holdfast.transfer.locate import Part


class ObjectPlan(msgspec.Struct):
    """What happens to one object.

    Attributes:
        name: as the caller calls it.
        part: its adapter.
        reads: dotted target name -> stored tensor, read straight into the live tensor of that name.
        assign: an inert tree that the object's own ``load_state_dict`` is given, or None. Tensors in it that are
            also in ``reads`` are only placeholders then.
        report: names without the object's own.
    """

    name: str
    part: StatefulPart
    reads: dict[str, StoredTensor]
    assign: Tree | None
    report: LoadReport


def plan_object(name: str, part: StatefulPart, found: Part, document: Document, policy: Exact, file: str) -> ObjectPlan:
    """Decides for one object. Raises MismatchError when the policy refuses what the file has."""
    if isinstance(part, ModulePart):
        return _plan_module(name, part, found.tree, policy, file)
    if isinstance(part, OptimizerPart):
        record = document.objects.get(dotted(found.path) if found.path else "", {})
        return _plan_optimizer(name, part, found.tree, record, file)
    return ObjectPlan(name, part, {}, found.tree, LoadReport(loaded=["(state)"]))


def _plan_module(name: str, part: ModulePart, tree: Tree, policy: Exact, file: str) -> ObjectPlan:
    stored = {str(key): _plain_tensor(child(tree, key)) for key in keys(tree)}
    specs = {key: leaf.spec for key, leaf in stored.items() if leaf is not None}
    targets = part.targets()
    live = {key: _spec(tensor) for key, tensor in targets.items()}
    matched = match(specs, live, policy, aliases=aliases(targets))
    odd = [key for key, leaf in stored.items() if leaf is None]
    if part.has_own_loader() or odd:
        return ObjectPlan(name, part, {}, _renamed(tree, list(live)), matched.report)
    check(matched.report, policy, file, name)
    reads = {key: leaf for key, old in matched.pairs.items() if (leaf := stored[old]) is not None}
    return ObjectPlan(name, part, _one_writer(reads, aliases(targets)), None, matched.report)


def _one_writer(reads: dict[str, StoredTensor], tied: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Tied names are one memory: only the last one is read, as load_state_dict would leave it, never two at a time."""
    last = {tied.get(key, key): key for key in reads}
    return {key: leaf for key, leaf in reads.items() if last[tied.get(key, key)] == key}


def _plain_tensor(tree: Tree) -> StoredTensor | None:
    if isinstance(tree, Typed) and tree.kind == "parameter":
        tree = tree.payload["data"]
    return tree if isinstance(tree, StoredTensor) else None


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def _renamed(tree: Tree, live: list[str]) -> Tree:
    """A state_dict with wrapper segments taken out of its names, for a module that judges the names itself."""
    names = [str(key) for key in keys(tree)]
    found = align(names, live)
    wrapped = all(without_wrappers(name) != name for name in names)

    def rename(name: str) -> str:
        return found.get(name, without_wrappers(name) if wrapped else name)

    if isinstance(tree, dict):
        return {rename(name): item for name, item in tree.items()}
    payload = tree.payload
    items = payload["items"] if tree.kind == "state_dict" else payload
    pairs = items.items() if isinstance(items, dict) else items
    renamed: Any = [[rename(name), item] for name, item in pairs]
    if tree.kind != "state_dict":
        return Typed(tree.kind, renamed)
    metadata = [
        [without_wrappers(f"{name}.x").removesuffix(".x").removesuffix("x"), item] for name, item in payload["metadata"]
    ]
    return Typed("state_dict", {"items": renamed, "metadata": metadata if wrapped else payload["metadata"]})


_LIKE_PARAMETER = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "sum", "square_avg"}
    | {"acc_delta", "grad_avg", "prev", "ax"}
)
"""State of torch's optimizers that has the parameter's shape; other state (Adafactor's rows) has its own."""


def _plan_optimizer(name: str, part: OptimizerPart, tree: Tree, record: Mapping[str, Any], file: str) -> ObjectPlan:
    report = LoadReport()
    groups = child(tree, "param_groups")
    if not isinstance(groups, list) or any(not isinstance(child(group, "params"), list) for group in groups):
        raise CorruptFile(
            f"`{file}`: `{name}`: its param_groups are no list of groups with params", file=file, path=name
        )
    _check_groups(name, part, [len(child(group, "params") or []) for group in groups], file)
    report.notes += _check_names(name, part, record, groups, file)
    targets, reads = part.targets(), {}
    shapes = part.param_shapes()
    state = child(tree, "state")
    for index in keys(state):
        values = child(state, index)
        for key in keys(values):
            leaf = child(values, key)
            if not isinstance(leaf, StoredTensor):
                continue
            path = f"state.{index}.{key}"
            if (
                key in _LIKE_PARAMETER
                and type(index) is int
                and index < len(shapes)
                and leaf.spec.shape != shapes[index]
            ):
                raise MismatchError(
                    f"`{file}`: `{name}.{path}`: file has {leaf.spec}, the parameter has {shapes[index]}; nothing was "
                    "changed",
                    file=file,
                    path=f"{name}.{path}",
                )
            if leaf.spec.nbytes > _SMALL or path in targets:
                reads[path] = leaf
            report.loaded.append(path)
    report.loaded.append("param_groups")
    return ObjectPlan(name, part, reads, tree, report)


_SMALL = 4096
"""Bytes below which a new state tensor is simply read beforehand (step counters)."""


def _check_groups(name: str, part: OptimizerPart, sizes: list[int], file: str) -> None:
    live = part.group_sizes()
    if sizes != live:
        raise MismatchError(
            f"`{file}`: `{name}`: the file's optimizer has {sum(sizes)} parameters in groups of {sizes}, the program's "
            f"has {sum(live)} in groups of {live}; nothing was changed. Build it over the same parameters",
            file=file,
            path=name,
        )


def _same_parameter(old: str, new: str) -> bool:
    """Whether two names are one parameter's: beside other models it is called ``G.fc.weight``, alone ``fc.weight``."""
    return old == new or old.endswith(f".{new}") or new.endswith(f".{old}")


def _check_names(name: str, part: OptimizerPart, record: Mapping[str, Any], groups: list[Tree], file: str) -> list[str]:
    """Refuses moments that would go to another parameter; returns a note when nobody knows the names."""
    stored = record.get("param_names") or [n for group in groups for n in child(group, "param_names") or []]
    live = part.param_names()
    if not stored or live is None:
        return [
            "matched by position: " + ("the file has no parameter names" if not stored else "give model= beside it")
        ]
    for index, (old, new) in enumerate(zip(stored, live, strict=False)):
        if not _same_parameter(without_wrappers(str(old)), without_wrappers(new)):
            raise MismatchError(
                f"`{file}`: `{name}`: parameter {index} is `{old}` in the file and `{new}` in the program; nothing was "
                "changed. Build the optimizer over its parameters in the order of the file",
                file=file,
                path=name,
            )
    return []
