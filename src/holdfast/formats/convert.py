"""One file as another, or as several: checked, written, read again and compared before it takes its place.

Tensors are streamed from file to file through small blocks. What the new format can't hold is listed and refused,
unless the caller drops it by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, RefusedFile, UnsupportedValue
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.damage import verify_segments
from holdfast.formats.detect import open_container
from holdfast.formats.index import ShardedContainer, open_index, users_metadata
from holdfast.formats.lost import Lost, listed
from holdfast.formats.npz_names import arrays_of
from holdfast.formats.packing import clusters
from holdfast.formats.proof import array_differences, differences, shared_groups
from holdfast.formats.tensors import needed_bytes
from holdfast.formats.writing import Destination, format_for, shown_name, write_document
from holdfast.spec import Path
from holdfast.state.dropping import dropped, refuse_unmatched
from holdfast.state.flatten import leaves, map_leaves, seen_parts
from holdfast.state.paths import dotted, matches, printable
from holdfast.state.values import Opaque, Tree, Typed
from holdfast.storage.source import ByteSource

if TYPE_CHECKING:
    from holdfast.formats.sharding import Cut

SHARDED = ShardedContainer.format
"""What several files are called: a format beside those of one file."""
ROWS = ("safetensors", SHARDED)
"""Formats of named rows of bytes with a record of all else."""


class ConvertReport(msgspec.Struct, frozen=True):
    """What one conversion wrote, after it was read again and found equal.

    Attributes:
        file: where, as the caller named it.
        format: what was written: ``pt``, ``safetensors``, ``npz`` or ``torch-legacy``; ``sharded`` for several files.
        tensors: how many tensors the tree has, aliases included.
        bytes: size of the file, or of all of them.
        seconds: from the call to the commit.
        shared: dotted paths of tensors that lie in one memory.
        renamed: dotted path to the name that a plain reader of the file finds instead.
        dropped: dotted paths of what was left out, as asked for.
        notes: what a reader of the file should know.
        shards: files that the tensors went into.
    """

    file: str
    format: str
    tensors: int
    bytes: int
    seconds: float
    shared: list[list[str]] = []
    renamed: dict[str, str] = {}
    dropped: list[str] = []
    notes: list[str] = []
    shards: int = 1


def convert_container(
    container: Container,
    f: Destination,
    *,
    format: str | None = None,  # noqa: A002  (the word users know from other libraries)
    drop: Sequence[str] = (),
    cut: Cut | None = None,
) -> ConvertReport:
    """Writes what an open container holds as one file, or as a folder of shards, and proves it equal.

    Args:
        container: any format that is read; the caller closes it.
        f: a path or an object with ``write``; replaced only when the proof holds.
        format: as in :func:`format_for`.
        drop: globs of dotted paths to leave out; ``metadata.KEY`` names a text of the user.
        cut: into how many files, in a folder ``f``; None for one file.

    Returns:
        What was written.

    Raises:
        UnsupportedValue: lists everything that the format can't hold and that ``drop`` does not name.
        CorruptFile: the source is damaged.
        ArgumentError: a glob matches nothing or an element of a list; an unknown format.
        RefusedFile: the source is nested past what Python's stack takes from here.
        StorageError: writing failed; what was there before is intact.
    """
    try:
        name = format_for(f, format) if cut is None else _sharded(f, format)
        return _converted(container, f, name, drop, cut)
    except RecursionError:
        file = container.file
        raise RefusedFile(f"`{printable(file)}`: is nested too deep to be converted from here", file=file) from None


def _sharded(f: Destination, wanted: str | None) -> str:
    """The name of the format for shards, whose destination is a folder."""
    if wanted not in (None, "safetensors"):
        raise ArgumentError(f"shards are safetensors files; leave format={wanted!r} out, or the shards")
    if not isinstance(f, str | os.PathLike):
        raise ArgumentError(f"shards are written into a folder; give its path, not a {type(f).__name__}")
    return SHARDED


def _converted(container: Container, f: Destination, name: str, drop: Sequence[str], cut: Cut | None) -> ConvertReport:
    begin = time.perf_counter()
    document, left_out = _without(container, drop)
    _refuse_lost(_lost(document, name), shown_name(f), name)
    stored = list(leaves(document.tree))
    notes = _verified([leaf for _, leaf in stored])
    document, spared = _trimmed(document)
    proof = _Proof(document, shown_name(f), name)
    if cut is None:
        count, (size, told) = 1, write_document(document, f, name, check=proof.hold)
    else:
        from holdfast.formats.sharding import write_shards  # what stages folders is loaded by who needs it

        count, size, told = write_shards(document, shown_name(f), cut, proof.hold_index)
    if spared:
        notes.append(f"{spared:,} bytes of the source belong to no tensor and were left behind")
    shared = [list(group) for group in shared_groups(document.tree)]
    return ConvertReport(
        file=shown_name(f),
        format=name,
        tensors=len(stored),
        bytes=size,
        seconds=time.perf_counter() - begin,
        shared=shared,
        renamed=proof.renamed,
        dropped=left_out,
        notes=[*notes, *told, *_plainer(document, name, shared=bool(shared))],
        shards=count,
    )


def _without(container: Container, drop: Sequence[str]) -> tuple[Document, list[str]]:
    """The document without what is to be left out, and what that was."""
    document = container.document()
    container.check(document)
    tree, names = dropped(document.tree, drop)
    metadata = {}
    for key, text in users_metadata(container, document).items():
        label = f"metadata.{key}"
        if any(matches((label,), glob) for glob in drop):
            names.append(label)
        else:
            metadata[key] = text
    kept = [dotted(path) for path, _ in leaves(tree)] + [f"metadata.{key}" for key in metadata]
    refuse_unmatched(drop, names, kept, container.file)
    return Document(tree, document.objects, metadata), names


def _lost(document: Document, name: str) -> list[Lost]:
    """What is known from the outset to have no place in a format."""
    if name == "npz":
        return arrays_of(document)[1]
    if name in ROWS:
        return []
    lost = [Lost(f"metadata.{key}", "metadata") for key in document.metadata if name == "torch-legacy"]
    return lost + _objects(document.tree)


def _objects(tree: Tree) -> list[Lost]:
    """Objects of classes that are not rebuilt; a file of torch would have to name their code."""
    found: list[Lost] = []
    stack: list[tuple[Path, Tree]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        if type(node) is Opaque:
            found.append(Lost(dotted(path), f"an object of class {node.type_name}"))
        else:
            stack.extend(seen_parts(path, node))
    return sorted(found, key=lambda one: one.name)


def _refuse_lost(lost: Sequence[Lost], file: str, name: str) -> None:
    if not lost:
        return
    first = printable(lost[0].name)
    raise UnsupportedValue(
        f"`{printable(file)}`: {name} can't carry {listed(lost)}. Nothing was written. Leave them out by name or glob, "
        f"drop=['{first}', ...] or --drop '{first}', or convert to another format",
        file=file,
        path=lost[0].name,
    )


def _verified(stored: Sequence[StoredTensor]) -> list[str]:
    """Checks the source's bytes; what has neither digest nor CRC is said."""
    segments = [segment for leaf in stored for segment in _beneath(leaf.segment)]
    unverified = verify_segments(segments)
    return [f"{unverified:,} tensors of the source carry no digest and could not be verified"] if unverified else []


