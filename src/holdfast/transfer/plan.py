"""What a restore will do with each object: decided from headers, before a byte of a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from holdfast.errors import MismatchError
from holdfast.formats.base import StoredTensor
from holdfast.objects.module import ModulePart, aliases
from holdfast.objects.quantized import Quantized
from holdfast.objects.stateful import StatefulPart
from holdfast.policy.match import check, match
from holdfast.policy.names import align, moved_modules, policy_names, without_wrappers
from holdfast.policy.policies import Policy, Warm
from holdfast.policy.report import LoadReport
from holdfast.policy.shape import common_box
from holdfast.serialization.lowering import DTYPE_NAMES
from holdfast.spec import TensorSpec, contiguous_stride
from holdfast.state.flatten import child, keys
from holdfast.state.values import DRESSED, Tree, Typed
from holdfast.transfer.quantized import refuse_other_kind, refuse_other_packing


class ObjectPlan(msgspec.Struct):
    """What happens to one object.

    Attributes:
        name: as the caller calls it.
        part: its adapter.
        report: names without the object's own.
        reads: dotted target name -> stored tensor, read straight into the live tensor of that name, or into its
            leading part where the stored one is smaller.
        assign: an inert tree that the object's own ``load_state_dict`` is given, or None. Tensors in it that are
            also in ``reads`` are only placeholders then.
        checked: targets whose values must be looked at before they are cast.
        policy: what may differ; a module that judges names itself is asked to be strict unless this is a Warm.
        size: elements of the live object, its weight in the coverage of a whole restore.
        sharded: targets of which this process has a part, or the parameters that new ones are to be like.
    """

    name: str
    part: StatefulPart
    report: LoadReport
    reads: dict[str, StoredTensor] = {}
    assign: Tree | None = None
    checked: list[str] = []
    policy: Policy | None = None
    size: int = 1
    sharded: dict[str, torch.Tensor] = {}


def plan_module(
    name: str, part: ModulePart, tree: Tree, policy: Policy, file: str, quantized: Quantized | None = None
) -> ObjectPlan:
    """Decides for a module. Raises MismatchError when the policy refuses what the file has.

    Args:
        name: as the caller calls it.
        part: its adapter.
        tree: its part of the file.
        policy: what may differ.
        file: named in errors.
        quantized: what the file says of its quantization.
    """
    stored = {str(key): plain_tensor(child(tree, key)) for key in keys(tree)}
    specs = {key: leaf.spec for key, leaf in stored.items() if leaf is not None}
    targets = part.targets()
    live = {key: _spec(tensor) for key, tensor in targets.items()}
    tied = aliases(targets)
    matched = match(specs, live, policy, aliases=tied)
    refuse_other_kind(part, tree, quantized, matched.report, file=file, name=name)
    size = sum(tensor.numel() for tensor in targets.values())
    odd = policy_names([key for key, leaf in stored.items() if leaf is None], policy)
    if part.has_own_loader() or align(odd.values(), live) or _is_old_norm(matched.report):
        _refuse_narrowing(matched.report, policy, file, name)
        wanted = _renamed(tree, list(live), policy, {item.name for item in matched.report.mismatched})
        refuse_other_packing(part, wanted, file=file, name=name)
        return ObjectPlan(name, part, matched.report, assign=wanted, policy=policy, size=size)
    matched.report.unexpected += odd  # what is no tensor and no tensor of the object: packed parameters of int8 layers
    check(matched.report, policy, file, name)
    _refuse_unwritable({key: targets[key] for key in matched.pairs}, file, name)
    reads = {
        key: leading_part(leaf, live[key].shape)
        for key, old in matched.pairs.items()
        if (leaf := stored[old]) is not None
    }
    return ObjectPlan(
        name, part, matched.report, reads=_one_writer(reads, tied), checked=matched.checked, policy=policy, size=size
    )


def _is_old_norm(report: LoadReport) -> bool:
    """Whether only the counters are missing that batch norm has had since torch 0.4: torch.nn itself fills them in."""
    counters = all(name.rpartition(".")[2] == "num_batches_tracked" for name in report.missing)
    return bool(report.missing) and counters and not report.mismatched


def _refuse_narrowing(report: LoadReport, policy: Policy, file: str, name: str) -> None:
    """Names and shapes are for a module that loads itself to judge; a cast that loses values never is."""
    narrowed = [item for item in report.mismatched if item.stored.rpartition(" ")[0] == item.live.rpartition(" ")[0]]
    if narrowed:
        check(LoadReport(mismatched=narrowed), policy, file, name)


def _refuse_unwritable(targets: Mapping[str, torch.Tensor], file: str, name: str) -> None:
    """Live tensors that have no element of their own for every stored one."""
    for key, tensor in targets.items():
        if tensor.layout is torch.strided and tensor.is_contiguous():
            continue
        if tensor.layout is not torch.strided:
            why = "is sparse in the program and dense in the file; convert one of them"
        elif any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
            why = "has one element under many indices in the program, as expand() makes it; clone() it there"
        else:
            continue
        raise MismatchError(f"`{file}`: `{name}.{key}` {why}; nothing was changed", file=file, path=f"{name}.{key}")


def leading_part(leaf: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The part of a stored tensor that a live one of ``shape`` has room for: the same bytes, seen smaller."""
    if leaf.spec.shape == shape:
        return leaf
    box = common_box(leaf.spec.shape, shape)
    stride = leaf.spec.stride or contiguous_stride(leaf.spec.shape)
    spec = TensorSpec(leaf.spec.dtype, box, stride)
    return StoredTensor(TensorSpec(spec.dtype, box) if spec.is_contiguous else spec, leaf.segment, leaf.offset)


def _one_writer(reads: dict[str, StoredTensor], tied: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Tied names are one memory: only the last one is read, as load_state_dict would leave it, never two at a time."""
    last = {tied.get(key, key): key for key in reads}
    return {key: leaf for key, leaf in reads.items() if last[tied.get(key, key)] == key}


def plain_tensor(tree: Tree) -> StoredTensor | None:
    """The strided tensor that a leaf of a state_dict is, or None for anything else."""
    while isinstance(tree, Typed) and tree.kind in DRESSED:
        tree = tree.payload["data"]
    return tree if isinstance(tree, StoredTensor) else None


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def _renamed(tree: Tree, live: list[str], policy: Policy, refused: set[str]) -> Tree:
    """A state_dict under the policy's names and without wrapper segments, for a module that judges names itself.

    A Warm start leaves out what has another shape than the live tensor of its name: torch would refuse all for it.
    """
    names = policy_names([str(key) for key in keys(tree)], policy)
    found = align(names.values(), live)
    wrapped = all(without_wrappers(name) != name for name in names.values())

    def rename(name: str) -> str:
        return found.get(names[name], without_wrappers(names[name]) if wrapped else names[name])

    payload = tree if isinstance(tree, dict) else tree.payload
    items = payload["items"] if isinstance(tree, Typed) and tree.kind == "state_dict" else payload
    pairs = items.items() if isinstance(items, dict) else items
    pairs = [(name, item) for name, item in pairs if type(name) is str and name in names]
    renamed: Any = [
        [rename(name), item] for name, item in pairs if not (isinstance(policy, Warm) and rename(name) in refused)
    ]
    if not (isinstance(tree, Typed) and tree.kind == "state_dict"):
        return Typed("ordered_dict", renamed)
    modules = moved_modules({name: rename(name) for name, _ in pairs})
    # the versions of its modules, which its hooks ask for
    metadata = [[modules.get(str(name), name), item] for name, item in payload["metadata"]]
    return Typed("state_dict", {"items": renamed, "metadata": metadata})
