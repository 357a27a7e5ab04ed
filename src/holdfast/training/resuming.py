"""Where a run goes on: the newest good checkpoint, an earlier one, or another file's weights."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from torch import nn
from torch.optim import Optimizer

from holdfast.errors import ArgumentError, CorruptFile, FormatError, MissingPart, NotFound, UnknownFormat
from holdfast.objects.capture import adapt_all
from holdfast.objects.optimizer import OptimizerPart, is_scheduler
from holdfast.policy.report import LoadReport
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.layout import parse_step
from holdfast.runs.reference import locate
from holdfast.storage.places import absolute, is_url
from holdfast.training.folder import RunFolder
from holdfast.training.own import own_parts
from holdfast.transfer.opened import opened_document
from holdfast.transfer.restore import RestoreOptions, restore_objects

log = logging.getLogger("holdfast")

OWN_PARTS = ("rng", "loader", "args", "ranks")
"""Parts of a checkpoint that the run itself writes."""
FRESH = -1
"""The step before all steps: a run that is told to begin anew goes back to it."""


class Position(msgspec.Struct, frozen=True):
    """Where a run goes on.

    Attributes:
        epoch: the epoch to go on with, from 0.
        step: items of the loader done since the run began.
        batch: items of that epoch that are done already.
    """

    epoch: int
    step: int
    batch: int


class Resumed(msgspec.Struct, frozen=True):
    """What was restored beside the objects.

    Attributes:
        position: where training goes on.
        rng: the random state of the save, or None.
        loader: the loader's place, or None.
    """

    position: Position
    rng: dict[str, Any] | None
    loader: dict[str, Any] | None


def take_objects(objects: Mapping[str, Any], root: str) -> dict[str, Any]:
    """The objects of a run: those that are given. What can't be saved is refused here, not hours later.

    Raises:
        ArgumentError: a name that the run uses itself, or an object without ``state_dict``.
    """
    for name in sorted(objects.keys() & set(OWN_PARTS)):
        raise ArgumentError(f"{name!r} is a part that the run writes itself; give the object another name")
    given = {name: value for name, value in objects.items() if value is not None}
    for name, part in adapt_all(given).items():
        if isinstance(part, OptimizerPart) and part.param_names() is None:
            log.warning("run %s: `%s` trains parameters of no model given to the run: they are not saved", root, name)
    return given


def resume_run(folder: RunFolder, objects: Mapping[str, Any], how: str | bool, *, rng: bool) -> Resumed | None:
    """Restores the checkpoint that ``how`` means; see ``Run``. None when there is nothing to go on from."""
    if how != "last":
        step = FRESH if how is False else _step_of(folder, str(how))
        if folder.branch_to(step):
            log.warning("run %s: goes back to %s; what came later is in superseded/", folder.root, _told(step))
    return _newest(folder, objects, rng)


def _told(step: int) -> str:
    return "the beginning" if step == FRESH else f"step {step}"


def _step_of(folder: RunFolder, reference: str) -> int:
    """The step of this run that a reference means: ``@step=1000``, ``@best``, or with the run's folder before it."""
    found = locate(f"{folder.root}{reference}" if reference.startswith("@") else reference)
    if found is None or not _is_same(os.path.dirname(absolute(found)), folder.root):
        raise ArgumentError(
            f"`{folder.root}`: resume={reference!r} is no checkpoint of this run: write resume='@step=1000', or "
            "start_from= to begin a run with another's weights",
            file=folder.root,
        )
    step = parse_step(os.path.basename(found))
    with open_checkpoint(found):  # a damaged one is refused before anything moves
        return FRESH if step is None else step


def _is_same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/") if is_url(one) or is_url(other) else os.path.samefile(one, other)