def _beneath(segment: Segment) -> list[Segment]:
    """The stored bytes that a segment is computed from, which have the digests; itself when it is stored."""
    parts = getattr(segment.source, "segments", None)
    return [segment] if parts is None else [stored for part in parts() for stored in _beneath(part)]


def _trimmed(document: Document) -> tuple[Document, int]:
    """The document with a segment for each group of tensors that overlap, and how many bytes no tensor uses."""
    members: dict[int, list[tuple[str, StoredTensor]]] = {}
    for path, leaf in leaves(document.tree):
        members.setdefault(id(leaf.segment), []).append((dotted(path), leaf))
    placed: dict[int, StoredTensor] = {}
    spared = 0
    for group in members.values():
        whole, used = group[0][1].segment, 0
        parts = list(clusters(group))
        for part in parts:
            low = min(leaf.offset for _, leaf in part)
            high = max(leaf.offset + needed_bytes(leaf.spec) for _, leaf in part)
            used += high - low
            fits = len(parts) == 1 and (low, high) == (0, whole.length)
            segment = whole if fits else _part(whole, low, high)
            for _, leaf in part:
                placed[id(leaf)] = msgspec.structs.replace(leaf, segment=segment, offset=leaf.offset - low)
        spared += max(whole.length - used, 0)
    return Document(
        map_leaves(document.tree, lambda leaf: placed[id(leaf)]), document.objects, document.metadata
    ), spared


def _part(whole: Segment, low: int, high: int) -> Segment:
    return Segment(
        whole.source, whole.offset + low, high - low, whole.name, location=whole.location, swapped=whole.swapped
    )


def _plainer(document: Document, name: str, *, shared: bool) -> list[str]:
    """What is not kept beside values and bits."""
    notes: list[str] = []
    if name != "npz":
        return notes
    kinds = {leaf.requires_grad for _, leaf in leaves(document.tree)}
    if shared:
        notes.append("tensors that lie in one memory are stored once for each name")
    if True in kinds or document.objects or type(document.tree) is Typed:
        notes.append("npz keeps neither requires_grad nor versions of modules nor records of objects")
    return notes


class _Proof:
    """The second reading.

    Args:
        document: what was written.
        file: where.
        name: of the format.
    """

    def __init__(self, document: Document, file: str, name: str) -> None:
        self._document = document
        self._file = file
        self._name = name
        self.renamed: dict[str, str] = {}

    def hold(self, written: ByteSource) -> None:
        """Reads what was written, from its first byte, and compares all of it with the source.

        Raises:
            UnsupportedValue: values came back as others.
            CorruptFile: a tensor's bytes did.
        """
        self._compare(open_container(written, self._file).document())

    def hold_index(self, path: str) -> None:
        """The same of an index and its shards."""
        with open_index(path, open_container) as container:
            self._compare(container.document())

    def _compare(self, found: Document) -> None:
        compare = array_differences if self._name == "npz" else differences
        document = self._document
        if self._name == "torch-legacy":
            document = Document(document.tree)
        lost = compare(document, found)
        damaged = [one.name for one in lost if one.why == "its bytes differ"]
        if damaged:
            raise CorruptFile(
                f"`{printable(self._file)}`: read again, `{printable(damaged[0])}` differs from the source"
                f"{f' and {len(damaged) - 1} more do' if len(damaged) > 1 else ''}: memory or disk failed, or the "
                "source was changed meanwhile. Nothing was replaced; try again",
                file=self._file,
                path=damaged[0],
            )
        _refuse_lost(lost, self._file, self._name)
        self.renamed = self._other_names(found.tree)

    def _other_names(self, tree: Tree) -> dict[str, str]:
        """Tensors that a plain reader finds under another name than their path."""
        if self._name not in (*ROWS, "npz"):
            return {}
        entries = {leaf.segment.name for _, leaf in leaves(tree)}
        shared = {name for group in shared_groups(tree) for name in group if group[0] in entries}
        named = ((dotted(path), leaf.segment.name) for path, leaf in leaves(tree))
        return {path: name for path, name in named if path != name and path not in shared}
