"""One step that several processes wrote: each its own container, one of them entries, state and manifest.

A tensor that no rank has whole becomes an entry without bytes that names the entries of its rectangles. Pure but for
the last function, which writes into the folder that was staged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from holdfast.errors import ArgumentError
from holdfast.formats.base import Document
from holdfast.formats.boxes import Box, check_cover
from holdfast.runs.entries import check_entries, encode_entries, encode_state
from holdfast.runs.layout import ENTRIES, MANIFEST, STATE
from holdfast.runs.manifest import FileRecord, Manifest, encode
from holdfast.runs.placing import Member, Placement, Stored, entries, unused_path
from holdfast.runs.writing import write_small
from holdfast.spec import Entry, Path, TensorSpec
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted
from holdfast.state.values import Tree
from holdfast.storage.joined import check_files
from holdfast.storage.places import StagedStep


class Piece(msgspec.Struct, frozen=True):
    """Bytes that one rank wrote: a tensor, or a rectangle of one.

    Attributes:
        key: of the tensor that they belong to; the same on every rank.
        file: the container in the checkpoint's folder.
        name: in that container.
        sizes: elements per dimension.
        offsets: of its first element in the tensor; None where it is the tensor, whole.
        stored: where it lies, with its digests.
    """

    key: str
    file: str
    name: str
    sizes: tuple[int, ...]
    offsets: tuple[int, ...] | None
    stored: Stored


class Wanted(msgspec.Struct, frozen=True):
    """The leaf of a tree that a tensor goes to; many may share one key.

    Attributes:
        key: of the tensor whose bytes it has.
        spec: what it is, whole.
        offset: bytes from the first one of that tensor.
        requires_grad: as saved.
        live_stride: as in :class:`holdfast.spec.Entry`.
    """

    key: str
    spec: TensorSpec
    offset: int = 0
    requires_grad: bool = False
    live_stride: tuple[int, ...] | None = None


class RankPart(msgspec.Struct, frozen=True):
    """What one rank wrote.

    Attributes:
        file: its container.
        record: of the container; None where it had nothing to write.
        pieces: that are in it.
    """

    file: str
    record: FileRecord | None
    pieces: tuple[Piece, ...] = ()


def rank_file(rank: int) -> str:
    """The container of a rank: ``rank-00001.safetensors``."""
    return f"rank-{rank:05d}.safetensors"


def sharded_entries(tree: Tree, parts: Sequence[RankPart], file: str) -> tuple[list[Entry], list[int]]:
    """The entries of a checkpoint, and for each leaf of the tree, in order, the number of its entry.

    Args:
        tree: its tensors are :class:`Wanted`.
        parts: what the ranks wrote.
        file: named in errors.

    Raises:
        ArgumentError: nobody wrote a tensor, or what was written does not cover it exactly.
    """
    pieces: dict[str, list[Piece]] = {}
    for part in parts:
        for piece in part.pieces:
            pieces.setdefault(piece.key, []).append(piece)
    taken: set[Path] = set()
    found = [(unused_path(path, taken), leaf) for path, leaf in leaves(tree)]
    members: list[Member] = []
    stored: dict[tuple[str, str], Stored] = {}
    cut: list[tuple[Path, Wanted]] = []
    places: list[tuple[bool, int]] = []
    for path, leaf in found:
        of_key = pieces.get(leaf.key, [])
        if of_key and ((len(of_key) == 1 and of_key[0].offsets is None) or not leaf.spec.numel):
            home = (of_key[0].file, of_key[0].name)
            stored[home] = of_key[0].stored
            members.append(Member(path, leaf.spec, home, leaf.offset, leaf.requires_grad, leaf.live_stride))
            places.append((True, len(members) - 1))
        else:
            _check_pieces(path, leaf, of_key, file)
            cut.append((path, leaf))
            places.append((False, len(cut) - 1))
    result = entries(Placement({}, members, {}), stored)
    numbers = _add_cut(cut, pieces, result)
    return result, [index if whole else numbers[index] for whole, index in places]


def _check_pieces(path: Path, leaf: Wanted, of_key: Sequence[Piece], file: str) -> None:
    name = dotted(path)
    if not of_key or any(piece.offsets is None for piece in of_key):
        count = f"{len(of_key)} ranks have all of it" if of_key else "no rank wrote it"
        raise ArgumentError(f"`{file}`: `{name}`: {count}: the ranks do not save the same state", file=file, path=name)
    check_cover(leaf.spec.shape, [Box(piece.offsets or (), piece.sizes) for piece in of_key], name, file)


def _add_cut(
    cut: Sequence[tuple[Path, Wanted]], pieces: Mapping[str, Sequence[Piece]], result: list[Entry]
) -> list[int]:
    """Adds the entries of tensors in rectangles, then those of the rectangles; returns the numbers of the first."""
    start, owners = len(result), dict[str, Path]()
    for path, leaf in cut:
        owner = owners.setdefault(leaf.key, path)
        spec = TensorSpec(leaf.spec.dtype, leaf.spec.shape)
        alias = None if owner is path else owner
        result.append(Entry(path, spec, "", "", 0, spec.nbytes, (), alias, None, leaf.requires_grad))
    for index, (path, leaf) in enumerate(cut):
        if owners[leaf.key] is not path:
            continue
        rectangles = []
        for piece in pieces[leaf.key]:
            offsets = piece.offsets or ()
            rectangles.append((len(result), offsets))
            spec = TensorSpec(leaf.spec.dtype, piece.sizes)
            place = (piece.file, piece.name, piece.stored.offset, piece.stored.length, piece.stored.chunks)
            result.append(Entry((*path, box_text(offsets, piece.sizes)), spec, *place))
        result[start + index] = msgspec.structs.replace(result[start + index], rectangles=tuple(rectangles))
    return [start + index for index in range(len(cut))]


def box_text(offsets: Sequence[int], sizes: Sequence[int]) -> str:
    """A rectangle as Python would index it: ``0:4,8:16``."""
    return ",".join(f"{at}:{at + size}" for at, size in zip(offsets, sizes, strict=True))


def write_sharded(folder: StagedStep, document: Document, manifest: Manifest, parts: Sequence[RankPart]) -> Manifest:
    """Writes entries, state and manifest behind the containers that the ranks have written and flushed.

    Args:
        folder: where the containers are; the caller commits it.
        document: its tensors are :class:`Wanted`.
        manifest: as in :func:`holdfast.runs.writing.write_checkpoint`.
        parts: what the ranks wrote.

    Raises:
        StorageError: the disk failed, or a rank's container is not what it said.
        ArgumentError: the ranks did not write the same state.
        UnsupportedValue: entries or values take more bytes than are read.
    """
    files = {part.file: part.record for part in parts if part.record is not None}
    check_files(folder.partial, {file: record.size for file, record in files.items()})
    found, numbers = sharded_entries(document.tree, parts, folder.path)
    check_entries(found, files, os.path.join(folder.path, ENTRIES))  # what no reader would take is not committed
    order = iter(numbers)
    for name, content in (
        (ENTRIES, encode_entries(found)),
        (STATE, encode_state(document.tree, lambda _: next(order))),
    ):
        files[name] = write_small(folder, name, content)
    complete = msgspec.structs.replace(
        manifest, files=files, objects=document.objects, metadata=document.metadata, data=folder.data
    )
    write_small(folder, MANIFEST, encode(complete))
    return complete
