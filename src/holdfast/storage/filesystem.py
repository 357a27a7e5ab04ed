"""What a file system can do of what saving needs, tried out and not looked up, and the room that it has left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

import msgspec

from holdfast.errors import HoldfastError, NotFound, StorageError
from holdfast.storage.atomic import StagedFolder, remove_folder
from holdfast.storage.source import shown
from holdfast.storage.syscalls import LOCAL, Syscalls

_SAMPLE = "sample"
_SHARED = {"9p", "beegfs", "ceph", "cifs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs"}
"""File systems that several machines may write."""


class Feature(msgspec.Struct, frozen=True):
    """One thing that saving uses.

    Attributes:
        name: what.
        works: whether it did, just now.
        needed: whether saving can't do without it.
        detail: how long it took, what failed, or what happens instead.
    """

    name: str
    works: bool
    needed: bool
    detail: str


class FileSystem(msgspec.Struct, frozen=True):
    """What a folder lies on.

    Attributes:
        folder: the folder.
        kind: ``ext4``, ``nfs4``; None where the system does not say.
        shared: whether other machines may write to it too.
        free: bytes that this user may still write.
        total: bytes of it all; 0 where the file system does not say.
        features: what was tried.
    """

    folder: str
    kind: str | None
    shared: bool
    free: int
    total: int
    features: tuple[Feature, ...]


def examine(folder: str, *, syscalls: Syscalls = LOCAL) -> FileSystem:
    """Tries in a folder what saving does there; leaves nothing behind.

    Args:
        folder: an existing folder.
        syscalls: what changes the disk.

    Raises:
        NotFound: there is no such folder.
        StorageError: it can't be asked for its room.
    """
    if not os.path.isdir(folder):
        raise NotFound(f"`{shown(folder)}`: no such folder", file=folder)
    try:
        room = os.statvfs(folder)
    except OSError as error:
        raise StorageError(f"`{shown(folder)}`: can't be examined: {error.strerror}", file=folder) from error
    kind = _kind(folder)
    free, total = free_bytes(folder), room.f_blocks * room.f_frsize
    return FileSystem(folder, kind, kind in _SHARED, free or 0, total, (*_features(folder, syscalls), _room(free)))


def free_bytes(folder: str) -> int | None:
    """Bytes that this user may still write where ``folder`` lies; None where the file system does not say.

    What a file system sets aside for root counts for root alone. A quota is not seen.
    """
    try:
        room = os.statvfs(folder)
    except OSError:
        return None  # no reason to refuse a save: if the disk fails, writing says how
    if room.f_blocks == 0:  # some network and user-space file systems answer with zeros
        return None
    return (room.f_bfree if os.geteuid() == 0 else room.f_bavail) * room.f_frsize


def check_room(folder: str, needed: int, *, advice: str = "make room and save again") -> None:
    """Refuses a save that can't fit, before its first byte.

    It is a question and no promise: others may write meanwhile, and a quota is not seen. A full disk that shows later
    is an error of its own, and nothing is lost by either.

    Args:
        folder: an existing folder where the bytes go.
        needed: bytes that are to be written, not counting files that are linked.
        advice: what to do, for the message.

    Raises:
        StorageError: fewer bytes are free; nothing was written and nothing was deleted.
    """
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise StorageError(
            f"`{shown(folder)}`: no room for this save: {needed:,} bytes are to be written, {free:,} bytes are free; "
            f"nothing was written and nothing was deleted; {advice}",
            file=folder,
        )


def _room(free: int | None) -> Feature:
    """Whether the room that is left can be asked for."""
    if free is None:
        return Feature("free space", False, False, "not told; a save that does not fit shows while it is written")
    return Feature("free space", True, False, "told; a save that does not fit is refused before its first byte")


def _features(folder: str, syscalls: Syscalls) -> Iterator[Feature]:
    path = os.path.join(folder, f"holdfast-doctor-{os.urandom(8).hex()}")
    sample = os.path.join(path, _SAMPLE)
    linked: list[bool] = []
    begin = time.perf_counter()
    committed = _tried("commit", lambda: linked.append(_commit(path, syscalls)), "write, fsync, rename, fsync again")
    took = f"{committed.detail}: {(time.perf_counter() - begin) * 1000:.1f} ms"
    yield msgspec.structs.replace(committed, detail=took) if committed.works else committed
    if committed.works:
        try:
            yield Feature(
                "hard links", linked[0], False, "one file, two names" if linked[0] else "files are copied instead"
            )
            yield _tried("record lock", lambda: _lock(sample, fcntl.lockf), "keeps a second process from writing a run")
            yield _tried(
                "flock", lambda: _lock(sample, fcntl.flock), "tells unfinished saves of the living and the dead"
            )
        finally:
            with contextlib.suppress(HoldfastError):
                remove_folder(path, syscalls=syscalls)
    yield _tried("memfd", _make_memory_file, "stages what is saved to a stream", needed=False)


def _tried(name: str, act: Callable[[], None], detail: str, *, needed: bool = True) -> Feature:
    try:
        act()
    except (OSError, AttributeError, HoldfastError) as reason:  # AttributeError: Python lacks the call on this system
        said = reason.strerror if isinstance(reason, OSError) else None
        return Feature(name, False, needed, said or str(reason))
    return Feature(name, True, needed, detail)


def _commit(path: str, syscalls: Syscalls) -> bool:
    """Commits a folder of two files as a checkpoint is committed; whether the second is a link to the first."""
    with StagedFolder(os.path.dirname(path), os.path.basename(path), syscalls=syscalls) as staged:
        staged.write_bytes(_SAMPLE, b"holdfast\n")
        linked = staged.share(os.path.join(staged.partial, _SAMPLE), f"{_SAMPLE}-again")
        staged.commit()
    return linked


def _make_memory_file() -> None:
    os.close(os.memfd_create("holdfast", os.MFD_CLOEXEC))


def _lock(path: str, lock: Callable[[int, int], None]) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def _kind(folder: str) -> str | None:
    """The type of the file system, from the mount of the folder's device (proc_pid_mountinfo(5))."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                mount, _, rest = line.partition(" - ")
                if mount.split()[2:3] == [wanted]:
                    return rest.split()[0]
    except OSError:
        return None  # no Linux, or no /proc
    return None
