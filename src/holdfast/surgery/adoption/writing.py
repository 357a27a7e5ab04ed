"""The steps of a plan, written into a run one by one: each is read again and equal before it counts."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Callable

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, FormatError, NotFound, UnsupportedValue
from holdfast.formats.base import Document
from holdfast.formats.damage import verify_segments
from holdfast.formats.proof import differences
from holdfast.runs.catalog import Catalog, is_run, scan
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.layout import LOCK_FILE, RUN_FILE, step_name
from holdfast.runs.lock import RunLock
from holdfast.runs.manifest import Manifest
from holdfast.runs.opening import open_any
from holdfast.runs.run_file import RunFile, write_pin, write_run_file
from holdfast.runs.writing import write_checkpoint
from holdfast.state.paths import printable
from holdfast.storage.atomic import StagedFolder, remove_folder, sweep
from holdfast.storage.places import is_url
from holdfast.surgery.adoption.parts import lay_out
from holdfast.surgery.adoption.planning import LeftOut, Plan, PlannedStep

_MARK = "adopted"
"""Where a manifest's environment says which file a step was made of."""


class Written(msgspec.Struct):
    """What is in the run now.

    Attributes:
        steps: those of the plan that are.
        left_out: those that are not, with reasons.
        bytes: of all steps.
    """

    steps: list[PlannedStep] = []
    left_out: list[LeftOut] = []
    bytes: int = 0


def refuse_target(old: str, run: str) -> None:
    """Raises ArgumentError unless ``run`` is a new place, an empty folder, or an adoption that was cut off."""
    for given in (old, run):
        if is_url(given):
            raise ArgumentError(
                f"`{printable(given)}`: adopting goes from a folder of this machine to another; copy the new run into "
                "the store when it is done",
                file=given,
            )
    if os.path.lexists(run) and not os.path.isdir(run):
        raise ArgumentError(f"`{printable(run)}`: is a file, a run needs a folder; name another", file=run)
    here, there = os.path.realpath(old), os.path.realpath(run)
    if here == there or there.startswith(here + os.sep):
        raise ArgumentError(
            f"`{printable(run)}`: lies in the old folder `{printable(old)}`, which is not changed; name another",
            file=run,
        )
    if not os.path.isdir(run) or not is_run(run):
        return
    catalog = scan(run)
    if os.path.lexists(os.path.join(run, RUN_FILE)) or not all(map(_source, _steps_in(catalog))):
        count = len(catalog.checkpoints)
        raise ArgumentError(
            f"`{printable(run)}`: is a run already, with {count} checkpoint{'s' if count != 1 else ''}; adopt into "
            "a new folder",
            file=run,
        )


def write_run(old: str, run: str, plan: Plan, best: str | None, tell: Callable[[str], None]) -> Written:
    """Writes what a plan says. What was committed by a call that was cut off is left as it is.

    Args:
        old: the folder of the files.
        run: the run's folder.
        plan: at least one step.
        best: the rule for ``@best``, as text.
        tell: called with the name of each file before it is written.

    Raises:
        ArgumentError: another adoption was begun in the folder.
        RunLocked: another process writes the run.
        StorageError: writing failed; whole steps stay, and the same call goes on from there.
    """
    fresh = not os.path.lexists(run)
    written = Written()
    try:
        with RunLock(run):
            sweep(run, folders=True)
            identity = _go_on(scan(run), plan) or secrets.token_hex(8)
            for step in plan.steps:
                tell(step.file.name)
                _take(old, run, step, identity, written)
            if written.steps:
                _finish(run, identity, written, best)
    finally:
        _clear(run, fresh)
    return written


