"""One restore from end to end: decide from headers, verify, then change live objects, all or none."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch

from holdfast.errors import ArgumentError, HoldfastError, MismatchError, RestoreIncomplete
from holdfast.formats.base import Document, StoredTensor
from holdfast.objects.capture import adapt_all
from holdfast.objects.module import ModulePart
from holdfast.objects.optimizer import OptimizerPart
from holdfast.objects.stateful import StatefulPart
from holdfast.policy.match import Exact
from holdfast.policy.report import LoadReport
from holdfast.serialization.memory import bump_version
from holdfast.serialization.reading import fill, live_dtype, read_tree, verify_segments
from holdfast.state.flatten import child, keys, leaves, map_leaves
from holdfast.state.paths import dotted
from holdfast.state.values import Tree
from holdfast.transfer.locate import find_part, looks_like
from holdfast.transfer.plan import ObjectPlan, plan_object

_VALUE_BYTES = 1024 * 1024
"""A part of a file with more tensor bytes than this is no plain value of a checkpoint."""


class RestoreOptions(msgspec.Struct, frozen=True):
    """How ``restore`` goes about it; see ``holdfast.restore`` for each."""

    match: Exact = Exact()
    at: Mapping[str, str] | None = None
    mode: str | None = None
    hyper: str = "file"
    spare: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.mode not in (None, "eval", "train"):
            raise ArgumentError(f"mode is {self.mode!r}; it takes 'eval', 'train' or None")
        if self.hyper not in ("file", "mine"):
            raise ArgumentError(f"hyper is {self.hyper!r}; it takes 'file' or 'mine'")
        if not isinstance(self.match, Exact):
            raise ArgumentError(f"match is {self.match!r}; it takes a policy such as holdfast.Exact()")


def restore_objects(document: Document, file: str, objects: Mapping[str, Any], options: RestoreOptions) -> LoadReport:
    """Gives live objects the state that a document holds; see ``holdfast.restore``."""
    parts = adapt_all(objects)
    at = options.at or {}
    if unknown := set(at) - set(objects):
        raise ArgumentError(f"at= names {sorted(unknown)}, but the objects given are {sorted(objects)}")
    kinds = {name: part.kind for name, part in parts.items()}
    found = {
        name: find_part(document.tree, name, part.kind, kinds=kinds, at=at.get(name), file=file)
        for name, part in parts.items()
    }
    plans = [plan_object(name, part, found[name], document, options.match, file) for name, part in parts.items()]
    report = _whole_report(plans, document, {path.path for path in found.values()}, file)
    report.notes += [f"`{name}` was found at `{dotted(part.path)}`" for name, part in found.items() if not part.by_name]
    for plan in plans:
        if isinstance(plan.part, OptimizerPart):
            report.notes += _hyper_notes(plan, options.hyper, file)
    if options.dry_run:
        return report
    unverified = verify_segments(leaf.segment for plan in plans for leaf in _leaves(plan))
    if unverified:
        report.notes.append(f"{unverified} tensors carry no digest and could not be verified")
    _carry_out(plans, options, file)
    for name, part in parts.items():
        if isinstance(part, ModulePart):
            report.notes.append(_set_mode(name, objects[name], options.mode))
    return report


def _leaves(plan: ObjectPlan) -> Iterator[StoredTensor]:
    yield from plan.reads.values()
    if plan.assign is not None:
        yield from (leaf for _, leaf in leaves(plan.assign) if isinstance(leaf, StoredTensor))


def _carry_out(plans: list[ObjectPlan], options: RestoreOptions, file: str) -> None:
    """Changes the live objects. What can fail for a reason of its own comes first and is undone when it does."""
    states = {plan.name: _state_to_assign(plan, options.hyper, file) for plan in plans if plan.assign is not None}
    with held_interrupts():
        undo: list[tuple[StatefulPart, Any]] = []
        try:
            for plan in plans:
                if plan.name in states:
                    undo.append((plan.part, plan.part.spare()))
                    _assign(plan, states[plan.name], file)
            _fill(plans, options.spare, file)
        except BaseException:
            for part, spare in reversed(undo):
                part.roll_back(spare)
            raise


def _state_to_assign(plan: ObjectPlan, hyper: str, file: str) -> Any:
    """The state for an object's own ``load_state_dict``; tensors that are read later are the live ones, or empty."""
    targets = plan.part.targets()
    later = {id(leaf): name for name, leaf in plan.reads.items()}
    placeholders: dict[int, torch.Tensor] = {}

    def stand_in(leaf: StoredTensor) -> Any:
        name = later.get(id(leaf))
        if name is None:
            return leaf
        live = targets.get(name)
        fits = live is not None and tuple(live.shape) == leaf.spec.shape and live.dtype == live_dtype(leaf.spec)
        tensor = live if live is not None and fits else torch.empty(leaf.spec.shape, dtype=live_dtype(leaf.spec))
        placeholders[id(tensor)] = tensor
        return tensor

    state = read_tree(map_leaves(plan.assign, stand_in), file, opaque=True)
    if isinstance(plan.part, OptimizerPart) and hyper == "mine":
        state["param_groups"] = copy.deepcopy(plan.part.obj.state_dict()["param_groups"])
    return state


