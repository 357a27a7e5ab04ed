"""``adopt``: a folder of old checkpoints becomes a run that resumes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import get_args

from holdfast.errors import ArgumentError, MissingPart
from holdfast.runs.catalog import is_run
from holdfast.runs.run_file import parse_best
from holdfast.state.paths import printable
from holdfast.surgery.adoption.facts import read_folder
from holdfast.surgery.adoption.planning import LeftOut, PlannedStep, Wishes, plan_adoption
from holdfast.surgery.adoption.report import AdoptedStep, AdoptReport
from holdfast.surgery.adoption.values import EpochIs
from holdfast.surgery.adoption.writing import Written, refuse_target, write_run

_SHOWN = 5
StrPath = str | os.PathLike[str]


def adopt(
    old: StrPath,
    run: StrPath,
    *,
    best: str | None = None,
    epoch_is: EpochIs | None = None,
    steps_per_epoch: int | None = None,
    weights_only: bool = False,
    dry_run: bool = False,
    tell: Callable[[str], None] | None = None,
) -> AdoptReport:
    """Makes a run that resumes out of a folder of checkpoints such as ``checkpoint_epoch_10.pth``.

    Epochs, steps and metrics come from the contents of the files, else from their names, never from their times. What
    can't be taken over is reported and stops nothing else. Files are read one by one, nothing of them is run, and the
    old folder is not changed.

    Args:
        old: the folder of old checkpoints.
        run: the run's folder, which is new. After an interruption the same call goes on.
        best: the run's rule for the best one, ``"val_loss:min"``, by a metric that the files hold.
        epoch_is: what an epoch in the files is: ``"done"``, the number of the epoch just done, counted from 0;
            ``"next"``, the number of epochs done. By default it is found out, and the report says how.
        steps_per_epoch: batches of an epoch, where the files do not count steps.
        weights_only: whether files without an optimizer become steps as well.
        dry_run: make the plan and write nothing.
        tell: called with the name of each file before it is read or written.

    Returns:
        What became of each file, and why.

    Raises:
        MissingPart: nothing could be adopted; says why for each file, and no run is left behind.
        ArgumentError: ``run`` is a run already, or lies in ``old``; a rule or option that is none.
        NotFound: there is no folder ``old``.
        RunLocked: another process writes the run.
        StorageError: the disk is full or failed; whole steps stay, and the same call goes on from there.

    Example:
        >>> import holdfast, os, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> os.mkdir("old")
        >>> for epoch in (9, 10):
        ...     state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        ...     torch.save(state, f"old/epoch_{epoch}.pth")
        >>> report = holdfast.surgery.adopt("old", "runs/a", steps_per_epoch=100)
        >>> [(one.file, one.step, one.epoch) for one in report.steps]
        [('epoch_9.pth', 1000, 10), ('epoch_10.pth', 1100, 11)]
        >>> holdfast.Run("runs/a", model=net, optimizer=optimizer).resume()
        Position(epoch=11, step=1100, batch=0)
    """
    begin = time.perf_counter()
    folder, target = os.fspath(old), os.fspath(run)
    wishes = _wishes(best, epoch_is, steps_per_epoch, weights_only)
    refuse_target(folder, target)
    if is_run(folder):
        raise ArgumentError(f"`{printable(folder)}`: is a run of holdfast already; it needs no adoption", file=folder)
    say = tell or (lambda _: None)
    plan = plan_adoption(read_folder(folder, say), wishes)
    _refuse_nothing(folder, plan.steps, plan.left_out)
    _refuse_unmeasured(folder, plan.steps, wishes)
    written = Written(list(plan.steps)) if dry_run else write_run(folder, target, plan, best, say)
    left_out = [*plan.left_out, *written.left_out]
    _refuse_nothing(folder, written.steps, left_out)
    return AdoptReport(
        old=folder,
        run=target,
        steps=[_adopted(step) for step in written.steps],
        left_out=left_out,
        best=best,
        notes=list(plan.notes),
        bytes=written.bytes,
        seconds=time.perf_counter() - begin,
        dry_run=dry_run,
    )


def _wishes(best: str | None, epoch_is: EpochIs | None, steps_per_epoch: int | None, weights_only: bool) -> Wishes:
    if epoch_is is not None and epoch_is not in get_args(EpochIs):
        raise ArgumentError(f"epoch_is is {epoch_is!r:.80}; it takes 'done', 'next' or None")
    if steps_per_epoch is not None and (type(steps_per_epoch) is not int or steps_per_epoch < 1):
        raise ArgumentError(f"steps_per_epoch is {steps_per_epoch!r:.80}; it takes a whole number of at least 1")
    return Wishes(None if best is None else parse_best(best), epoch_is, steps_per_epoch, weights_only)


def _refuse_nothing(folder: str, steps: Sequence[PlannedStep], left_out: Sequence[LeftOut]) -> None:
    if steps:
        return
    reasons = "; ".join(f"{printable(one.file)}: {printable(one.reason)}" for one in left_out[:_SHOWN])
    more = f"; and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
    raise MissingPart(
        f"`{printable(folder)}`: holds no checkpoint that a training can go on from, and no run was made. "
        f"{reasons or 'It is empty'}{more}",
        file=folder,
    )


def _refuse_unmeasured(folder: str, steps: Sequence[PlannedStep], wishes: Wishes) -> None:
    """Raises ArgumentError for a best rule whose metric no step has."""
    if wishes.best is None or any(wishes.best.metric in step.metrics for step in steps):
        return
    names = sorted({name for step in steps for name in step.metrics})
    raise ArgumentError(
        f"`{printable(folder)}`: no file has a metric `{printable(wishes.best.metric)}`; there "
        f"{'are ' + ', '.join(f'`{printable(name)}`' for name in names) if names else 'is none'}",
        file=folder,
    )


def _adopted(step: PlannedStep) -> AdoptedStep:
    file = step.file
    return AdoptedStep(
        file=file.name,
        step=step.step,
        epoch=step.epoch,
        batch=step.batch,
        metrics=step.metrics,
        holds=[*file.modules, *file.optimizers, *file.schedulers, *file.others],
        values=list(file.plain),
        pins=list(step.pins),
        notes=list(step.notes),
    )
