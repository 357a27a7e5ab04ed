"""What a page is about: a run with one of its checkpoints, or a file. Opened, with headers read and tensors not."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence

import msgspec

from holdfast.errors import FormatError, NotFound, StorageError
from holdfast.formats.base import Container, Document, StoredTensor
from holdfast.runs.catalog import Listed, is_run
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.elsewhere import found_at
from holdfast.runs.manifest import Manifest, read_manifest
from holdfast.runs.opening import open_any
from holdfast.runs.reference import locate
from holdfast.runs.standing import Standing, scan_run, standing
from holdfast.spec import Path
from holdfast.state.flatten import leaves
from holdfast.state.modules import with_states
from holdfast.state.values import Tree
from holdfast.storage.places import absolute, is_file


class Subject(msgspec.Struct):
    """What a page is about.

    Attributes:
        name: as the caller named it.
        run: the run that it is, or that its checkpoint belongs to; None for a file.
        container: the file or checkpoint whose tensors are shown; None for a run that has none to read.
        document: what is in it.
        manifest: of the checkpoint.
        notes: what could not be read, for people.
    """

    name: str
    run: Standing | None = None
    container: Container | None = None
    document: Document | None = None
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()

    def tensors(self) -> list[tuple[Path, StoredTensor]]:
        """Every stored tensor with its path, in order."""
        return tensors_of(self.document.tree) if self.document is not None else []


def tensors_of(tree: Tree) -> list[tuple[Path, StoredTensor]]:
    """Every stored tensor of a tree with its path, in order; of whole pickled modules, those of their state."""
    return [(path, leaf) for path, leaf in leaves(with_states(tree)[0]) if isinstance(leaf, StoredTensor)]


@contextlib.contextmanager
def opened_subject(name: str, now: datetime.datetime) -> Iterator[Subject]:
    """Opens what a user names: a run, a reference into one, a step's folder, a file.

    A run whose checkpoints can't be read still has a page, and the page says why.

    Args:
        name: a path or reference.
        now: the time to which ages are measured.

    Raises:
        NotFound: there is nothing of that name.
        FormatError: a file can't be read.
        StorageError: reading failed.
    """
    path = found_at(name)
    folder: str | None = None
    run: Standing | None = None
    if not is_file(path):
        if is_run(path):
            run = standing(scan_run(path), now)
            if not run.catalog.readable:
                yield Subject(name, run)
                return
            folder = run.catalog.readable[-1].path
        else:
            folder = locate(path)
            run = _run_of(folder, now)
    if folder is None:
        with open_any(name) as container:
            yield Subject(name, run, container, container.document())
        return
    try:
        checkpoint = open_checkpoint(folder)
    except (FormatError, StorageError) as reason:
        yield Subject(name, run, manifest=_manifest(folder), notes=(f"Its tensors can't be read. {reason}",))
        return
    with checkpoint:
        yield _read(name, run, checkpoint)


def _read(name: str, run: Standing | None, checkpoint: Checkpoint) -> Subject:
    try:
        document = checkpoint.document()
    except FormatError as reason:
        return Subject(name, run, manifest=checkpoint.manifest, notes=(f"Its tensors can't be read. {reason}",))
    return Subject(name, run, checkpoint, document, checkpoint.manifest)


def _run_of(folder: str | None, now: datetime.datetime) -> Standing | None:
    """The run that a checkpoint's folder lies in."""
    if folder is None:
        return None
    root = os.path.dirname(absolute(folder))
    return standing(scan_run(root), now) if is_run(root) else None


def _manifest(folder: str) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (FormatError, NotFound, StorageError):
        return None


def spread(checkpoints: Sequence[Listed], most: int) -> list[Listed]:
    """At most so many checkpoints of a run, evenly chosen, its first and last among them."""
    count = len(checkpoints)
    if count <= most:
        return list(checkpoints)
    return [checkpoints[at * (count - 1) // (most - 1)] for at in range(most)]
