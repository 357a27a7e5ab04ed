"""Where bytes are read from: files, memory, streams and parts of them, all behind one small protocol."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

from holdfast.errors import ArgumentError, CorruptFile, NotFound, StorageError
from holdfast.storage.descriptors import Descriptor

VECTOR = 1024
"""Buffers that one preadv or pwritev takes: IOV_MAX of Linux and macOS."""


class ByteSource(Protocol):
    """Bytes that can be read at any offset, from any number of threads.

    Attributes:
        name: what messages call it; a file's path as the caller gave it.
    """

    name: str

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises CorruptFile where the source has fewer."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills ``buffer`` with the bytes from ``offset``. Raises CorruptFile where the source has fewer."""
        ...

    def close(self) -> None:
        """Lets go of the file. Closing twice is fine."""
        ...


_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def shown(name: str) -> str:
    """``name`` for a message: what could move a terminal's cursor or reverse text is escaped as in ``repr``."""
    if name.isprintable():
        return name
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in name)


def check_inside(name: str, size: int, offset: int, length: int) -> None:
    """Raises CorruptFile unless ``length`` bytes from ``offset`` lie inside a source of ``size`` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise CorruptFile(
            f"`{shown(name)}`: at byte {offset:,}: {length:,} bytes are wanted, the file ends at byte {size:,}; "
            "it is cut short or its header is wrong",
            file=name,
            offset=offset,
        )


class FilledSource(ABC):
    """A source that says how a buffer is filled; reading follows from that, and there is nothing to close."""

    name: str

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes in all."""

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills ``buffer`` with the bytes from ``offset``."""

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self.size, offset, length)  # before memory is taken for a length that lies
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def close(self) -> None:  # noqa: B027  # nothing to do is what it does
        """Nothing to let go of: what the bytes come from is the caller's."""


class FileSource:
    """A regular file, read with ``pread``: no shared position, so threads do not wait for each other.

    Args:
        file: a path, or an open descriptor (duplicated; the caller keeps its own).
        name: what messages call it; the path by default.

    Raises:
        NotFound: there is no such file.
        StorageError: it can't be opened, or is a folder, FIFO, socket or device.
        ArgumentError: the path holds a NUL.
    """

    def __init__(self, file: str | os.PathLike[str] | int, *, name: str | None = None) -> None:
        self.name = name or (f"descriptor {file}" if isinstance(file, int) else os.fspath(file))
        self._file = self._open(file)
        self._close = weakref.finalize(self, self._file.close)
        try:
            self._size = self._regular_size()
        except BaseException:
            self.close()
            raise

    def _open(self, file: str | os.PathLike[str] | int) -> Descriptor:
        try:
            return Descriptor(file, shown(self.name))
        except FileNotFoundError as error:
            raise NotFound(f"`{shown(self.name)}`: no such file", file=self.name) from error
        except OSError as error:
            raise self._failed("opened", error) from error
        except ValueError as error:
            raise ArgumentError(f"`{shown(self.name)}`: not a usable path: {error}", file=self.name) from error

    def _regular_size(self) -> int:
        try:
            with self._file as fd:
                status = os.fstat(fd)
        except OSError as error:
            raise self._failed("looked at", error) from error
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise StorageError(f"`{shown(self.name)}`: is {kind}, a regular file is wanted", file=self.name)

    def _failed(self, verb: str, error: OSError) -> StorageError:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "unknown error")
        return StorageError(f"`{shown(self.name)}`: can't be {verb}: {reason}", file=self.name)

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self._size, offset, length)
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self._file.closed:
            raise ArgumentError(f"`{shown(self.name)}`: read after it was closed", file=self.name)
        check_inside(self.name, self._size, offset, buffer.nbytes)
        rest = byte_view(buffer)
        try:
            with self._file as fd:
                while rest.nbytes:
                    count = os.preadv(fd, [rest], offset)
                    if count == 0:  # someone cut the file after it was opened
                        check_inside(self.name, min(offset, os.fstat(fd).st_size), offset, rest.nbytes)
                    offset += count
                    rest = rest[count:]
        except OSError as error:
            raise self._failed(f"read at byte {offset:,}", error) from error

    def close(self) -> None:
        self._close()


