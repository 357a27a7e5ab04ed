"""One writer for each run: a lock that dies with its holder and that no child inherits.

The lock is a POSIX record lock (``fcntl.lockf``). The kernel drops it when the process ends, however it ends; a loader
worker that was forked from the holder and outlives it does not have it, where an flock or an open-file-description lock
would live on in every inherited descriptor. Two habits of record locks (fcntl(2), "Advisory record locking") are met
here: they do not exclude the process that has them, so a table of this process's locks does; and closing any
descriptor of the file drops them, so exactly one is opened. A program that copies its own run's folder while it writes
it should leave the file ``.lock`` out, for the same reason.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import threading
from typing import TYPE_CHECKING

import msgspec

from holdfast.errors import RunLocked, StorageError
from holdfast.runs.layout import LOCK_FILE
from holdfast.state.paths import printable
from holdfast.storage.atomic import make_folders
from holdfast.storage.descriptors import close_reading
from holdfast.storage.places import is_url
from holdfast.storage.source import status_of

if TYPE_CHECKING:
    from holdfast.runs.lease import RunLease

_LIMIT = 4096
_BUSY = (errno.EACCES, errno.EAGAIN)
_held: dict[tuple[int, int], RunLock] = {}
"""Locks of this process by (device, inode) of the lock file."""
_guard = threading.Lock()


class Holder(msgspec.Struct, frozen=True):
    """Who writes a run: what the lock file says.

    Attributes:
        pid: process id.
        host: name of its machine.
        since: when it took the lock, ISO 8601 in UTC.
    """

    pid: int
    host: str
    since: str


class RunLock:
    """The right to write a run, from its creation to :meth:`release`; also a context manager.

    Args:
        root: the run's folder; created when missing.

    Raises:
        RunLocked: another process, or this one, writes the run; the message names the holder.
        StorageError: the lock file can't be opened, or the file system has no locks.

    Example:
        >>> with RunLock("runs/a"):
        ...     pass  # nobody else writes runs/a meanwhile
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.path = os.path.join(self.root, LOCK_FILE)
        self._pid = os.getpid()
        self._fd = -1
        make_folders(self.root)
        with _guard:
            self._take()

    @property
    def held(self) -> bool:
        """Whether this process holds the lock; False after release, and in a forked child."""
        return self._fd >= 0 and self._pid == os.getpid()

    def check(self) -> None:
        """Nothing to find out: the kernel takes a lock from nobody who lives."""

    def release(self) -> None:
        """Lets go of the run. Releasing twice, or in a forked child, changes nothing for the holder."""
        with _guard:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            for key in [key for key, lock in _held.items() if lock is self]:
                del _held[key]
            with contextlib.suppress(OSError):
                if self._pid == os.getpid():
                    os.ftruncate(fd, 0)  # nobody: the next reader must not see an old holder
            close_reading(fd)

    def _take(self) -> None:
        self._refuse_own()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise self._failed("opened", error) from error
        try:
            status = os.fstat(fd)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(fd)
            os.close(fd)
            if error.errno in _BUSY:
                raise self._locked(holder) from error
            raise self._failed("locked", error) from error
        self._fd = fd
        _held[status.st_dev, status.st_ino] = self
        self._sign()

    def _refuse_own(self) -> None:
        """Before opening: a second descriptor of the file would, when closed, drop the lock that this process has."""
        status = status_of(self.path, follow=True)
        if status is not None and (status.st_dev, status.st_ino) in _held:
            raise RunLocked(
                f"`{printable(self.root)}`: this process (pid {os.getpid()}) writes the run already; close the first "
                "Run before opening a second one on the same folder",
                file=self.root,
            )

    def _sign(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = msgspec.json.encode(Holder(os.getpid(), socket.gethostname(), now))
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
        except OSError:
            # The kernel's lock is what counts; the text only names its holder. A full disk must not stop a run here:
            # pruning, which makes room, needs the lock.
            return

    def _locked(self, holder: Holder | None) -> RunLocked:
        who = (
            f"pid {holder.pid} on {printable(holder.host[:200])} since {printable(holder.since[:50])}"
            if holder
            else "another process"
        )
        return RunLocked(
            f"`{printable(self.root)}`: {who} writes this run; stop it, or write to another folder", file=self.root
        )

    def _failed(self, verb: str, error: OSError) -> StorageError:
        return StorageError(f"`{printable(self.path)}`: can't be {verb}: {error.strerror}", file=self.path)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_run(root: str | os.PathLike[str]) -> RunLock | RunLease:
    """Takes the right to write a run: of a folder with the kernel's lock, of a store with an object.

    Raises: as :class:`RunLock` and :class:`~holdfast.runs.lease.RunLease`.
    """
    if not is_url(root):
        return RunLock(root)
    from holdfast.runs.lease import RunLease

    return RunLease(os.fspath(root))


def _read_holder(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, _LIMIT, 0), type=Holder)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # it is being written, or an older process left something else


def _start_afresh() -> None:
    """A forked child has its parent's table but not its locks, and maybe a guard that a lost thread held."""
    global _guard  # noqa: PLW0603 - the old one may never be released in the child
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_start_afresh)
