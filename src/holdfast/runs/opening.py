"""Opens whatever a user may mean by ``f``: a file, a stream, a run, a step of it, a reference, a sharded model."""

from __future__ import annotations

import os
from typing import IO, Any

from holdfast.errors import ArgumentError, HoldfastError, NotFound, UnknownFormat
from holdfast.formats.base import Container
from holdfast.formats.detect import open_container, open_path
from holdfast.runs.elsewhere import found_at
from holdfast.state.paths import printable
from holdfast.storage.places import is_file, is_folder, is_there, is_url, names_in
from holdfast.storage.source import StreamSource

_SHOWN = 8
_WANTED = "a run has step-00001000 and so on, a checkpoint manifest.json, a sharded model NAME.index.json"

Openable = str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes] | Any
"""A path, a reference, or an open binary file object. Typed as Any for the many classes that are file objects."""


def open_any(f: Openable) -> Container:
    """Opens a file, stream, checkpoint, run or reference; headers are read, tensors are not.

    Args:
        f: a path or reference (``runs/a@best``), or a binary file object that can seek. A run means its last
            checkpoint. A path that exists is never taken for a reference.

    Returns:
        An open container; close it, or use it as a context manager.

    Raises:
        NotFound: there is nothing of that name; the message says what is near.
        FormatError: what is there can't be read; the message says what it is.
        ArgumentError: ``f`` is neither a path nor a file object.
        StorageError: reading failed.
    """
    if not isinstance(f, str | bytes | os.PathLike):
        return _open_stream(f)
    path = found_at(os.fsdecode(f))
    if is_file(path):  # what knows runs is loaded for runs
        return open_path(path)
    from holdfast.runs.checkpoint import open_checkpoint
    from holdfast.runs.reference import locate

    folder = locate(path)
    if folder is not None:
        return open_checkpoint(folder)
    if is_folder(path):
        return _open_weights(path)
    if not is_there(path):
        raise _missing(path)
    return open_path(path)


def _open_stream(f: Any) -> Container:
    if not hasattr(f, "read"):
        raise ArgumentError(
            f"a path or an open binary file is wanted, not {type(f).__name__}: {printable(repr(f)[:80])}"
        )
    source = StreamSource(f)
    return open_container(source, source.name)


def _open_weights(path: str) -> Container:
    """A folder of weights as other libraries write it, else an error that says what was seen."""
    names = names_in(path)
    if is_url(path):
        raise UnknownFormat(
            f"`{printable(path)}`: is a folder and no run. {_seen(names)}; of folders in a store only runs and their "
            "steps are read. Name a file in it, or copy it to a disk first",
            file=path,
        )
    try:
        return open_path(path)
    except UnknownFormat as reason:
        raise UnknownFormat(f"{reason}. {_seen(names)}; {_WANTED}", file=path) from None


def _seen(names: list[str]) -> str:
    if not names:
        return "It is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"It has {', '.join(printable(name[:60]) for name in names[:_SHOWN])}{more}"


def _missing(path: str) -> NotFound:
    """The error for what is not there, with what is near."""
    import difflib

    from holdfast.runs.reference import FORMS

    folder, name = os.path.split(path)
    try:
        near = difflib.get_close_matches(name, names_in(folder or "."), n=3, cutoff=0.6)
    except (HoldfastError, ValueError):
        near = []
    hint = f"; near: {', '.join(printable(os.path.join(folder, one)) for one in near)}" if near else ""
    if "@" in name:
        hint += f"; references are a run's folder and {FORMS}"
    return NotFound(f"`{printable(path)}`: no such file or folder{hint}", file=path)
