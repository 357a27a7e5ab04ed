"""Folders of ``torch.distributed.checkpoint``, read without unpickling and without a process group.

A folder has ``.metadata`` and files such as ``__0_0.distcp``, one or more for each rank. The metadata is a pickle of
four dicts: what each tensor is and which rectangles it is cut into; at which path of the tree each name belongs; and in
which file, at which byte, each rectangle and each other value is: there lies a complete file of ``torch.save``. torch
itself unpickles the metadata, so a planted one runs code; here it is taken apart like any other pickle. Source:
``torch/distributed/checkpoint/metadata.py``, ``filesystem.py`` and ``_traverse.py`` of torch 2.13.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from typing import Any

from holdfast.errors import CorruptFile, FormatError, RefusedFile, UnknownFormat
from holdfast.formats import torchzip
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.dcp_metadata import Index, Place, TensorEntry, nested, read_index
from holdfast.formats.index import open_beside
from holdfast.formats.rectangles import Assembled, Rectangle, check_cover
from holdfast.formats.tensors import TensorPlacer
from holdfast.spec import TensorSpec
from holdfast.state.paths import printable
from holdfast.state.values import Tree
from holdfast.storage.source import FileSource, SubSource, shown

NAME = "dcp"
METADATA = ".metadata"
METADATA_LIMIT = torchzip.PICKLE_LIMIT

_OF_ONE_RANK = re.compile(r"__\d+\.metadata")


def is_folder(names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is such a checkpoint, whole or not."""
    return METADATA in names or f"{METADATA}.tmp" in names or any(_OF_ONE_RANK.fullmatch(name) for name in names)


def open_folder(folder: str) -> DistributedCheckpoint:
    """Opens a checkpoint; reads its metadata and the headers of everything that it names.

    Args:
        folder: the folder.

    Raises:
        NotFound: a file that the metadata names is missing.
        CorruptFile: the metadata is damaged, or it and the files disagree.
        RefusedFile: a name leads out of the folder, or a limit is passed.
        UnknownFormat: the save was never finished, or its items are of a kind that is not read.
    """
    names = os.listdir(folder)
    if METADATA not in names:
        reason = (
            "the save was not finished: .metadata.tmp was never renamed; use an older checkpoint"
            if f"{METADATA}.tmp" in names
            else "each rank wrote metadata of its own (use_collectives=False), and nothing says what belongs together; "
            "save it again with use_collectives=True"
        )
        raise UnknownFormat(f"`{printable(folder)}`: a distributed checkpoint without .metadata: {reason}", file=folder)
    return DistributedCheckpoint(folder)


class DistributedCheckpoint(Container):
    """An opened folder."""

    format = NAME

    def __init__(self, folder: str) -> None:
        self.file = folder
        self._metadata = os.path.join(folder, METADATA)
        self._segments: list[Segment] = []
        self._sources: dict[str, FileSource] = {}
        self._placer = TensorPlacer(self._metadata)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._tree = self._read(read_index(_metadata_bytes(self._metadata), self._metadata))
            stack.pop_all()

    def document(self) -> Document:
        """The tree as it was given to ``save``; keys of dicts that were numbers are text, as torch left them."""
        return Document(self._tree)

    def segments(self) -> list[Segment]:
        """The bytes of every item, with their CRCs."""
        return list(self._segments)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def _read(self, index: Index) -> Tree:
        counts: dict[str, int] = {}
        for place in index.places.values():
            counts[place.file] = counts.get(place.file, 0) + 1
        for file, count in counts.items():
            self._sources[file] = open_beside(self._metadata, file, count)
        flat = {
            name: self._tensor(name, entry, index) if entry is not None else self._item(name, index.places, None)
            for name, entry in index.entries.items()
        }
        return nested(flat, index.paths, self._metadata)

    def _tensor(self, name: str, entry: TensorEntry, index: Index) -> StoredTensor:
        parts = []
        for offsets, sizes in entry.chunks:
            leaf = self._item(name, index.places, offsets)
            if type(leaf) is not StoredTensor or (leaf.spec.dtype, leaf.spec.shape) != (entry.dtype, sizes):
                found = leaf.spec if type(leaf) is StoredTensor else "no plain tensor"
                raise self._lie(name, f"the rectangle at {offsets} is {found}, .metadata says {sizes} {entry.dtype}")
            parts.append(Rectangle(offsets, sizes, leaf))
        check_cover(entry.shape, parts, name, self._metadata)
        if len(parts) == 1:
            only = parts[0].leaf
            return StoredTensor(only.spec, only.segment, only.offset, entry.requires_grad)
        spec = TensorSpec(entry.dtype, entry.shape)
        segment = Segment(Assembled(self.file, spec, parts), 0, spec.nbytes, name)
        return self._placer.place(segment, (spec.dtype, spec.shape, None), 0, entry.requires_grad)

    def _item(self, name: str, places: dict[Any, Place], offsets: tuple[int, ...] | None) -> Tree:
        """What a file of ``torch.save`` inside one of the files holds."""
        place = places.get((name, offsets))
        if place is None:
            raise self._lie(
                name, f"nothing says where {'it' if offsets is None else f'its part at {offsets}'} is stored"
            )
        source = self._sources[place.file]
        if place.offset + place.length > source.size:
            raise CorruptFile(
                f"`{shown(source.name)}`: `{shown(name)}` should end at byte {place.offset + place.length:,}, the file "
                f"ends at {source.size:,}: cut short",
                file=source.name,
                path=name,
                offset=source.size,
            )
        part = SubSource(source, place.offset, place.length)
        if place.transforms or not torchzip.sniff(part.read(0, min(4, part.size))):
            how = f"went through {place.transforms}" if place.transforms else "is no file of torch.save"
            raise UnknownFormat(
                f"`{shown(source.name)}`: at byte {place.offset:,}: `{shown(name)}` {how}, which is not read; load it "
                "with torch.distributed.checkpoint and save it without extensions, as SerializationFormat.TORCH_SAVE",
                file=source.name,
                path=name,
                offset=place.offset,
            )
        try:
            return self._opened(part, name, source, place.offset)
        except FormatError as reason:
            # the message counts bytes from the item's first
            note = f"{reason} (in the item of `{shown(name)}`, which begins at byte {place.offset:,})"
            raise type(reason)(note, file=source.name, path=name, offset=place.offset) from None

    def _opened(self, part: SubSource, name: str, source: FileSource, offset: int) -> Tree:
        item = torchzip.open(part, source.name)
        tree = item.document().tree
        for segment in item.segments():
            segment.name = f"{name}: {segment.name}"
            if segment.source is part:  # messages then count from the file's first byte
                segment.source, segment.offset = source, segment.offset + offset
            self._segments.append(segment)
        return tree

    def _lie(self, name: str, what: str) -> CorruptFile:
        return CorruptFile(
            f"`{shown(self._metadata)}`: `{shown(name)}`: {what}: corrupt", file=self._metadata, path=name
        )


def _metadata_bytes(path: str) -> bytes:
    with contextlib.closing(FileSource(path)) as source:
        if source.size > METADATA_LIMIT:
            raise RefusedFile(f"`{shown(path)}`: has {source.size:,} bytes, the limit is {METADATA_LIMIT:,}", file=path)
        return source.read(0, source.size)
