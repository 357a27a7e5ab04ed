"""One step, written into a staged folder.

The order in the folder is containers, entries.json, state.json, manifest.json: the manifest names the digest of each
other file and stands last, so a folder with a good manifest is whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Document
from holdfast.formats.packing import Packed
from holdfast.formats.safetensors_writing import write_tensors
from holdfast.runs.entries import ENTRIES_LIMIT, STATE_LIMIT, encode_entries, encode_state
from holdfast.runs.layout import ENTRIES, MANIFEST, STATE
from holdfast.runs.manifest import MANIFEST_LIMIT, FileRecord, Manifest, encode
from holdfast.runs.placing import Groups, Stored, entries, place
from holdfast.runs.room import check_run_room
from holdfast.runs.shards import Shards
from holdfast.state.encoding import dumps
from holdfast.state.paths import printable
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import StagedStep

LIMITS = {ENTRIES: ENTRIES_LIMIT, STATE: STATE_LIMIT, MANIFEST: MANIFEST_LIMIT}
"""Bytes that readers take of each."""


def write_checkpoint(
    folder: StagedStep,
    document: Document,
    manifest: Manifest,
    *,
    groups: Groups | None = None,
    shards: Shards | None = None,
) -> Manifest:
    """Writes a document into a folder that is being staged; the caller commits it.

    Args:
        folder: where; nothing of it is visible before its ``commit``.
        document: the tree, one key for each object, and what is known of the objects.
        manifest: run, step, epoch, batch, time, metrics and environment; files, objects and metadata are filled in.
        groups: parts of objects that change less often than the rest and are worth files of their own.
        shards: what is known of the run's files; those that hold just what is to be written are linked.

    Returns:
        The manifest as it was written.

    Raises:
        StorageError: the disk is full, which is said before the first byte where it can be known, or failed.
        ArgumentError: the tree or the manifest can't be written.
        UnsupportedValue: entries or values take more bytes than are read.
    """
    placement = place(document.tree, groups)
    files: dict[str, FileRecord] = {}
    stored: dict[tuple[str, str], Stored] = {}
    same = {} if shards is None else shards.unchanged(placement.containers)
    fresh = (packed for file, packed in placement.containers.items() if file not in same)
    check_run_room(folder.parent, sum(entry.length for packed in fresh for entry in packed))
    for file, packed in placement.containers.items():
        shard = same.get(file)
        if shard is None:
            files[file] = _write_container(folder, file, packed, stored)
        else:
            linked = folder.share(shard.path, file)
            files[file] = msgspec.structs.replace(shard.record, links=shard.record.links + 1 if linked else 0)
            stored |= {(file, name): place for name, place in shard.stored.items()}
        if shards is not None:
            shards.prove(folder.partial, file)
    counter = iter(range(len(placement.members)))
    for name, data in (
        *((name, dumps(index)) for name, index in placement.indexes.items()),
        (ENTRIES, encode_entries(entries(placement, stored))),
        (STATE, encode_state(document.tree, lambda _: next(counter))),
    ):
        files[name] = write_small(folder, name, data)
    complete = msgspec.structs.replace(
        manifest, files=files, objects=document.objects, metadata=document.metadata, data=folder.data
    )
    write_small(folder, MANIFEST, encode(complete))
    return complete


def write_small(folder: StagedStep, name: str, data: bytes) -> FileRecord:
    """Adds one of the small files of a checkpoint, unless it is larger than what is read.

    Raises:
        UnsupportedValue: no reader would take it: there are too many tensors, or values beside them.
    """
    limit = LIMITS.get(name, len(data))
    if len(data) > limit:
        raise UnsupportedValue(
            f"`{printable(folder.path)}`: {name} would have {len(data):,} bytes, and {limit:,} are read at most: there "
            "are too many tensors, parts of tensors or values beside them for one checkpoint; nothing was committed"
        )
    folder.write_bytes(name, data)
    return FileRecord(len(data), digest_bytes(data))


def _write_container(
    folder: StagedStep, file: str, packed: Sequence[Packed], stored: dict[tuple[str, str], Stored]
) -> FileRecord:
    with folder.file(file, shard=True) as staged:
        written = write_tensors(staged, [(entry.name, entry.leaf) for entry in packed])
        for one in written:
            stored[file, one.name] = Stored(one.offset, one.length, one.chunks)
        head = min((one.offset for one in written), default=staged.size)
        header = staged.written()
        try:
            return FileRecord(staged.size, digest_bytes(header.read(0, head)), head)
        finally:
            header.close()
