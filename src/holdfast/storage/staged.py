"""One file while it is being written: reserved, filled in parallel, counted, fsynced."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence

from holdfast.errors import ArgumentError, StorageError
from holdfast.storage.requests import WriteRequest, Written, write_requests
from holdfast.storage.source import FileSource, shown
from holdfast.storage.syscalls import LOCAL, Syscalls

PARTIAL = ".partial"
"""How the names of what is not committed end; they begin with a dot."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DIRECT = 4 << 20
"""Bytes from which on a file is worth a second descriptor."""


@contextlib.contextmanager
def reported(
    path: str, doing: str, *, needed: int | None = None, kept: str = "what was there before is unchanged"
) -> Iterator[None]:
    """Turns an OSError of a step into a StorageError that says which file, which step, and what is still good."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            wanted = "" if needed is None else f"{needed:,} bytes were to be written, "
            reason = f"{reason}: {wanted}{_free(path)} bytes are free; make room and save again"
        raise StorageError(f"`{shown(path)}`: {doing} failed: {reason}; {kept}", file=path) from error


def refuse_gaps(path: str, ranges: Iterable[tuple[int, int]], size: int) -> None:
    """Raises ArgumentError unless ranges of (first byte, end) are all of a file's bytes, each once."""
    at = 0
    for start, end in sorted(ranges):
        if start != at and end > start:
            fault = "were never written" if start > at else "were written twice"
            raise ArgumentError(f"`{shown(path)}`: bytes {min(at, start):,} to {max(at, start):,} {fault}")
        at = max(at, end)
    if at != size:
        raise ArgumentError(f"`{shown(path)}`: bytes {at:,} to {size:,} were never written")


def partial_of(path: str) -> str:
    """Where the folder ``path`` is built, by whichever process, until it is committed."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(parent, f".{name}{PARTIAL}")


def _free(path: str) -> str:
    try:
        status = os.statvfs(os.path.dirname(path) or ".")
    except OSError:
        return "an unknown number of"
    return f"{status.f_bavail * status.f_frsize:,}"


@contextlib.contextmanager
def new_file(
    path: str, shown_path: str, *, shard: bool = False, durable: bool = True, syscalls: Syscalls = LOCAL
) -> Iterator[StagedFile]:
    """A new file, checked, fsynced and closed when the block ends.

    Args:
        path: where; there must be none yet.
        shown_path: what messages call it.
        shard: it is large and may become a file of other folders too, so it loses its write bits; and it is written
            past the page cache where the disk can do that.
        durable: whether it is on the medium when the block ends.
        syscalls: what changes the disk.
    """
    with reported(shown_path, "creating it"):
        fd = syscalls.open_new(path, 0o666)
    staged = StagedFile(shown_path, fd, direct=path if shard and durable else None, syscalls=syscalls)
    try:
        yield staged
        if shard:
            with reported(staged.path, "taking its write bits"):
                syscalls.chmod(path, os.fstat(staged.fd).st_mode & 0o444)
        staged.finish(durable)
    except BaseException:
        with contextlib.suppress(StorageError):
            staged.close()
        raise


class StagedFile:
    """One file that is being written and that nobody sees yet.

    Args:
        path: the name that it will have.
        fd: its descriptor.
        direct: the path that it has now, when it is to be written past the page cache where the disk can do that: it
            costs a fraction of the processor's time and leaves nothing to fsync, and is not in memory afterwards.
        syscalls: what changes the disk.

    Attributes:
        path: as given.
        fd: as given.
        size: its bytes, as told to :meth:`allocate`, else as far as was written.
    """

    def __init__(self, path: str, fd: int, *, direct: str | None = None, syscalls: Syscalls = LOCAL) -> None:
        self.path = path
        self.fd = fd
        self.size = 0
        self._syscalls = syscalls
        self._direct = direct
        self._direct_fd: int | None = None
        self._allocated = False
        self._ranges: list[tuple[int, int]] = []

    def allocate(self, size: int) -> None:
        """Reserves room for ``size`` bytes, once and before writing, so that a full disk shows at once.

        Raises:
            StorageError: there is no room.
            ArgumentError: it was called before, or too late.
        """
        if self._allocated or self._ranges or size < 0:
            raise ArgumentError(f"`{shown(self.path)}`: allocate({size:,}) must come once, before anything is written")
        with reported(self.path, "reserving room", needed=size):
            self._syscalls.allocate(self.fd, size)
        self.size = size
        self._allocated = True

    def write(self, requests: Sequence[WriteRequest], *, digest: bool = True, crc: bool = False) -> list[Written]:
        """Writes requests, in parallel, and digests them on the way; may be called several times.

        Args:
            requests: bytes and where they go; no byte of the file may be written twice.
            digest: whether to compute XXH3-128 digests of each 8 MiB.
            crc: whether to compute CRC-32s.

        Raises:
            StorageError: writing failed.
            ArgumentError: a request lies outside the allocated size.
        """
        ranges = [(request.offset, request.offset + request.size) for request in requests]
        end = max((end for _, end in ranges), default=0)
        if self._allocated and end > self.size:
            raise ArgumentError(f"`{shown(self.path)}`: a write up to byte {end:,}, {self.size:,} bytes were allocated")
        self.size = max(self.size, end)
        self._ranges.extend(ranges)
        if self._direct is not None and self.size >= _DIRECT:
            path, self._direct = self._direct, None
            with contextlib.suppress(OSError):  # a disk without such writes
                self._direct_fd = self._syscalls.open_direct(path)
        direct = self._direct_fd
        with reported(self.path, "writing", needed=self.size):
            return write_requests(self.fd, requests, digest=digest, crc=crc, direct=direct, syscalls=self._syscalls)

    def leave_empty(self, offset: int, size: int) -> None:
        """Lets ``size`` bytes be zeros that take no room on the disk, where nothing was allocated for them."""
        self._ranges.append((offset, offset + size))

    def written(self) -> FileSource:
        """What was written so far, to be read; the caller closes it."""
        return FileSource(self.fd, name=self.path)

    def finish(self, durable: bool) -> None:
        """Checks that every byte was written exactly once, fsyncs if ``durable``, and closes.

        Raises:
            ArgumentError: bytes were left out or written twice: the writer's own mistake.
            StorageError: fsync or close failed; some of the bytes may be lost.
        """
        refuse_gaps(self.path, self._ranges, self.size)
        if durable:
            with reported(self.path, "fsync", needed=self.size):
                self._syscalls.fsync(self.fd)
        self.close()

    def close(self) -> None:
        """Closes the descriptors. Closing twice is fine."""
        fds = [fd for fd in (self._direct_fd, self.fd) if fd is not None and fd >= 0]
        self._direct_fd, self.fd = None, -1
        with contextlib.ExitStack() as closing:  # all of them, also when one fails
            for fd in fds:
                closing.callback(self._close, fd)

    def _close(self, fd: int) -> None:
        with reported(self.path, "closing", needed=self.size):
            self._syscalls.close(fd)
