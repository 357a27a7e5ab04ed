"""One document as several files: ``model-00001-of-00004.safetensors`` and so on, and the index that tells them apart.

Names and index are those of the Hugging Face libraries (https://huggingface.co/docs/transformers/big_models), so what
reads a large model reads this folder. Each file has digests of its own tensors. What a flat dict of tensors can't say,
the tree, its plain values and who shares memory, stands in the index's metadata; see :mod:`holdfast.formats.index`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from holdfast.errors import ArgumentError, StorageError, UnsupportedValue
from holdfast.formats.base import INDEX_SUFFIX, Document
from holdfast.formats.index import INDEX_LIMIT, RECORD, TOTAL, encode_index
from holdfast.formats.packing import Packed, pack
from holdfast.formats.safetensors_writing import write_document
from holdfast.state.encoding import to_json
from holdfast.state.paths import printable
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.places import is_url
from holdfast.storage.source import status_of

INDEX = f"model.safetensors{INDEX_SUFFIX}"
_OURS = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")


class Cut(msgspec.Struct, frozen=True):
    """Into how many files a document goes: one of the two is given.

    Attributes:
        count: files, of about the same size.
        size: bytes that the tensors of one file may have; a larger tensor gets a file of its own.
    """

    count: int | None = None
    size: int | None = None


def write_shards(document: Document, folder: str, cut: Cut, check: Callable[[str], None]) -> tuple[int, int, list[str]]:
    """Writes a document as a folder of shards with an index. The folder appears whole or not at all.

    Args:
        document: what to write.
        folder: where. One that holds such shards and nothing else is exchanged for the new one, in one step.
        cut: into how many.
        check: is given the path of the index before the folder takes its place; when it raises, nothing is replaced.

    Returns:
        How many shards, their bytes with those of the index, and what the format has to say.

    Raises:
        ArgumentError: there are fewer tensors than shards, or the folder is in a store.
        StorageError: the name is taken by something else, or the disk failed; what was there before is intact.
        UnsupportedValue: a metadata key that the index needs, or more than an index holds.
    """
    target = _target(folder)
    for key in {RECORD, TOTAL} & document.metadata.keys():
        raise UnsupportedValue(f"metadata key {key!r} is one that an index of shards needs; rename it")
    packing = pack(document.tree)
    shards = list(divided(packing.entries, cut, folder))
    weight_map: dict[str, str] = {}
    size = 0
    with StagedFolder(*os.path.split(target), replace=True) as staged:
        for number, entries in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= dict.fromkeys((entry.name for entry in entries), name)
            with staged.file(name) as file:
                write_document(file, Document({entry.name: entry.leaf for entry in entries}))
            size += file.size
        references = packing.references
        index = encode_index(
            to_json(document.tree, lambda leaf: references[id(leaf)]),
            to_json(document.objects, lambda leaf: references[id(leaf)]),
            {TOTAL: sum(entry.length for entry in packing.entries), **document.metadata},
            weight_map,
        )
        if len(index) > INDEX_LIMIT:
            raise UnsupportedValue(
                f"`{printable(folder)}`: names and plain values take {len(index):,} bytes, an index has "
                f"{INDEX_LIMIT:,} at most; leave values out, or store the large ones as tensors"
            )
        staged.write_bytes(INDEX, index)
        check(os.path.join(staged.partial, INDEX))
        _refuse_taken(folder, target)  # once more: what was put there meanwhile is not ours to remove
        staged.commit()
    return len(shards), size + len(index), packing.notes


def _target(folder: str) -> str:
    if is_url(folder):
        raise ArgumentError(
            f"`{printable(folder)}`: shards are written into a folder of a disk, where it appears as a whole; a store "
            "takes a single file of any size",
            file=folder,
        )
    target = os.path.realpath(folder)
    _refuse_taken(folder, target)
    return target


def _refuse_taken(folder: str, target: str) -> None:
    if status_of(target, follow=False) is None:
        return
    if not os.path.isdir(target):
        raise StorageError(f"`{printable(folder)}`: is a file; shards need a folder, name another", file=folder)
    others = [name for name in sorted(os.listdir(target)) if name != INDEX and not _OURS.fullmatch(name)]
    if others:
        raise StorageError(
            f"`{printable(folder)}`: is a folder with other things in it, such as {printable(others[0])}; it is not "
            "replaced. Name another, and move the files",
            file=folder,
        )


def divided(entries: Sequence[Packed], cut: Cut, file: str) -> Iterator[Sequence[Packed]]:
    """The entries of each shard, in their order.

    Raises:
        ArgumentError: there are fewer than shards, or none.
    """
    count = cut.count
    if not entries or (count is not None and not 0 < count <= len(entries)):
        wanted = "shards" if count is None else f"{count:,} shards"
        raise ArgumentError(
            f"`{printable(file)}`: {wanted} of {len(entries):,} tensors: each has one at least, and none is cut",
            file=file,
        )
    lengths = [entry.length for entry in entries]
    begin = 0
    for end in _by_size(lengths, cut.size or 0) if count is None else _by_count(lengths, count):
        yield entries[begin:end]
        begin = end


def _by_size(lengths: Sequence[int], most: int) -> Iterator[int]:
    """Where each shard ends: before the tensor that would be too much."""
    size = 0
    for index, length in enumerate(lengths):
        if index and size + length > most:
            yield index
            size = 0
        size += length
    yield len(lengths)


def _by_count(lengths: Sequence[int], count: int) -> Iterator[int]:
    """Where each shard ends: as near as may be to its share of what is left."""
    end, rest = 0, sum(lengths)
    for left in range(count, 0, -1):
        size, first, most = 0, end, len(lengths) - left + 1
        while end < most and (end == first or (2 * size + lengths[end]) * left <= 2 * rest):
            size += lengths[end]
            end += 1
        rest -= size
        yield end