def remainder(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of ``buffers`` after a call that took or filled only the first ``done`` bytes."""
    for index, buffer in enumerate(buffers):
        if done < buffer.nbytes:
            return [buffer.cast("B")[done:], *buffers[index + 1 :]]
        done -= buffer.nbytes
    return []


class MemorySource:
    """Bytes that are in memory already; ``view`` is that memory.

    Args:
        data: anything with the buffer protocol, C-contiguous; not copied.
        name: what messages call it.

    Raises:
        ArgumentError: the memory is not contiguous.
    """

    def __init__(self, data: bytes | bytearray | memoryview | Any, name: str = "memory") -> None:
        self.name = name
        self.view = byte_view(data)

    @property
    def size(self) -> int:
        return self.view.nbytes

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self.size, offset, length)
        return bytes(self.view[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self.size, offset, buffer.nbytes)
        byte_view(buffer)[:] = self.view[offset : offset + buffer.nbytes]

    def close(self) -> None:
        """Nothing to let go of: the memory is the caller's."""


def byte_view(data: Any) -> memoryview:
    """The memory behind ``data`` as single bytes, not copied. Raises ArgumentError when it is not contiguous."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    if not view.c_contiguous:
        raise ArgumentError(f"memory with strides {view.strides} is not contiguous; copy it first")
    return memoryview(b"") if view.nbytes == 0 else view.cast("B")


class StreamSource(FilledSource):
    """A seekable binary file object, from its present position to its end.

    A lock guards the position that the object has; the caller must not move it meanwhile.

    Args:
        stream: an object with ``seek``, ``tell`` and ``readinto`` or ``read``.
        name: what messages call it; the object's ``name`` when it has one.

    Raises:
        ArgumentError: the object can't seek or is opened as text.
    """

    def __init__(self, stream: IO[bytes] | Any, *, name: str | None = None) -> None:
        own = getattr(stream, "name", None)
        self.name = name or (own if isinstance(own, str) else "stream")
        self._stream = stream
        self._lock = threading.Lock()
        try:
            self._start = stream.tell()
            stream.seek(0, os.SEEK_END)
            self._size = stream.tell() - self._start
            stream.seek(self._start)
            binary = isinstance(stream.read(0), bytes)
        except (AttributeError, OSError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"`{shown(self.name)}`: needs an open file object that can seek: {error}", file=self.name
            ) from error
        if not binary:
            raise ArgumentError(f"`{shown(self.name)}`: is opened as text; open it with mode 'rb'", file=self.name)

    @property
    def size(self) -> int:
        return max(self._size, 0)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self.size, offset, buffer.nbytes)
        rest = byte_view(buffer)
        with self._lock:
            try:
                self._stream.seek(self._start + offset)
                while rest.nbytes:
                    count = self._read_some(rest)
                    if count == 0:
                        check_inside(self.name, offset, offset, rest.nbytes)
                    offset += count
                    rest = rest[count:]
            except OSError as error:
                raise StorageError(
                    f"`{shown(self.name)}`: can't be read at byte {offset:,}: {error}", file=self.name, offset=offset
                ) from error

    def _read_some(self, rest: memoryview) -> int:
        if hasattr(self._stream, "readinto"):
            return self._stream.readinto(rest) or 0
        data = self._stream.read(min(rest.nbytes, 1 << 20))
        rest[: len(data)] = data
        return len(data)


class SubSource:
    """``length`` bytes of another source, from ``offset``. Closing it leaves the other source open.

    Raises:
        CorruptFile: the range reaches past the source.
    """

    def __init__(self, source: ByteSource, offset: int, length: int) -> None:
        check_inside(source.name, source.size, offset, length)
        self.name = source.name
        self.base = source
        self.offset = offset
        self._size = length

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self._size, offset, length)
        return self.base.read(self.offset + offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        self.base.read_into(self.offset + offset, buffer)

    def close(self) -> None:
        """Nothing to let go of: the source is the caller's."""


class MadeSource(FilledSource):
    """Bytes that are made when the first of them is asked for, and let go when all have been handed out.

    So a file of many compressed or rearranged tensors has one of them in memory for each reading thread, not all.
    Whoever reads twice pays twice.

    Args:
        name: what messages call it.
        size: bytes that ``make`` returns.
        make: makes them; called by one thread at a time.
    """

    def __init__(self, name: str, size: int, make: Callable[[], bytes | bytearray | memoryview]) -> None:
        self.name = name
        self._size = size
        self._make = make
        self._lock = threading.Lock()
        self._made: memoryview | None = None
        self._left = 0

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        with self._lock:
            if self._made is None:
                self._made = memoryview(self._make())
                self._left = self._size
            made = self._made
            self._left -= buffer.nbytes
            if self._left <= 0:
                self._made = None
        byte_view(buffer)[:] = made[offset : offset + buffer.nbytes]


def open_source(path: str | os.PathLike[str]) -> FileSource:
    """Opens a regular file for reading; see :class:`FileSource` for what is refused."""
    return FileSource(path)


def status_of(path: str | os.PathLike[str], *, follow: bool) -> os.stat_result | None:
    """What the system knows of a path, or of what a link leads to; None when there is nothing.

    Raises:
        StorageError: the system does not say; ``os.path.lexists`` and ``isdir`` would call that "no".
    """
    name = os.fspath(path)
    try:
        return os.stat(name, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise StorageError(f"`{shown(name)}`: can't be looked at: {error.strerror}", file=name) from error
    except ValueError:  # no file can have such a name
        return None