def _newest(folder: RunFolder, objects: Mapping[str, Any], rng: bool) -> Resumed | None:
    for checkpoint in folder.candidates():
        with checkpoint:
            try:
                found = folder.agreed(functools.partial(_restore, checkpoint, folder, objects, rng))
            except (UnknownFormat, MissingPart):
                raise  # no damage: a newer holdfast wrote it, or the program has a new object
            except (FormatError, NotFound) as reason:  # NotFound: one of its files
                folder.set_aside(checkpoint.manifest.step, str(reason))
                continue
            if folder.passed:
                log.warning("run %s: %s", folder.root, _used_instead(folder.passed, found.position.step))
            return found
    if folder.passed or folder.has_quarantined():
        raise CorruptFile(
            f"`{folder.root}`: every checkpoint is damaged; they are in quarantine/ with their reasons. Bring one back "
            "from a copy, or start in another folder",
            file=folder.root,
        )
    return None


def _used_instead(passed: Sequence[int], step: int) -> str:
    """What a run that falls back says last: how far."""
    steps = ", ".join(map(str, passed))
    return f"goes on from step {step}, the newest good checkpoint, instead of step {steps}; the rest is trained again"


def _restore(checkpoint: Checkpoint, folder: RunFolder, objects: Mapping[str, Any], rng: bool) -> Resumed:
    manifest, document = checkpoint.manifest, checkpoint.document()
    file, root = checkpoint.file, folder.root
    own = own_parts(document, manifest, folder, file)
    random_state, loader = own.rng if rng else None, own.loader
    given = _settings(objects)
    try:
        report = restore_objects(document, file, objects, RestoreOptions()) if objects else LoadReport()
    except MissingPart as reason:
        raise MissingPart(
            f"{reason} The run's checkpoints were saved without it: leave it out, or use a new folder", file=file
        ) from None
    for name in report.unused:
        if name not in OWN_PARTS:
            log.warning("run %s: step %d holds `%s`, which the program does not give", root, manifest.step, name)
    for note in _overridden(given, _settings(objects)):
        log.warning("run %s: %s", root, note)
    for note in own.notes:
        log.warning("run %s: %s", root, note)
    position = Position(manifest.epoch or 0, manifest.items_done, own.batch)
    return Resumed(position, random_state, loader)


def _settings(objects: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What each optimizer's groups are set to, but for what a scheduler sets: that is another in every epoch."""
    schedulers = [value for value in objects.values() if is_scheduler(value)]
    found = {}
    for name, value in objects.items():
        if isinstance(value, Optimizer):
            scheduled = any(_steps(one, value) for one in schedulers)
            groups = [dict(group) for group in value.param_groups]
            found[name] = [{key: one for key, one in group.items() if _is_set(key, one, scheduled)} for group in groups]
    return found


def _steps(scheduler: Any, optimizer: Optimizer) -> bool:
    given = getattr(scheduler, "optimizer", None)  # accelerate's is one around it
    return given is optimizer or getattr(given, "optimizer", None) is optimizer


def _is_set(key: str, value: Any, scheduled: bool) -> bool:
    plain = isinstance(value, int | float | str | tuple | None)
    return plain and not (scheduled and key in ("lr", "momentum", "betas"))


def _overridden(
    program: Mapping[str, list[dict[str, Any]]], restored: Mapping[str, list[dict[str, Any]]]
) -> Iterator[str]:
    """What a restore set otherwise than the program had it."""
    for name, groups in program.items():
        for index, (given, now) in enumerate(zip(groups, restored[name], strict=True)):
            for key in given.keys() & now.keys():
                if given[key] != now[key]:
                    yield (
                        f"`{name}` group {index}: {key} is {now[key]!r} as in the checkpoint, not {given[key]!r} as "
                        "the program has it; to change it, set it after resume()"
                    )


def take_weights(source: Any, objects: Mapping[str, Any], root: str) -> None:
    """Gives the modules of a run that begins the weights of another file; optimizers and schedulers begin anew.

    Raises:
        ArgumentError: the run has no module.
        MissingPart, MismatchError: the file does not fit; nothing was changed.
    """
    modules = {name: value for name, value in objects.items() if isinstance(value, nn.Module)}
    if not modules:
        raise ArgumentError(f"`{root}`: start_from= gives weights to modules, and the run has none", file=root)
    with opened_document(source) as (document, file):
        report = restore_objects(document, file, modules, RestoreOptions())
    left = ", ".join(report.unused)
    log.info("run %s: begins with the weights of %s%s", root, file, f"; left alone in it: {left}" if left else "")
