"""Folders, and what dead writers leave in them: making, removing, sweeping."""

from __future__ import annotations

import fcntl
import os
import re

import xxhash

from holdfast.storage.staged import reported
from holdfast.storage.syscalls import LOCAL, Syscalls

PARTIAL = ".partial"
"""How the names of what is not committed end; they begin with a dot."""
DELETING = ".deleting"
_LONG_NAME = 200


def make_folders(path: str | os.PathLike[str], *, durable: bool = True, syscalls: Syscalls = LOCAL) -> None:
    """Creates a folder and those above it, and fsyncs each name that it makes.

    Raises:
        StorageError: a folder can't be created.
    """
    missing = []
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with reported(folder, "creating the folder"):
            try:
                syscalls.mkdir(folder)
            except FileExistsError:  # another process made it meanwhile, or a file has the name
                if not os.path.isdir(folder):
                    raise
            if durable:
                syscalls.fsync_folder(os.path.dirname(folder))


def remove_tree(path: str, syscalls: Syscalls) -> None:
    """Removes a file, a link (never what it points to), or a folder with all in it."""
    if os.path.islink(path) or not os.path.isdir(path):
        syscalls.unlink(path)
        return
    with os.scandir(path) as entries:
        inside = [entry.path for entry in entries]
    for entry in inside:
        remove_tree(entry, syscalls)
    syscalls.rmdir(path)


def partial_prefix(name: str) -> str:
    """What the names of one target's partial files begin with; a name that would grow too long is shortened."""
    if len(os.fsencode(name)) > _LONG_NAME:
        name = xxhash.xxh3_128_hexdigest(os.fsencode(name))
    return f".{name}."


def sweep(folder: str, *, name: str | None = None, folders: bool = False, syscalls: Syscalls = LOCAL) -> list[str]:
    """Removes what writers that died left behind; what a living writer holds stays.

    A writer locks (``flock``) its partial file from its creation to its rename, and the kernel lets go of the lock when
    the process ends in whatever way. That tells the living from the dead better than a process id in the name would:
    ids are reused, and mean nothing to another container or host on the same disk. Partial folders carry no lock.

    Args:
        folder: where to look, not below it.
        name: only partial files of this target; None means of all.
        folders: also remove partial folders and those that are half deleted. Only for the holder of the run's lock.
        syscalls: what changes the disk.

    Returns:
        The names that were removed. What can't be removed stays and is no error.
    """
    wanted = re.compile(
        rf"{re.escape(partial_prefix(name)) if name else '[.].+[.]'}[0-9a-f]{{16}}{re.escape(PARTIAL)}", re.S
    )
    removed = []
    try:
        entries = os.listdir(folder)
    except OSError:
        return []
    for entry in entries:
        path = os.path.join(folder, entry)
        if wanted.fullmatch(entry) and not os.path.isdir(path):
            gone = _sweep_file(path, syscalls)
        elif folders and entry.startswith(".") and entry.endswith((PARTIAL, DELETING)) and os.path.isdir(path):
            gone = _sweep_folder(path, syscalls)
        else:
            continue
        if gone:
            removed.append(entry)
    return removed


def _sweep_file(path: str, syscalls: Syscalls) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        syscalls.unlink(path)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _sweep_folder(path: str, syscalls: Syscalls) -> bool:
    try:
        remove_tree(path, syscalls)
    except OSError:
        return False
    return True
