"""Descriptors of files that are read: so many are open at a time, whatever the number of files.

A process may have a thousand descriptors or so, and a checkpoint of 4,096 ranks has as many files. So beyond a number
the one that was used longest ago is closed, and opened again when it is needed. Up to that number a file stays open:
who opened it can read it to its end, also when it is replaced or deleted meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections import OrderedDict

from holdfast.errors import StorageError

MOST = 256
"""Descriptors that are kept at most; a quarter of what the process may have, where that is less."""
_LEAST = 8
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: opening a FIFO that nobody writes would wait for ever
_FULL = (errno.EMFILE, errno.ENFILE)


class Descriptor:
    """One file that is read. A context manager: in its block it is open, and gives the descriptor.

    Args:
        file: a path, or an open descriptor (duplicated, and kept open until it is closed here).
        name: what messages call it, fit to be printed.

    Attributes:
        closed: whether it was closed for good.

    Raises:
        OSError: it can't be opened; in the block also: it was deleted.
        StorageError: in the block: it is another file than it was.
    """

    def __init__(self, file: str | os.PathLike[str] | int, name: str) -> None:
        self.closed = False
        self._name = name
        self._users = 0
        self._seen: tuple[int, ...] | None = None
        self._path = None if isinstance(file, int) else os.path.abspath(file)
        with _POOL.guard:
            self._fd = os.dup(file) if isinstance(file, int) else _POOL.open(os.fspath(file))
        if self._path is not None:
            _POOL.admit(self)

    def __enter__(self) -> int:
        with _POOL.guard:
            if self._fd < 0 and not self.closed:
                self._open_again()
            self._users += 1
            if self._path is not None:
                _POOL.admit(self)
            return self._fd

    def __exit__(self, *_: object) -> None:
        with _POOL.guard:
            self._users -= 1
            if self.closed:
                self.let_go()

    def close(self) -> None:
        """Closes it for good, once nobody reads it. Closing twice is fine."""
        with _POOL.guard:
            self.closed = True
            _POOL.forget(self)
            self.let_go()

    def let_go(self) -> bool:
        """Closes the descriptor, unless it is in use; whether it did."""
        if self._users or self._fd < 0:
            return False
        if not self.closed:
            try:
                self._seen = _identity(self._fd)
            except OSError:  # it could not be told from another, later
                return False
        fd, self._fd = self._fd, -1
        close_reading(fd)
        return True

    def _open_again(self) -> None:
        fd = _POOL.open(self._path or "")
        if _identity(fd) != self._seen:
            close_reading(fd)
            raise StorageError(
                f"`{self._name}`: was replaced or written to after it was opened; open it again", file=self._path
            )
        self._fd = fd


def _identity(fd: int) -> tuple[int, ...]:
    """What a file is as long as nobody writes it."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def close_reading(fd: int) -> None:
    """Closes a descriptor through which nothing was written: if that fails, nothing is lost."""
    with contextlib.suppress(OSError):
        os.close(fd)


class _Pool:
    """The descriptors of this process that may be closed, the one used longest ago first."""

    def __init__(self) -> None:
        self.guard = threading.RLock()  # a collection of garbage may close a file in the middle of any line below
        self._open: OrderedDict[int, Descriptor] = OrderedDict()

    def admit(self, one: Descriptor) -> None:
        """Notes that a descriptor is used now, and makes room for it."""
        with self.guard:
            self._open[id(one)] = one
            self._open.move_to_end(id(one))
            if len(self._open) > _LEAST and len(self._open) > _limit():
                self._close_idle(len(self._open) - _limit(), but=one)

    def forget(self, one: Descriptor) -> None:
        self._open.pop(id(one), None)

    def open(self, path: str) -> int:
        """Opens a path; where the process has no descriptor left, closes those that nobody uses first."""
        try:
            return os.open(path, _FLAGS)
        except OSError as error:
            if error.errno not in _FULL or not self._close_idle(len(self._open)):
                raise
        return os.open(path, _FLAGS)

    def _close_idle(self, count: int, but: Descriptor | None = None) -> int:
        """Closes up to ``count`` that nobody uses; returns how many it did."""
        closed = 0
        for one in list(self._open.values()):
            if closed == count:
                break
            if one is not but and one.let_go():
                self.forget(one)
                closed += 1
        return closed


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(_LEAST, min(MOST, soft // 4))


_POOL = _Pool()


def _renew_guard() -> None:
    _POOL.guard = threading.RLock()  # a thread that is not here any more may have held it


os.register_at_fork(after_in_child=_renew_guard)
