"""Where runs live: small protocols, one per verb, two places that speak them, and wrappers that sit in between.

A key is a relative path with slashes: ``step-00001000/manifest.json``. Readers of a run need :class:`Get` and
:class:`List` only, so they work on anything that can do these two.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Protocol, TypeVar

from holdfast.errors import ArgumentError, NotFound, RefusedFile, StorageError
from holdfast.storage.atomic import StagedFolder, remove_folder, write_bytes
from holdfast.storage.source import ByteSource, FileSource, MemorySource, shown

Result = TypeVar("Result")


class Get(Protocol):
    """Reads what is stored."""

    def source(self, key: str) -> ByteSource:
        """Opens a file. Raises NotFound, StorageError, RefusedFile."""
        ...

    def read(self, key: str, limit: int) -> bytes:
        """A whole small file. Raises RefusedFile when it has more than ``limit`` bytes, and as :meth:`source`."""
        ...


class List(Protocol):
    """Names what is stored."""

    def list(self, prefix: str) -> list[str]:
        """The sorted names of files and folders directly in one folder; "" is the top. Raises NotFound."""
        ...


class Put(Protocol):
    """Stores small files, each as one step."""

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces a file. Raises StorageError."""
        ...


class Delete(Protocol):
    """Removes."""

    def delete(self, key: str) -> None:
        """Removes a folder with all in it. Raises NotFound, StorageError."""
        ...


class Backend(Get, List, Put, Delete, Protocol):
    """All four verbs."""


def check_key(key: str) -> str:
    """Returns ``key``. Raises RefusedFile unless it is a plain relative path that stays inside its folder."""
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise RefusedFile(f"{key[:200]!a}: is not a plain relative path; it could lead out of its folder", file=key)
    return key


def contained(root: str, key: str) -> str:
    """The path of ``key`` in the folder ``root``, after following links.

    Raises:
        RefusedFile: it is not a plain relative path, or a link on the way leads out of ``root``.
    """
    top = os.path.realpath(root)
    path = os.path.realpath(os.path.join(top, check_key(key)))
    if not path.startswith(os.path.join(top, "")):
        raise RefusedFile(f"`{shown(os.path.join(root, key))}`: is a link that leads out of `{shown(root)}`", file=key)
    return path


def read_small(source: ByteSource, limit: int) -> bytes:
    """All bytes of ``source``. Raises RefusedFile, before reading, when these are more than ``limit``."""
    if source.size > limit:
        raise RefusedFile(
            f"`{shown(source.name)}`: has {source.size:,} bytes, the limit for such a file is {limit:,}",
            file=source.name,
        )
    return source.read(0, source.size)


