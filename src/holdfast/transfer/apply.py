"""Carrying out a restore: live objects are changed, all or none."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch

from holdfast.errors import HoldfastError, MismatchError, RestoreIncomplete
from holdfast.formats.base import StoredTensor
from holdfast.objects.module import ModulePart, swap_tensors
from holdfast.objects.optimizer import OptimizerPart
from holdfast.objects.stateful import StatefulPart
from holdfast.policy.match import check
from holdfast.policy.names import without_wrappers
from holdfast.policy.policies import Warm
from holdfast.serialization.memory import announce_write, bump_versions
from holdfast.serialization.reading import count_lost, fill, live_dtype, read_tree
from holdfast.serialization.sharded import here
from holdfast.state.flatten import map_leaves
from holdfast.state.paths import printable
from holdfast.transfer.plan import ObjectPlan
from holdfast.transfer.sharding import like


def refuse_lossy(plans: list[ObjectPlan], file: str) -> None:
    """Looks at the values whose cast may lose some, before anything is written."""
    for plan in plans:
        targets = plan.part.targets() if plan.checked else {}
        for name in plan.checked:
            leaf = plan.reads.get(name)
            lost = 0 if leaf is None else count_lost(leaf, targets[name].dtype)
            if leaf is not None and lost:
                raise MismatchError(
                    f"`{file}`: `{plan.name}.{name}`: {lost:,} values of its {leaf.spec.dtype} are too large for "
                    f"{str(targets[name].dtype).removeprefix('torch.')} and would become infinite; nothing was "
                    "changed. Load into a wider dtype, or allow it with holdfast.Warm(cast='any')",
                    file=file,
                    path=f"{plan.name}.{name}",
                )


def carry_out(plans: list[ObjectPlan], *, hyper: str, keep_spare: bool, file: str) -> None:
    """Changes the live objects. What can fail for a reason of its own comes first and is undone when it does."""
    states = {plan.name: _state_to_assign(plan, hyper, file) for plan in plans if plan.assign is not None}
    announce_write()
    with held_interrupts():
        undo: list[tuple[StatefulPart, Any]] = []
        made: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for plan in plans:
                if isinstance(plan.part, ModulePart):
                    made += plan.part.materialise()
                if plan.name in states:
                    undo.append((plan.part, plan.part.spare()))
                    _assign(plan, states[plan.name], file)
            _fill(plans, keep_spare, file)
        except BaseException:
            for part, spare in reversed(undo):
                part.roll_back(spare)
            for tensor, before in made:
                swap_tensors(tensor, before)
            raise


def _state_to_assign(plan: ObjectPlan, hyper: str, file: str) -> Any:
    """The state for an object's own ``load_state_dict``; tensors that are read later are the live ones, or empty."""
    targets = plan.part.targets()
    later = {id(leaf): name for name, leaf in plan.reads.items()}

    def stand_in(leaf: StoredTensor) -> Any:
        name = later.get(id(leaf))
        if name is None:
            return leaf
        live = targets.get(name)
        if name in plan.sharded:
            return like(plan.sharded[name], live_dtype(leaf.spec), exists=live is not None)
        fits = live is not None and tuple(live.shape) == leaf.spec.shape and live.dtype == live_dtype(leaf.spec)
        return live if fits else torch.empty(leaf.spec.shape, dtype=live_dtype(leaf.spec))

    state = read_tree(map_leaves(plan.assign, stand_in), file, opaque=True)
    if isinstance(plan.part, OptimizerPart) and hyper == "mine":
        state["param_groups"] = copy.deepcopy(plan.part.obj.state_dict()["param_groups"])
    return state


def _assign(plan: ObjectPlan, state: Any, file: str) -> None:
    try:
        if isinstance(plan.part, ModulePart):
            _load_module(plan, plan.part, state, file)
        else:
            plan.part.assign(state)
    except HoldfastError:
        raise
    except Exception as reason:  # whatever the object's own load_state_dict raises
        why = "\n".join(map(printable, str(reason).expandtabs(4).split("\n")))  # torch names keys as the file has them
        raise MismatchError(
            f"`{file}`: `{plan.name}` refused its state, nothing was changed: {type(reason).__name__}: {why}",
            file=file,
            path=plan.name,
        ) from reason


def _load_module(plan: ObjectPlan, part: ModulePart, state: Any, file: str) -> None:
    """Loads through the module's own hooks, and reports what they made of the names."""
    warm = isinstance(plan.policy, Warm)
    missing, unexpected = part.load(state, strict=not warm)
    report, live = plan.report, part.targets()
    for name in [name for name in report.missing if name not in missing]:
        given = [
            old
            for old in report.unexpected
            if not {old, without_wrappers(old)} & set(unexpected) and _equals(state, old, live[name])
        ]
        if len(given) == 1:
            report.renamed[name] = given[0]
    loaded = [name for name in live if name not in missing]
    report.loaded, report.missing, report.unexpected = loaded, missing, unexpected
    total = sum(tensor.numel() for tensor in live.values())
    report.coverage = sum(live[name].numel() for name in loaded) / total if total else 1.0
    if warm and plan.policy is not None:
        check(report, plan.policy, file, plan.name)


def _equals(state: Any, name: str, tensor: torch.Tensor) -> bool:
    value = state.get(name, state.get(without_wrappers(name)))
    return isinstance(value, torch.Tensor) and value.shape == tensor.shape and torch.equal(value.to(tensor), tensor)


def _leading(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of a live tensor that a smaller stored one fills."""
    return tensor if tuple(tensor.shape) == shape else tensor.detach()[tuple(slice(size) for size in shape)]


def _fill(plans: list[ObjectPlan], spare: bool, file: str) -> None:
    targets = {plan.name: plan.part.targets() for plan in plans if plan.reads}
    pairs = [
        (f"{plan.name}.{name}", leaf, _leading(here(targets[plan.name][name], name), leaf.spec.shape))
        for plan in plans
        for name, leaf in plan.reads.items()
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
        bump_versions([tensor for _, _, tensor in pairs])


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