def _go_on(catalog: Catalog, plan: Plan) -> str | None:
    """The identity of an adoption that was begun here. Raises ArgumentError when it was another one."""
    wanted = {step.step: step for step in plan.steps}
    found = None
    for manifest in _steps_in(catalog):
        step = wanted.get(manifest.step)
        if (
            step is None
            or _source(manifest) != _mark(step)
            or (manifest.epoch, manifest.batch) != (step.epoch, step.batch)
        ):
            raise ArgumentError(
                f"`{printable(catalog.root)}`: step {manifest.step} is of an adoption that was cut off and said "
                "otherwise: give the same options and files again, or remove the folder",
                file=catalog.root,
                step=manifest.step,
            )
        found = manifest.run
    return found


def _steps_in(catalog: Catalog) -> list[Manifest]:
    for one in catalog.checkpoints:
        if one.manifest is None:
            raise ArgumentError(
                f"`{printable(catalog.root)}`: step {one.step} can't be read: {one.problem}; remove the folder, or "
                "adopt into another",
                file=catalog.root,
                step=one.step,
            )
    return [one.manifest for one in catalog.checkpoints if one.manifest is not None]


def _source(manifest: Manifest) -> object:
    return manifest.environment.get(_MARK)


def _mark(step: PlannedStep) -> dict[str, object]:
    return {"file": printable(step.file.name), "bytes": step.file.size, "weights": step.file.weights}


def _take(old: str, run: str, step: PlannedStep, identity: str, written: Written) -> None:
    """One step; a file that fails is left out, and does not stop the others."""
    path = os.path.join(run, step_name(step.step))
    try:
        manifest = _commit(os.path.join(old, step.file.name), run, step, identity) if not os.path.isdir(path) else None
    except (FormatError, UnsupportedValue, NotFound) as reason:
        written.left_out.append(LeftOut(step.file.name, str(reason)))
        return
    found = manifest or next(one.manifest for one in scan(run).checkpoints if one.step == step.step)
    written.steps.append(step)
    written.bytes += sum(record.size for record in found.files.values()) if found is not None else 0


def _commit(path: str, run: str, step: PlannedStep, identity: str) -> Manifest:
    manifest = Manifest(
        run=identity,
        step=step.step,
        time=datetime.datetime.now(datetime.UTC),
        epoch=step.epoch,
        batch=None if step.epoch is None else step.batch,
        metrics=dict(step.metrics),
        environment={_MARK: _mark(step)},
    )
    with open_any(path) as container:
        laid = lay_out(container.document())
        if laid is None:
            raise CorruptFile(f"`{printable(path)}`: was changed while it was adopted", file=path)
        with StagedFolder(run, step_name(step.step)) as folder:
            written = write_checkpoint(folder, laid.document, manifest)
            _prove(folder, laid.document, path)
            folder.commit()
    return written


def _prove(folder: StagedFolder, document: Document, path: str) -> None:
    """Reads a step again, from its first byte, and compares all of it with the file that it was made of.

    Raises:
        CorruptFile: a tensor's bytes differ.
        UnsupportedValue: a value came back as another.
    """
    with open_checkpoint(folder.partial) as checkpoint:
        verify_segments(checkpoint.segments())
        lost = differences(document, checkpoint.document())
    if not lost:
        return
    first = lost[0]
    if first.why == "its bytes differ":
        raise CorruptFile(
            f"`{printable(path)}`: `{printable(first.name)}` reads back otherwise than it was written: memory or disk "
            "failed, or the file was changed meanwhile; try again",
            file=path,
            path=first.name,
        )
    raise UnsupportedValue(
        f"`{printable(path)}`: `{printable(first.name)}` can't be kept in a run: {printable(first.why)}",
        file=path,
        path=first.name,
    )


def _finish(run: str, identity: str, written: Written, best: str | None) -> None:
    """Pins, and run.json last: with it the adoption is whole."""
    for step in written.steps:
        for name in step.pins:
            write_pin(run, name, step.step)
    write_run_file(run, RunFile(run=identity, created=datetime.datetime.now(datetime.UTC), best=best))


def _clear(run: str, fresh: bool) -> None:
    """Removes the folder that was made for a run of which nothing was committed."""
    if fresh and os.path.isdir(run) and set(os.listdir(run)) <= {LOCK_FILE}:
        remove_folder(run)
