"""One committed step, opened as a container."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from holdfast.errors import CorruptFile, NotFound
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.runs.entries import (
    ENTRIES_LIMIT,
    STATE_LIMIT,
    decode_entries,
    decode_state,
    owner_key,
)
from holdfast.runs.layout import ENTRIES, MANIFEST, STATE, data_folder, inside
from holdfast.runs.manifest import FileRecord, read_manifest, read_small
from holdfast.spec import Entry
from holdfast.state.paths import dotted, printable
from holdfast.storage.digest import check_digest
from holdfast.storage.places import is_folder, is_there, is_url, open_source
from holdfast.storage.source import ByteSource

_FAR = 8
"""Containers of a store that are asked for at a time."""


class Checkpoint(Container):
    """One step of a run, opened: manifest and entries are read and checked, tensors are not.

    Attributes:
        manifest: what the checkpoint is.
        data: the folder of its files.
        entries: one for each tensor, and one for each run of bytes that only views refer to.
    """

    format = "run-checkpoint"

    def __init__(self, folder: str) -> None:
        self.file = folder
        self.manifest = read_manifest(folder)
        self.data = data_folder(folder, self.manifest.data)
        self.entries = decode_entries(
            self._recorded(ENTRIES, ENTRIES_LIMIT), self.manifest.files, os.path.join(self.data, ENTRIES)
        )
        self._sources: dict[str, ByteSource] = {}
        try:
            self._each([name for name in self.manifest.files if name not in (ENTRIES, STATE)], self._open)
        except BaseException:
            self.close()
            raise
        self._tensors, self._segments = self._build()

    def _each(self, names: Sequence[str], do: Callable[[str], None]) -> None:
        """Does something with each container; in a store, where it takes a way there and back, several at a time."""
        if is_url(self.data):
            from holdfast.storage.workers import run_jobs

            run_jobs(names, do, _FAR)
        else:
            for name in names:
                do(name)

    def _open(self, name: str) -> None:
        self._sources[name] = _open_recorded(self.data, name, self.manifest.files[name])

    def _recorded(self, name: str, limit: int) -> bytes:
        """The bytes of one of the small files, checked against the manifest."""
        record = self.manifest.files.get(name)
        path = os.path.join(self.data, name)
        if record is None:
            raise CorruptFile(f"`{printable(self.file)}`: its manifest does not list {name}", file=self.file)
        data = read_small(self.data, name, limit)
        check_digest(data, record.digest, file=path)
        return data

    def _build(self) -> tuple[list[StoredTensor], list[Segment]]:
        segments: dict[Any, tuple[Segment, int]] = {}
        for entry in self.entries:
            if entry.alias_of is None and not entry.rectangles:
                name = printable(dotted(entry.path))
                segment = Segment(self._sources[entry.file], entry.offset, entry.length, name, entry.chunks)
                segments[owner_key(entry.path)] = (segment, entry.offset)
        stored = [segment for segment, _ in segments.values()]
        if any(entry.rectangles for entry in self.entries):
            self._assemble(segments)
        tensors = []
        for entry in self.entries:
            segment, start = segments[owner_key(entry.alias_of or entry.path)]
            tensors.append(
                StoredTensor(entry.spec, segment, entry.offset - start, entry.requires_grad, entry.live_stride)
            )
        return tensors, stored

    def _assemble(self, segments: dict[Any, tuple[Segment, int]]) -> None:
        """Adds the tensors that lie in rectangles to what is stored."""
        from holdfast.formats.rectangles import Assembled, Rectangle  # few checkpoints have any

        for entry in self.entries:
            if entry.rectangles:
                parts = []
                for number, offsets in entry.rectangles:
                    part = self.entries[number]
                    stored = StoredTensor(part.spec, segments[owner_key(part.path)][0])
                    parts.append(Rectangle(offsets, part.spec.shape, stored))
                source = Assembled(self.file, entry.spec, parts)
                segments[owner_key(entry.path)] = Segment(source, 0, source.size, printable(dotted(entry.path))), 0

    def document(self) -> Document:
        """The tree with a StoredTensor for each tensor; tied ones share their Segment.

        Raises:
            FormatError: state.json is damaged, or the header of a container.
        """
        self._check_heads()
        data = self._recorded(STATE, STATE_LIMIT)
        tree = decode_state(data, self._tensors.__getitem__, len(self._tensors), os.path.join(self.data, STATE))
        return Document(tree, self.manifest.objects, self.manifest.metadata)

    def _check_heads(self) -> None:
        """Headers are not needed here, since entries.json says it all; but who resumes is to know of every damage."""

        def check(name: str) -> None:
            source, record = self._sources[name], self.manifest.files[name]
            covered = record.size if record.head is None else record.head
            check_digest(source.read(0, covered), record.digest, file=source.name)

        self._each(list(self._sources), check)

    def segments(self) -> list[Segment]:
        """The bytes of every stored tensor with their chunk digests."""
        return list(self._segments)

    def tensors(self) -> list[tuple[Entry, StoredTensor]]:
        """Every tensor with its entry, in the order of the tree."""
        return list(zip(self.entries, self._tensors, strict=True))

    def close(self) -> None:
        """Closes the containers of the folder."""
        for source in self._sources.values():
            source.close()


@collector_paused
def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Opens a committed step, ``runs/a/step-00001000``; no tensor is read.

    Raises:
        NotFound: there is no such folder, or it holds no manifest: nothing was committed there.
        FormatError: the manifest or what it names is damaged or from a newer version.
        StorageError: a file can't be read.
    """
    path = os.fspath(folder)
    if not is_url(path) and not is_folder(path):
        raise NotFound(f"`{printable(path)}`: no such checkpoint folder", file=path)
    if not is_there(os.path.join(path, MANIFEST)):
        raise NotFound(f"`{printable(path)}`: has no {MANIFEST}: it is no committed checkpoint", file=path)
    return Checkpoint(path)


def _open_recorded(folder: str, name: str, record: FileRecord) -> ByteSource:
    source = open_source(inside(folder, name))
    if source.size == record.size:
        return source
    size = source.size
    source.close()
    raise CorruptFile(
        f"`{printable(source.name)}`: has {size:,} bytes, the manifest says {record.size:,}: "
        f"{'cut short' if size < record.size else 'it grew'}; holdfast verify says what is left",
        file=source.name,
        offset=min(size, record.size),
    )
