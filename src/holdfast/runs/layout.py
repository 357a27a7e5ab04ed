"""The names in a run's folder: what they look like, and which names from a file are safe to open."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Set

from holdfast.errors import ArgumentError, NotFound, RefusedFile
from holdfast.state.paths import printable
from holdfast.storage.places import ATTEMPT, COMMIT, STEP, is_url
from holdfast.storage.source import status_of

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
PINS = "pins"
SUPERSEDED = "superseded"
QUARANTINE = "quarantine"
MANIFEST = COMMIT
ENTRIES = "entries.json"
STATE = "state.json"
REASON = "reason.json"
CONTAINER_SUFFIX = ".safetensors"

MAX_STEP = 2**63 - 1
_LEFTOVER = re.compile(r"\.(step-\d{8,19})\.(partial|deleting)")
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def step_name(step: int) -> str:
    """``step-00001000`` for 1000; longer numbers take the digits they need.

    Raises:
        ArgumentError: ``step`` is negative or past 64 bits.
    """
    if not 0 <= step <= MAX_STEP:
        raise ArgumentError(f"step {step} is not between 0 and {MAX_STEP}", step=step)
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """1000 for ``step-00001000``; None for any other name, also for a second spelling of the same number."""
    match = STEP.fullmatch(name)
    if match is None or int(match[1]) > MAX_STEP or not name.isascii():
        return None
    step = int(match[1])
    return step if step_name(step) == name else None


def step_of_moved(name: str) -> int | None:
    """The step of a folder in ``superseded/`` or ``quarantine/``: ``step-00001000``, or ``step-00001000-2``."""
    step, _, count = name.rpartition("-")
    return parse_step(name) if parse_step(name) is not None or not count.isdecimal() else parse_step(step)


def parse_leftover(name: str) -> int | None:
    """The step of a folder that a save or a deletion left unfinished (``.step-00002000.partial``), else None."""
    match = _LEFTOVER.fullmatch(name)
    return parse_step(match[1]) if match else None


def data_folder(folder: str, data: str) -> str:
    """Where the files of a checkpoint are.

    Args:
        folder: of its manifest.
        data: what the manifest says: empty for the folder itself, else ``step-00001000/`` and a key of its own, below
            the run. So it is written in a store, where a folder can't be renamed.

    Raises:
        RefusedFile: it could lead elsewhere.
    """
    if not data:
        return folder
    step, mark, attempt = data.partition("/")
    if not mark or parse_step(step) is None or ATTEMPT.fullmatch(attempt) is None:
        raise RefusedFile(
            f"`{printable(folder)}`: says that its files are in {printable(data)!r}, which is no folder of a step",
            file=folder,
        )
    root = os.path.dirname(folder)
    if os.path.basename(root) in (SUPERSEDED, QUARANTINE):
        root = os.path.dirname(root)
    elif parse_step(os.path.basename(folder)) != parse_step(step):
        return inside(folder, attempt)  # a step that was copied out of its run
    return inside(os.path.join(root, step), attempt)


def container_name(key: object, taken: Set[str]) -> str:
    """The file for the object ``key``: ``model.safetensors``.

    What is no letter, digit, ``_``, ``-`` or ``.`` becomes ``_``; a name that is in ``taken`` (case-folded file names)
    gets a number, so ``G`` and ``g`` stay two files on file systems that do not tell them apart.
    """
    stem = _UNSAFE.sub("_", str(key))[:100]
    if not stem or stem[0] == ".":
        stem = f"_{stem[1:]}"
    name, count = f"{stem}{CONTAINER_SUFFIX}", 1
    while name.casefold() in taken:
        count += 1
        name = f"{stem}-{count}{CONTAINER_SUFFIX}"
    return name


def is_safe_name(name: str) -> bool:
    """Whether a name from a file may become one in a folder: no separator, no leading dot, ASCII, at most 200 long."""
    return _SAFE.fullmatch(name) is not None


def inside(folder: str, name: str) -> str:
    """The path of the file ``name`` of a checkpoint's folder.

    Raises:
        RefusedFile: the name could lead out of the folder, or is a link that does.
        NotFound: there is no such file.
        StorageError: the system does not say.
    """
    if not is_safe_name(name):
        raise RefusedFile(
            f"`{printable(folder)}`: names the file {printable(name)!r}, which is no plain name inside the folder",
            file=folder,
        )
    path = os.path.join(folder, name)
    if is_url(path):
        return path  # a store has no links, and opening says what is not there
    status = status_of(path, follow=False)
    if status is None:
        raise NotFound(f"`{printable(path)}`: is missing from the checkpoint", file=path)
    if stat.S_ISLNK(status.st_mode) and os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise RefusedFile(f"`{printable(path)}`: is a link out of its folder; copy the file in its place", file=path)
    return path