def _assign(plan: ObjectPlan, state: Any, file: str) -> None:
    try:
        plan.part.assign(state)
    except HoldfastError:
        raise
    except Exception as reason:  # whatever the object's own load_state_dict raises
        raise MismatchError(
            f"`{file}`: `{plan.name}` refused its state, nothing was changed: {type(reason).__name__}: {reason}",
            file=file,
            path=plan.name,
        ) from reason


def _fill(plans: list[ObjectPlan], spare: bool, file: str) -> None:
    targets = {plan.name: plan.part.targets() for plan in plans if plan.reads}
    pairs = [
        (f"{plan.name}.{name}", leaf, targets[plan.name][name]) for plan in plans for name, leaf in plan.reads.items()
    ]
    copies = [tensor.detach().clone() for _, _, tensor in pairs] if spare else []
    try:
        fill([(leaf, tensor) for _, leaf, tensor in pairs])
    except BaseException as reason:
        with torch.no_grad():
            for (_, _, tensor), old in zip(pairs, copies, strict=False):
                tensor.detach().copy_(old)
        if spare or not isinstance(reason, HoldfastError):
            raise
        shown = ", ".join(f"`{name}`" for name, _, _ in pairs[:5]) + (
            f" and {len(pairs) - 5} more" if pairs[5:] else ""
        )
        raise RestoreIncomplete(
            f"`{file}`: reading failed after all digests had been verified: {reason} These may be half written: "
            f"{shown}. Restore again before using them; spare=True keeps a copy and rolls back",
            file=file,
        ) from reason
    finally:
        for _, _, tensor in pairs:
            bump_version(tensor)


def _whole_report(plans: list[ObjectPlan], document: Document, used: set[Any], file: str) -> LoadReport:
    whole = LoadReport()
    weights = total = 0.0
    for plan in plans:
        own, prefix = plan.report, f"{plan.name}."
        whole.loaded += [prefix + name for name in own.loaded]
        whole.missing += [prefix + name for name in own.missing]
        whole.unexpected += [prefix + name for name in own.unexpected]
        whole.tied += [prefix + name for name in own.tied]
        whole.renamed |= {prefix + live: stored for live, stored in own.renamed.items()}
        for field in ("mismatched", "resized", "cast"):
            items = [msgspec.structs.replace(item, name=prefix + item.name) for item in getattr(own, field)]
            getattr(whole, field).extend(items)
        whole.notes += [f"`{plan.name}`: {note}" for note in own.notes]
        size = float(sum(tensor.numel() for tensor in plan.part.targets().values()) or 1)
        weights, total = weights + own.coverage * size, total + size
    whole.coverage = weights / total if total else 1.0
    if () not in used:
        _add_values(whole, document, {path[0] for path in used}, file)
    return whole


def _add_values(report: LoadReport, document: Document, used: set[Any], file: str) -> None:
    for key in keys(document.tree):
        if key in used:
            continue
        part = child(document.tree, key)
        size = sum(leaf.spec.nbytes for _, leaf in leaves(part) if isinstance(leaf, StoredTensor))
        is_state = str(key) in document.objects or looks_like("optimizer", part) or looks_like("module", part)
        if is_state or size > _VALUE_BYTES or str(key).endswith("state_dict"):
            report.unused.append(str(key))
        else:
            report.values[key if isinstance(key, str) else str(key)] = read_tree(part, file, opaque=True)


def _hyper_notes(plan: ObjectPlan, hyper: str, file: str) -> list[str]:
    stored: Tree = child(plan.assign, "param_groups") or []
    notes = []
    for index, (old, new) in enumerate(zip(stored, plan.part.obj.param_groups, strict=True)):
        for key in keys(old):
            value = child(old, key)
            if key in ("params", "param_names") or not isinstance(value, int | float | str | bool):
                continue
            if key in new and new[key] != value and not isinstance(new[key], torch.Tensor):
                taken = "the file's" if hyper == "file" else "the program's"
                notes.append(
                    f"`{plan.name}` group {index}: {key} is {value!r} in the file, {new[key]!r} in the program: "
                    f"{taken} is used"
                )
    return notes


def _set_mode(name: str, module: torch.nn.Module, mode: str | None) -> str:
    if mode is not None:
        module.train(mode == "train")
    left = "train" if module.training else "eval"
    hint = "; call eval() or give mode='eval' before predicting" if left == "train" and mode is None else ""
    return f"`{name}` is left in {left} mode{hint}"


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Holds a Ctrl-C back until the block is done, so that it can't leave an object half written."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    pressed: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
