"""Every call by which holdfast changes a disk, one method each.

Nothing else in the package opens for writing, renames or deletes, so a test that subclasses :class:`Syscalls` sees,
stops or fails every single step of a save.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: renameat2(2)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_FULL_FSYNC: int | None = getattr(
    fcntl, "F_FULLFSYNC", None
)  # macOS: its plain fsync leaves bytes in the drive's cache


class Syscalls:
    """The operating system, as writers see it. Methods raise OSError as the calls beneath them do."""

    def open_new(self, path: str, mode: int) -> int:
        """Creates a file that must not exist yet and opens it for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def open_direct(self, path: str) -> int:
        """Opens a file a second time for writing past the page cache, where the system has that."""
        return os.open(path, os.O_WRONLY | _DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)

    def allocate(self, fd: int, size: int) -> None:
        """Makes the file ``size`` bytes long and reserves the room, so that a full disk shows before the first byte."""
        reserve = getattr(os, "posix_fallocate", None)
        if reserve is not None and size > 0:
            try:
                reserve(fd, 0, size)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        os.ftruncate(fd, size)

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        """Writes ``buffers`` one after the other from ``offset``; returns how many bytes were taken, maybe fewer."""
        return os.pwritev(fd, buffers, offset)

    def fsync(self, fd: int) -> None:
        """Returns when the file's bytes are on the medium."""
        if _FULL_FSYNC is not None:
            fcntl.fcntl(fd, _FULL_FSYNC)
        else:
            os.fsync(fd)

    def close(self, fd: int) -> None:
        """Closes a descriptor of :meth:`open_new`."""
        os.close(fd)

    def mkdir(self, path: str) -> None:
        """Creates one folder."""
        os.mkdir(path)

    def rename(self, source: str, target: str) -> None:
        """Gives ``source`` the name ``target``, in place of what had it."""
        os.replace(source, target)

    def exchange(self, one: str, other: str) -> None:
        """Lets two names change places in one step; ENOSYS or EINVAL where the system or the disk has no such thing."""
        _exchange(one, other)

    def link(self, source: str, target: str) -> None:
        """Gives the file ``source`` a second name."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """Removes a file's name."""
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        """Removes an empty folder."""
        os.rmdir(path)

    def chmod(self, path: str, mode: int) -> None:
        """Sets permission bits."""
        os.chmod(path, mode)

    def fsync_folder(self, path: str) -> None:
        """Returns when the names in the folder are on the medium."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # POSIX: EINVAL says that this file system has no such thing for folders
                raise
        finally:
            os.close(fd)


class NotExchanged(OSError):
    """The system did not let two names change places."""


def _exchange(one: str, other: str) -> None:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise NotExchanged(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        code = ctypes.get_errno()
        raise NotExchanged(code, os.strerror(code))


LOCAL = Syscalls()
"""The real one."""
