"""One restore from end to end: find the parts, decide from headers, verify, change the objects, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch

from holdfast.errors import ArgumentError, MissingPart
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.objects.builder import source_drift
from holdfast.objects.capture import SchedulerPart, adapt_all
from holdfast.objects.module import ModulePart
from holdfast.objects.optimizer import OptimizerPart
from holdfast.objects.probe import replay
from holdfast.objects.stateful import StatefulPart
from holdfast.policy.policies import Exact, Policy
from holdfast.policy.report import LoadReport
from holdfast.serialization.memory import IN_MEMORY
from holdfast.serialization.reading import compared_while_filled, located, read_tree, verify_segments
from holdfast.serialization.sharded import here
from holdfast.state.flatten import child, keys, leaves
from holdfast.state.paths import dotted
from holdfast.state.values import Tree
from holdfast.transfer.apply import carry_out, refuse_lossy
from holdfast.transfer.locate import Part, find_part, looks_like
from holdfast.transfer.plan import ObjectPlan, plan_module
from holdfast.transfer.plan_optimizer import plan_optimizer
from holdfast.transfer.quantized import quantized_record, refuse_script_objects
from holdfast.transfer.rescue import states_for_modules
from holdfast.transfer.sharding import localise

_VALUE_BYTES = 1024 * 1024
"""A part of a file with more tensor bytes than this is no plain value of a checkpoint."""


class RestoreOptions(msgspec.Struct, frozen=True):
    """How ``restore`` goes about it; see ``holdfast.restore`` for each."""

    match: Policy = Exact()
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
        if not isinstance(self.match, Policy):
            raise ArgumentError(f"match is {self.match!r}; it takes a policy such as holdfast.Exact()")


@collector_paused
def restore_objects(document: Document, file: str, objects: Mapping[str, Any], options: RestoreOptions) -> LoadReport:
    """Gives live objects the state that a document holds; see ``holdfast.restore``."""
    parts = adapt_all(objects)
    at = options.at or {}
    if unknown := set(at) - set(objects):
        raise ArgumentError(f"at= names {sorted(unknown)}, but the objects given are {sorted(objects)}")
    kinds = {name: part.kind for name, part in parts.items()}
    document, notes = states_for_modules(document, kinds.values(), file)
    try:
        found = {
            name: find_part(document.tree, name, part.kind, kinds=kinds, at=at.get(name), file=file)
            for name, part in parts.items()
        }
    except MissingPart:  # it may be there, and not look like one
        refuse_script_objects(document.tree, file)
        raise
    plans = [_plan(name, part, found[name], document, options.match, file) for name, part in parts.items()]
    report = LoadReport(notes=list(notes))
    used = {part.path for part in found.values()}
    if () not in used:
        _add_values(report, document, {path[0] for path in used}, file)
    report.notes += [f"`{name}` was found at `{dotted(part.path)}`" for name, part in found.items() if not part.by_name]
    for plan in plans:
        localise(plan)
        if isinstance(plan.part, OptimizerPart):
            report.notes += _hyper_notes(plan, options.hyper, file)
    if not options.dry_run:
        with located(document.tree):
            unverified = verify_segments(_to_verify(plans, options.spare))
            if unverified:
                report.notes.append(f"{unverified} tensors carry no digest and could not be verified")
            refuse_lossy(plans, file)
            carry_out(plans, hyper=options.hyper, keep_spare=options.spare, file=file)
    _merge(plans, report)  # not before: a module that loads itself has its own say on what was loaded
    if options.dry_run:
        return report
    for name, part in parts.items():
        if isinstance(part, ModulePart):
            report.notes.append(_set_mode(name, objects[name], options.mode))
            record = _record(document, found[name])
            report.notes += [f"`{name}`: {note}" for note in _reminders(part, record)]
        elif isinstance(part, SchedulerPart):
            report.notes += [f"`{name}`: {note}" for note in part.at_odds(objects.values())]
    return report


def _plan(name: str, part: StatefulPart, found: Part, document: Document, policy: Policy, file: str) -> ObjectPlan:
    if isinstance(part, ModulePart):
        refuse_script_objects(found.tree, file)
        quantized = quantized_record(_record(document, found), file)
        return plan_module(name, part, found.tree, policy, file, quantized)
    if isinstance(part, OptimizerPart):
        return plan_optimizer(name, part, found.tree, _record(document, found), policy, file)
    return ObjectPlan(name, part, LoadReport(loaded=["(state)"]), assign=found.tree)


def _to_verify(plans: list[ObjectPlan], spare: bool) -> Iterator[Segment]:
    """The bytes that are compared with their digests before anything is written.

    That is all that comes out of files: there is nothing to check live tensors against. With a spare to roll back to,
    what is compared in the pass that reads it into place need not be read for it twice.
    """
    for plan in plans:
        targets = plan.part.targets() if spare else {}
        later = {
            id(leaf)
            for name, leaf in plan.reads.items()
            if name in targets and compared_while_filled(leaf, here(targets[name], name))
        }
        for leaf in _leaves(plan):
            if id(leaf) not in later and not isinstance(leaf.segment.source, IN_MEMORY):
                yield leaf.segment


def _record(document: Document, found: Part) -> dict[str, Any]:
    """What the file recorded beside a part's state."""
    return document.objects.get(dotted(found.path) if found.path else "", {})


def _reminders(part: ModulePart, record: dict[str, Any]) -> Iterator[str]:
    """What the file knows of its model that the weights do not say."""
    drift = source_drift(part.obj, record)
    if drift is not None:
        yield drift
    if "probe" in record:
        yield replay(part.obj, record["probe"])


def _leaves(plan: ObjectPlan) -> Iterator[StoredTensor]:
    yield from plan.reads.values()
    if plan.assign is not None:
        yield from (leaf for _, leaf in leaves(plan.assign) if isinstance(leaf, StoredTensor))


def _merge(plans: list[ObjectPlan], whole: LoadReport) -> None:
    """Puts the reports of the objects into one, each name under its object's."""
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
        if own.missing and own.unexpected:  # else the module's own loader has found them by now
            whole.suggestions += own.suggestions
        weights, total = weights + own.coverage * plan.size, total + plan.size
    whole.coverage = weights / total if total else 1.0


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
            if key in ("params", "param_names") or any(True for _ in leaves(child(old, key))):
                continue
            value = read_tree(child(old, key), file, opaque=True)
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
