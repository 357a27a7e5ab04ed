"""Shards that did not change: linked from the checkpoint before, so that a frozen backbone is written once.

A file is linked when the bytes that are to be written have the digests that the earlier checkpoint recorded of it. The
file itself must be known to be good: this process wrote it and saw it flushed, or has read it and compared every
digest, and it has not been touched since. Nine links in a row at most; the tenth is a fresh copy, so that no damaged
inode is in more than ten checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from holdfast.errors import FormatError, NotFound, StorageError
from holdfast.formats.packing import Packed
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.manifest import FileRecord
from holdfast.runs.placing import Stored
from holdfast.spec import CHUNK, Entry
from holdfast.storage.digest import digest_bytes
from holdfast.storage.requests import Check, verify_ranges
from holdfast.storage.source import open_source

MOST_LINKS = 9
"""Times in a row that a file is linked before it is written anew."""
_SAMPLES = 8
"""Tensors of a container that are looked at first: what is trained differs at once."""

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
        newest: the folder of the newest checkpoint, None while there is none.
    """

    def __init__(self, newest: str | None = None) -> None:
        self.newest = newest
        self._good: set[_Identity] = set()

    def unchanged(self, containers: Mapping[str, Sequence[Packed]]) -> dict[str, Shard]:
        """Those of ``containers`` that the newest checkpoint holds, to the byte, in a good file of the same name."""
        if self.newest is None:
            return {}
        try:
            checkpoint = open_checkpoint(self.newest)
        except (FormatError, NotFound, StorageError):
            return {}  # damaged, or set aside meanwhile: everything is written anew
        with checkpoint:
            found = {file: self._same(checkpoint, file, packed) for file, packed in containers.items()}
        return {file: shard for file, shard in found.items() if shard is not None}

    def prove(self, folder: str, file: str) -> None:
        """Remembers a file as good: it was just written here and flushed, or is a link to a good one."""
        self._good.add(_identity(os.path.join(folder, file)))

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


def _identity(path: str) -> _Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