class LocalBackend:
    """A folder of this machine.

    Args:
        root: the folder; need not exist yet.
        durable: fsync what is put.
    """

    def __init__(self, root: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.root = os.fspath(root)
        self._durable = durable

    def source(self, key: str) -> ByteSource:
        return FileSource(contained(self.root, key), name=os.path.join(self.root, key))

    def read(self, key: str, limit: int) -> bytes:
        source = self.source(key)
        try:
            return read_small(source, limit)
        finally:
            source.close()

    def list(self, prefix: str) -> list[str]:
        path = contained(self.root, prefix) if prefix else self.root
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError as error:
            raise NotFound(f"`{shown(path)}`: no such folder", file=path) from error
        except OSError as error:
            raise StorageError(f"`{shown(path)}`: can't be listed: {error.strerror}", file=path) from error

    def put(self, key: str, data: bytes) -> None:
        write_bytes(contained(self.root, key), data, durable=self._durable)

    def stage(self, key: str) -> StagedFolder:
        """A folder that appears under ``key`` when it is committed."""
        parent, name = os.path.split(contained(self.root, key))
        return StagedFolder(parent, name, durable=self._durable)

    def delete(self, key: str) -> None:
        remove_folder(os.path.join(self.root, check_key(key)))


class MemoryBackend:
    """Files in a dict; for tests and for what must not touch a disk."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {check_key(key): data for key, data in (files or {}).items()}

    def source(self, key: str) -> ByteSource:
        if check_key(key) not in self.files:
            raise NotFound(f"`{shown(key)}`: no such file", file=key)
        return MemorySource(self.files[key], name=key)

    def read(self, key: str, limit: int) -> bytes:
        return read_small(self.source(key), limit)

    def list(self, prefix: str) -> list[str]:
        start = f"{check_key(prefix)}/" if prefix else ""
        names = {key[len(start) :].split("/")[0] for key in self.files if key.startswith(start)}
        if not names and prefix:
            raise NotFound(f"`{shown(prefix)}`: no such folder", file=prefix)
        return sorted(names)

    def put(self, key: str, data: bytes) -> None:
        self.files[check_key(key)] = bytes(data)

    def delete(self, key: str) -> None:
        doomed = [name for name in self.files if name.startswith(f"{check_key(key)}/")]
        if not doomed:
            raise NotFound(f"`{shown(key)}`: no such folder", file=key)
        for name in doomed:
            del self.files[name]


class _Wrapper(ABC):
    """A backend in front of another: every verb, and every read of a source it opened, goes through :meth:`around`."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @abstractmethod
    def around(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        """Does, counts, repeats or refuses ``call``."""

    def source(self, key: str) -> ByteSource:
        return _WrappedSource(self.around("source", key, lambda: self.inner.source(key)), key, self)

    def read(self, key: str, limit: int) -> bytes:
        return self.around("read", key, lambda: self.inner.read(key, limit))

    def list(self, prefix: str) -> list[str]:
        return self.around("list", prefix, lambda: self.inner.list(prefix))

    def put(self, key: str, data: bytes) -> None:
        self.around("put", key, lambda: self.inner.put(key, data))

    def delete(self, key: str) -> None:
        self.around("delete", key, lambda: self.inner.delete(key))


class _WrappedSource:
    def __init__(self, inner: ByteSource, key: str, wrapper: _Wrapper) -> None:
        self.name = inner.name
        self._inner = inner
        self._key = key
        self._around = wrapper.around

    @property
    def size(self) -> int:
        return self._inner.size

    def read(self, offset: int, length: int) -> bytes:
        return self._around("source.read", self._key, lambda: self._inner.read(offset, length))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._around("source.read", self._key, lambda: self._inner.read_into(offset, buffer))

    def close(self) -> None:
        self._inner.close()


class ReadOnly(_Wrapper):
    """Refuses to put and delete."""

    def around(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        if verb in ("put", "delete"):
            raise StorageError(f"`{shown(key)}`: {verb} refused, this store is opened for reading only", file=key)
        return call()


class Counting(_Wrapper):
    """Counts calls by verb in ``calls``, for tests of what reads how often."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()

    def around(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        self.calls[verb] += 1
        return call()


class Faulty(_Wrapper):
    """Fails on purpose: the calls whose numbers (from 1, over all verbs) are in ``failing``."""

    def __init__(self, inner: Backend, failing: set[int]) -> None:
        super().__init__(inner)
        self.failing = failing
        self.count = 0

    def around(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        self.count += 1
        if self.count in self.failing:
            raise StorageError(f"`{shown(key)}`: {verb} failed on purpose (call {self.count})", file=key)
        return call()


class Retrying(_Wrapper):
    """Tries failed reads and lists again. Writes are never repeated: a failed fsync can't be healed by another.

    Args:
        inner: the backend.
        attempts: how often in all.
        wait: seconds before the second attempt; doubled for each further one.
        sleep: what waits.
    """

    def __init__(
        self, inner: Backend, *, attempts: int = 3, wait: float = 0.1, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(inner)
        if attempts < 1:
            raise ArgumentError(f"attempts={attempts}: at least 1 is needed")
        self._attempts = attempts
        self._wait = wait
        self._sleep = sleep

    def around(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        attempts = 1 if verb in ("put", "delete") else self._attempts
        for attempt in range(1, attempts):
            try:
                return call()
            except StorageError:
                self._sleep(self._wait * 2 ** (attempt - 1))
        return call()
