"""Shards that did not change: linked from an earlier checkpoint, so that a frozen backbone is not written each time.

A file is linked when the bytes that are to be written have the digests that the earlier checkpoint recorded of it. The
file itself must be known to be good: this process wrote it and saw it flushed, or has read it and compared every
digest, and it has not been touched since.

One damaged inode must not take all checkpoints. So two in a row never share one, a shard of a run lies on the disk
twice, and after nine links in a row it is written anew. A run that keeps one checkpoint only has nothing to lose by a
link to the one that is about to go.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from holdfast.errors import FormatError, NotFound, StorageError
from holdfast.formats.packing import Packed
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.layout import parse_step, step_name
from holdfast.runs.manifest import FileRecord
from holdfast.runs.placing import SPLIT, Stored
from holdfast.spec import CHUNK, Entry
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import names_in, open_source
from holdfast.storage.requests import Check, verify_ranges

MOST_LINKS = 9
"""Times in a row that a file is linked before it is written anew."""
_SAMPLES = 8
"""Tensors of a container that are looked at first: what is trained differs at once."""
_EARLIER = 4
"""Checkpoints that are looked at for a file to link."""

_Identity = tuple[int, int, int, int]
"""Device, inode, size and time of the last write: what a file is as long as nobody writes it."""


class Shard(msgspec.Struct, frozen=True):
    """A container of an earlier checkpoint that holds just what is to be written.

    Attributes:
        path: where it is.
        record: what its manifest says of it.
        stored: by name, where each tensor lies in it.
    """

    path: str
    record: FileRecord
    stored: dict[str, Stored]


class Shards:
    """What a run's writer knows of its files.

    Args:
        root: the run's folder.
        single: whether the run keeps one checkpoint only.
    """

    def __init__(self, root: str, *, single: bool = False) -> None:
        self._root = root
        self._single = single
        self._good: set[_Identity] = set()

    def unchanged(self, containers: Mapping[str, Sequence[Packed]]) -> dict[str, Shard]:
        """Those of ``containers`` that an earlier checkpoint holds, to the byte, in a good file of the same name.

        Small ones are left out: a file of their own costs less than the risk of sharing one.
        """
        large = {file: packed for file, packed in containers.items() if sum(one.length for one in packed) >= SPLIT}
        steps = sorted((step for name in names_in(self._root) if (step := parse_step(name)) is not None), reverse=True)
        folders = [os.path.join(self._root, step_name(step)) for step in steps[:_EARLIER]]
        found: dict[str, Shard] = {}
        with contextlib.ExitStack() as closing:

            @functools.cache
            def opened(folder: str) -> Checkpoint | None:
                try:
                    checkpoint = open_checkpoint(folder)
                except (FormatError, NotFound, StorageError):
                    return None  # damaged, or set aside meanwhile
                closing.callback(checkpoint.close)
                return checkpoint

            for file, packed in large.items():
                for folder in self._linkable(folders, file):
                    checkpoint = opened(folder)
                    shard = None if checkpoint is None else self._same(checkpoint, file, packed)
                    if shard is not None:
                        found[file] = shard
                        break
        return found

    def _linkable(self, folders: Sequence[str], file: str) -> list[str]:
        """The folders whose file of this name may get another link, one for each inode, newest first."""
        inodes: dict[tuple[int, int], str] = {}
        for folder in folders:
            identity = _identity(os.path.join(folder, file))
            if identity is not None:
                inodes.setdefault(identity[:2], folder)
        return [folder for folder in inodes.values() if self._single or folder != folders[0]]

    def prove(self, folder: str, file: str) -> None:
        """Remembers a file as good: it was just written here and flushed, or is a link to a good one."""
        identity = _identity(os.path.join(folder, file))
        if identity is not None:
            self._good.add(identity)

    def _same(self, checkpoint: Checkpoint, file: str, packed: Sequence[Packed]) -> Shard | None:
        record = checkpoint.manifest.files.get(file)
        if record is None or record.head is None or record.links >= MOST_LINKS:
            return None
        entries = {entry.name: entry for entry in checkpoint.entries if entry.file == file and entry.alias_of is None}
        if len(entries) != len(packed) or not all(_alike(one, entries.get(one.name)) for one in packed):
            return None
        sample = packed[:: max(1, len(packed) // _SAMPLES)]
        if _differ(_check(one, entries[one.name], CHUNK) for one in sample):
            return None
        if _differ(_check(one, entries[one.name], one.length) for one in packed):
            return None
        path = os.path.join(checkpoint.file, file)
        if not self._is_good(path, record, list(entries.values())):
            return None
        stored = {name: Stored(entry.offset, entry.length, entry.chunks) for name, entry in entries.items()}
        return Shard(path, record, stored)

    def _is_good(self, path: str, record: FileRecord, entries: Sequence[Entry]) -> bool:
        identity = _identity(path)
        if identity is None:
            return False
        if identity not in self._good:
            source = open_source(path)
            try:
                if digest_bytes(source.read(0, record.head or 0)) != record.digest:
                    return False
                if _differ(Check(source, entry.offset, entry.length, entry.chunks) for entry in entries):
                    return False
            finally:
                source.close()
            self._good.add(identity)
        return True


def _alike(packed: Packed, entry: Entry | None) -> bool:
    """Whether an entry of an earlier checkpoint is the same tensor, apart from its values."""
    if entry is None or packed.length != entry.length:
        return False
    return (packed.dtype, packed.shape) == (entry.spec.dtype, entry.spec.shape)


def _check(packed: Packed, entry: Entry, length: int) -> Check:
    """The comparison of the first ``length`` bytes that are to be written with what was recorded before."""
    length = min(length, packed.length)
    return Check(packed.source, packed.start, length, entry.chunks[: -(-length // CHUNK)], name=packed.name)


def _differ(checks: Iterable[Check]) -> bool:
    return bool(verify_ranges(list(checks)))


def _identity(path: str) -> _Identity | None:
    """None when there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
