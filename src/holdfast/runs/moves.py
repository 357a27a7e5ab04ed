"""What changes a run's folder beside saving: prune, quarantine, supersede. For the holder of the run's lock alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from holdfast.errors import ArgumentError, FormatError, NotFound, StorageError
from holdfast.runs.catalog import Catalog, scan
from holdfast.runs.layout import PINS, QUARANTINE, REASON, SUPERSEDED, parse_leftover, step_name
from holdfast.runs.manifest import read_manifest
from holdfast.runs.retention import Decision
from holdfast.state.encoding import dumps
from holdfast.state.paths import printable
from holdfast.storage.atomic import DELETING, remove_folder, sweep
from holdfast.storage.places import is_folder, is_there, names_in, place_of, write_bytes
from holdfast.storage.syscalls import LOCAL, Syscalls


def prune(catalog: Catalog, decisions: Sequence[Decision], *, syscalls: Syscalls = LOCAL) -> list[int]:
    """Deletes what the decisions do not keep, oldest first, after what an earlier prune could not delete to its end.

    Each loses its name first, durably, and then its files: a crash at any moment leaves whole checkpoints and one
    ``.step-N.deleting`` at most, which the next writer of the run removes. One that can't be deleted is passed over, so
    that it does not fill the disk with all the others.

    No bytes are read here, so the caller must know that the newest is good, the one that always stays. A run prunes
    behind its own commit: there the newest is what it wrote and flushed moments before, or proved to be good when it
    linked it, and nothing is saved behind a later step. ``holdfast prune`` comes at any time, and verifies the newest
    first.

    Args:
        catalog: of the run, from which the decisions were made.
        decisions: of :func:`~holdfast.runs.retention.plan_prune`.
        syscalls: what changes the disk.

    Returns:
        The steps that are gone.

    Raises:
        ArgumentError: the decisions would leave no readable checkpoint; nothing was deleted.
        StorageError: some can't be deleted; the others are gone.
    """
    doomed = sorted(decision.step for decision in decisions if not decision.keep)
    if doomed and all(one.step in doomed for one in catalog.readable):
        raise ArgumentError(
            f"`{printable(catalog.root)}`: these decisions would delete every checkpoint that can be read; nothing was "
            "deleted",
            file=catalog.root,
        )
    failures: list[StorageError] = []
    for step in [*_half_deleted(catalog), *doomed]:
        try:
            _remove(catalog, step, syscalls)
        except NotFound:
            continue  # someone else deleted it
        except StorageError as reason:
            failures.append(reason)
    if failures:
        raise StorageError(
            f"`{printable(catalog.root)}`: {len(failures)} of {len(doomed)} checkpoints were not deleted, the others "
            f"are gone: {failures[0]}",
            file=catalog.root,
        ) from failures[0]
    return doomed


def _remove(catalog: Catalog, step: int, syscalls: Syscalls) -> None:
    path, place = os.path.join(catalog.root, step_name(step)), place_of(catalog.root)
    if place.whole:
        remove_folder(path, syscalls=syscalls)
        return
    listed = catalog.find(step)
    place.remove_step(path, listed.manifest.data if listed is not None and listed.manifest is not None else "")


def _half_deleted(catalog: Catalog) -> list[int]:
    """The steps of which only a part is left, under the name of what is being deleted."""
    names = [name for name in names_in(catalog.root) if name.endswith(DELETING)]
    return [step for name in names if (step := parse_leftover(name)) is not None and catalog.find(step) is None]


def quarantine(root: str | os.PathLike[str], step: int, reason: str) -> str:
    """Moves a step that failed verification to ``quarantine/``, where nothing resumes from it, with a reason.json.

    Returns:
        Its new folder.

    Raises:
        NotFound: there is no such step.
        StorageError: it can't be moved.
    """
    target = _move(os.fspath(root), step, QUARANTINE)
    write_bytes(os.path.join(target, REASON), dumps({"step": step, "reason": reason}))
    return target


def supersede(root: str | os.PathLike[str], step: int) -> list[int]:
    """Moves every step later than ``step`` to ``superseded/``: a future that was left is never "latest" again.

    Returns:
        The steps that were moved, newest first, so that a crash half-way leaves a shorter past, never a gap.

    Raises:
        StorageError: one can't be moved.
    """
    folder = os.fspath(root)
    later = [one.step for one in scan(folder).checkpoints if one.step > step]
    for one in reversed(later):
        _move(folder, one, SUPERSEDED)
    return later[::-1]


def sweep_run(root: str | os.PathLike[str]) -> None:
    """Removes what killed writers left in a run's folder: unfinished saves and deletions, pins, reasons.

    A pin that a living process is writing stays: pins need no lock of the run.
    """
    folder = os.fspath(root)
    if not place_of(folder).whole:
        used = _used(folder)
        if used is not None:
            place_of(folder).sweep(folder, used)
        return
    sweep(folder, folders=True)
    sweep(os.path.join(folder, PINS))
    for name in scan(folder).quarantined:
        sweep(os.path.join(folder, QUARANTINE, name))


def _used(root: str) -> set[str] | None:
    """Where the checkpoints of a run in a store say that their files are; None when one of them can't be asked."""
    try:
        catalog = scan(root)
    except NotFound:
        return None  # a run that is about to begin
    found = {one.manifest.data for one in catalog.readable if one.manifest}
    if len(catalog.readable) < len(catalog.checkpoints):
        return None
    moved = [
        *((QUARANTINE, name) for name in catalog.quarantined),
        *((SUPERSEDED, name) for name in catalog.superseded),
    ]
    try:
        return found | {read_manifest(os.path.join(root, *one)).data for one in moved}
    except (FormatError, NotFound):
        return None


def _move(root: str, step: int, folder: str) -> str:
    source = os.path.join(root, step_name(step))
    if not is_folder(source):  # in a store too: it has files at least
        raise NotFound(f"`{printable(root)}`: has no {step_name(step)}", file=root, step=step)
    target, count = os.path.join(root, folder, step_name(step)), 1
    while is_there(target):  # the same step was moved before: each keeps a folder of its own
        count += 1
        target = os.path.join(root, folder, f"{step_name(step)}-{count}")
    place_of(root).move_step(source, target)
    return target
