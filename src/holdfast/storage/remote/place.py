"""A store as a place for files and runs.

A folder of a store is only the beginning of a name, so nothing can be renamed as a whole. The files of a checkpoint go
under a key that nobody else uses, and then one small object with a fixed key makes them a checkpoint. Of all who write
that object at once, the store lets one through.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager

from holdfast.errors import ArgumentError, HoldfastError, NotFound, StorageError
from holdfast.storage.places import ATTEMPT, COMMIT, STEP, Kind, StrPath
from holdfast.storage.remote.source import RemoteSource
from holdfast.storage.remote.store import Store, split_url, store_of
from holdfast.storage.remote.upload import StagedObject
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import ByteSource, shown

_SMALL = 64 << 20


def store_place(url: str) -> StorePlace:
    """The place that a URL leads to. Raises as :func:`~holdfast.storage.remote.store.store_of`."""
    return StorePlace(store_of(url)[0])


class StorePlace:
    """One bucket of an object store; paths are URLs."""

    whole = False

    def __init__(self, store: Store) -> None:
        self.store = store

    def kind(self, path: str) -> Kind | None:
        key = _key(path)
        if key and self.store.head(key) is not None:
            return "file"
        folders, objects = self.store.list(key)
        return "folder" if folders or objects else None

    def source(self, path: str) -> ByteSource:
        return RemoteSource(self.store, _object(path))

    def names(self, folder: str) -> list[str]:
        folders, objects = self.store.list(_key(folder))
        if not folders and not objects:
            raise NotFound(f"`{shown(folder)}`: no such folder", file=folder)
        return sorted({*folders, *objects})

    def write(self, path: str, data: bytes) -> None:
        self.store.put(_object(path), data)

    def remove(self, path: str) -> None:
        key = _object(path)
        if self.store.head(key) is None:
            raise NotFound(f"`{shown(path)}`: no such object", file=path)
        self.store.delete([key])

    @contextlib.contextmanager
    def stage(self, path: str, *, durable: bool) -> Iterator[StagedObject]:
        key = _object(path)
        staged = StagedObject(path)
        yield staged
        self.store.upload(key, staged.size, staged.blocks())

    def stage_step(self, root: str, name: str) -> StoredStep:
        return StoredStep(self, root, name)

    def add(self, partial: str, name: str, *, durable: bool) -> AbstractContextManager[StagedObject]:
        return self.stage(f"{partial}/{name}", durable=durable)  # a key of that writing of the step: nobody else's

    def sizes(self, folder: str) -> dict[str, int]:
        return self.store.sizes(_key(folder))

    def remove_step(self, path: str, data: str) -> None:
        files = f"{os.path.dirname(path)}/{_data(data, path)}"
        self.remove(f"{path}/{COMMIT}")  # with it the checkpoint is gone; what is left has no name any more
        self.clear(files)

    def move_step(self, path: str, target: str) -> None:
        data, _ = self.store.get(_object(f"{path}/{COMMIT}"), _SMALL)
        if not self.store.create(_object(f"{target}/{COMMIT}"), data):
            raise StorageError(f"`{shown(target)}`: exists already; `{shown(path)}` stays", file=path)
        self.store.delete([_object(f"{path}/{COMMIT}")])  # its files stay where they are: the manifest says where

    def sweep(self, root: str, used: Collection[str]) -> None:
        start = len(_key(root)) + 1
        doomed = []
        for key in self.store.walk(_key(root)):
            step, _, rest = key[start:].partition("/")
            attempt, mark, _ = rest.partition("/")
            if mark and STEP.fullmatch(step) and ATTEMPT.fullmatch(attempt) and f"{step}/{attempt}" not in used:
                doomed.append(key)
        self.store.delete(doomed)

    def clear(self, folder: str) -> None:
        """Removes every object below a folder."""
        self.store.delete(list(self.store.walk(_object(folder))))


class StoredStep:
    """The files of one checkpoint on their way into a store, under a key of their own.

    Attributes: as :class:`~holdfast.storage.places.StagedStep`.
    """

    def __init__(self, place: StorePlace, root: str, name: str) -> None:
        self.parent = root.rstrip("/")
        self.path = f"{self.parent}/{name}"
        self.data = f"{name}/{secrets.token_hex(8)}"
        self.partial = f"{self.parent}/{self.data}"
        self._place = place
        self._manifest = b""
        self._state = "open"
        if place.store.head(_object(f"{self.path}/{COMMIT}")) is not None:
            raise self._taken()

    @contextlib.contextmanager
    def file(self, name: str, *, shard: bool = False) -> Iterator[StagedObject]:
        """A new file of the checkpoint, sent when the block ends well."""
        self._writable()
        path = f"{self.partial}/{name}"
        try:
            with self._place.stage(path, durable=True) as staged:
                yield staged
        except BaseException:
            self._state = "failed"
            raise

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Adds a small file; the one that commits is kept until :meth:`commit`."""
        if name == COMMIT:
            self._manifest = bytes(data)
            return
        with self.file(name) as staged:
            staged.write([WriteRequest(0, data)], digest=False)

    def share(self, existing: StrPath, name: str) -> bool:
        """Never: objects have no links."""
        raise ArgumentError(f"`{shown(os.fspath(existing))}`: a store shares no bytes between objects")

    def commit(self) -> None:
        """Writes the manifest unless there is one.

        Raises:
            StorageError: another writer committed this step, or the store failed; nothing of ours is visible then.
        """
        self._writable()
        key = _object(f"{self.path}/{COMMIT}")
        try:
            if not self._place.store.create(key, self._manifest) and not self._is_ours(key):
                raise self._taken()
        except StorageError:
            if not self._is_ours(key):
                self.abandon()
                raise
        except BaseException:
            self._state = "unknown"  # an interrupt: it may be committed, so nothing is removed
            raise
        self._state = "committed"

    def _is_ours(self, key: str) -> bool:
        """Whether what is committed is what we sent: an answer may have been lost, and the request repeated."""
        with contextlib.suppress(HoldfastError):
            return self._place.store.get(key, _SMALL)[0] == self._manifest
        return False

    def _taken(self) -> StorageError:
        return StorageError(
            f"`{shown(self.path)}`: exists already: another writer committed it; nothing of this one was kept",
            file=self.path,
        )

    def abandon(self) -> None:
        """Removes what was sent; what can't be removed is left for the next writer of this run."""
        if self._state in ("open", "failed"):
            self._state = "abandoned"
            with contextlib.suppress(HoldfastError):
                self._place.clear(self.partial)

    def _writable(self) -> None:
        if self._state == "failed":
            raise StorageError(f"`{shown(self.path)}`: a file of it failed; it can't be committed", file=self.path)
        if self._state != "open":
            raise ArgumentError(f"`{shown(self.path)}`: is {self._state} already", file=self.path)

    def __enter__(self) -> StoredStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


def _key(url: str) -> str:
    return split_url(url)[1]


def _object(url: str) -> str:
    """The key of an object. Raises ArgumentError for a bucket alone."""
    key = _key(url)
    if not key:
        raise ArgumentError(f"`{shown(url)}`: is a whole bucket; name an object in it: {shown(url)}/PATH", file=url)
    return key


def _data(data: str, path: str) -> str:
    """``data``, when it is a folder that only this checkpoint uses."""
    step, _, attempt = data.partition("/")
    if not STEP.fullmatch(step) or not ATTEMPT.fullmatch(attempt):
        raise StorageError(f"`{shown(path)}`: its files are not where this version puts them; remove them yourself")
    return data
