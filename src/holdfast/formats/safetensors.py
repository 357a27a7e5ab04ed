"""The safetensors container: a JSON header and the bytes behind it (https://github.com/huggingface/safetensors#format).

::

    8 bytes    N, the length of the header, little-endian
    N bytes    JSON: {"__metadata__": {str: str}, NAME: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}}
    the rest   row-major little-endian bytes; the offsets cover them exactly: no hole, no overlap

Our record is the metadata key ``holdfast``, beside the usual ``format: pt``. It holds the tree, the digests and what
safetensors lacks, and begins with a digest of the whole header, so every byte of such a file is covered. The record
stands first in the header: the place of the digest is fixed, and it is written as zeros for its own computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.errors import ArgumentError, UnknownFormat, UnsupportedValue
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.packing import Packed, pack
from holdfast.formats.safetensors_header import (
    HEADER_LIMIT,
    RESERVED,
    Count,
    Header,
    HeaderEntry,
    Shape,
    by_place,
    corrupt,
    read_header,
    shown,
)
from holdfast.formats.tensors import needed_bytes
from holdfast.spec import BY_SAFETENSORS, CHUNK, DTYPES, TensorSpec
from holdfast.state.encoding import dumps, from_json, to_json
from holdfast.state.paths import printable
from holdfast.storage.atomic import StagedFile
from holdfast.storage.digest import digest_bytes
from holdfast.storage.requests import WriteRequest, Written
from holdfast.storage.source import ByteSource

NAME = "safetensors"
SUFFIXES: tuple[str, ...] = (".safetensors",)

VERSION = 0

_ALIGNMENT = 64
"""Data begins at a multiple of this many bytes, so that a mapped file can be used in place."""
_RECORD = "holdfast"
_NO_HEX = "0" * 32
_NO_DIGEST = f"xxh3-128:{_NO_HEX}"
_RECORD_START = f'{{"holdfast":{VERSION},"digest":"'
_HEADER_START = b'{"__metadata__":{"holdfast":' + dumps(_RECORD_START)[:-1]
_DIGEST = slice(len(_HEADER_START), len(_HEADER_START) + len(_NO_DIGEST))


class _Record(msgspec.Struct):
    """Our record. ``chunks`` joins the hex digests of all entries in the order of their bytes."""

    holdfast: int
    digest: str
    chunks: str
    tree: Any
    objects: Any


def sniff(head: bytes) -> bool:
    """Whether a file that begins with ``head`` looks like safetensors: a length, then the brace of a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= HEADER_LIMIT


@collector_paused
def open(source: ByteSource, file: str) -> SafetensorsContainer:  # noqa: A001 - a Format's verb
    """Reads and checks the header.

    Args:
        source: the file's bytes.
        file: what messages call it.

    Raises:
        CorruptFile: the header is cut short, or says what can't be true of this file.
        RefusedFile: the header is larger than ``HEADER_LIMIT`` bytes.
        UnknownFormat: a dtype that this version does not know.
    """
    return SafetensorsContainer(source, file)


# ---- reading ---------------------------------------------------------------------------------------------------------


class SafetensorsContainer(Container):
    """An open safetensors file."""

    format = NAME

    def __init__(self, source: ByteSource, file: str) -> None:
        self.file = file
        self._source = source
        self._header = read_header(source, file)
        self._record = _checked_record(self._header, file)
        self.metadata = {
            key: text
            for key, text in self._header.metadata.items()
            if key != _RECORD and (key, text) != ("format", "pt")
        }
        self._tensors: dict[str, StoredTensor] | None = None

    def tensors(self) -> dict[str, StoredTensor]:
        """The entries by name in the order of the header, as any reader of the format sees them."""
        if self._tensors is None:
            chunks = self._chunks()
            found, data = {}, self._header.data
            specs: dict[tuple[str, tuple[int, ...]], TensorSpec] = {}  # models repeat few shapes: one spec for each
            for name, entry in self._header.entries.items():
                begin, end = entry.data_offsets
                known = None if chunks is None else chunks[name]
                segment = Segment(self._source, data + begin, end - begin, name, known)
                kind = entry.dtype, entry.shape
                spec = specs.get(kind)
                if spec is None:
                    spec = specs[kind] = TensorSpec(BY_SAFETENSORS[entry.dtype].name, entry.shape)
                found[name] = StoredTensor(spec, segment)
            self._tensors = found
        return self._tensors

    def _chunks(self) -> dict[str, tuple[str, ...]] | None:
        if self._record is None:
            return None
        joined, at, result = self._record.chunks, 0, {}
        for name, entry in by_place(self._header.entries):
            begin, end = entry.data_offsets
            stop = at + 32 * -(-(end - begin) // CHUNK)
            result[name] = tuple([joined[place : place + 32] for place in range(at, stop, 32)])
            at = stop
        if at != len(joined):
            wanted, found = at // 32, len(joined) // 32
            raise corrupt(self.file, f"its record has {found:,} chunk digests, its tensors have {wanted:,} chunks")
        return result

    @collector_paused
    def document(self) -> Document:
        """The tree: from our record when there is one, else a dict of the tensors by name."""
        tensors = self.tensors()
        if self._record is None:
            return Document(dict(tensors), metadata=self.metadata)
        file = self.file

        def leaf(reference: Any) -> StoredTensor:
            if type(reference) is str and reference in tensors:
                return tensors[reference]
            return _referred(reference, tensors, file)

        tree = from_json(self._record.tree, leaf, file)
        objects = from_json(self._record.objects, leaf, file)
        if type(objects) is not dict or any(type(value) is not dict for value in objects.values()):
            raise corrupt(file, "the objects in its record are not a dict of dicts")
        return Document(tree, objects, self.metadata)

    def segments(self) -> list[Segment]:
        """The bytes of each entry, with chunk digests when our record has them."""
        return [tensor.segment for tensor in self.tensors().values()]

    def close(self) -> None:
        self._source.close()


def _checked_record(checked: Header, file: str) -> _Record | None:
    header, metadata = checked.raw, checked.metadata
    text = metadata.get(_RECORD)
    if text is None:
        astray = next((key for key, value in metadata.items() if value.startswith(_RECORD_START)), None)
        if astray is not None:
            raise corrupt(file, f"its record stands under the name `{shown(astray)}`: damaged", 8)
        return None
    try:
        record = msgspec.json.decode(text, type=_Record)
    except (msgspec.DecodeError, RecursionError, ValueError) as reason:
        raise corrupt(file, f"its metadata key `{_RECORD}` is no record of ours: {str(reason)[:200]}", 8) from None
    if record.holdfast != VERSION:
        raise UnknownFormat(
            f"`{printable(file)}`: its record has version {record.holdfast}, this holdfast reads version {VERSION}; "
            "a newer holdfast wrote it",
            file=file,
        )
    found = digest_bytes(header[: _DIGEST.start] + _NO_DIGEST.encode() + header[_DIGEST.stop :])
    if not header.startswith(_HEADER_START) or record.digest != found:
        raise corrupt(
            file,
            f"its header has digest {found}, the record in it says {shown(record.digest)}: damaged, or rewritten by a "
            f"program that copied the metadata key `{_RECORD}`, which must then be left out",
            8,
        )
    return record


def _referred(reference: Any, tensors: dict[str, StoredTensor], file: str) -> StoredTensor:
    """A tensor from the long form of a reference, checked against the entry that holds its bytes."""
    try:
        name, dtype, shape, stride, offset, requires_grad, live = msgspec.convert(reference, _LONG)
        segment = tensors[name].segment
        spec = TensorSpec(dtype, shape, stride)
        itemsize = DTYPES[dtype].itemsize
    except (msgspec.ValidationError, KeyError) as reason:
        raise corrupt(file, f"its record refers to a tensor that is not there: {shown(str(reason))}") from None
    if any(steps is not None and len(steps) != len(shape) for steps in (stride, live)):
        raise corrupt(file, f"`{shown(name)}`: its record gives {len(shape)} dimensions and another count of strides")
    if offset % itemsize or offset + needed_bytes(spec) > segment.length:
        raise corrupt(
            file,
            f"`{shown(name)}`: its record places {spec} at byte {offset:,} of {segment.length:,}: outside",
        )
    return StoredTensor(spec, segment, offset, requires_grad, live)


_LONG = tuple[str, str, Shape, Shape | None, Count, bool, Shape | None]


# ---- writing ---------------------------------------------------------------------------------------------------------


class Placed(msgspec.Struct, frozen=True):
    """Where a tensor went.

    Attributes:
        name: its name in the file.
        offset: first byte, counted from the start of the file.
        length: bytes.
        chunks: one ``xxh3-128`` digest (hex) for each 8 MiB.
    """

    name: str
    offset: int
    length: int
    chunks: tuple[str, ...]


def write_tensors(
    staged: StagedFile, named: Sequence[tuple[str, StoredTensor]], metadata: Mapping[str, str] | None = None
) -> list[Placed]:
    """Writes tensors under the names given, without a record of ours.

    Args:
        staged: the file; nothing has been written to it yet.
        named: names and tensors; each segment yields the tensor's row-major bytes. A dtype that safetensors lacks is
            written as the bytes it consists of (uint8, one dimension).
        metadata: further keys of ``__metadata__``, beside ``format: pt``.

    Returns:
        One Placed for each tensor, in the order of ``named``.

    Raises:
        ArgumentError: a name stands twice or is ``__metadata__``.
        UnsupportedValue: the header would pass ``HEADER_LIMIT``.
    """
    names = {name for name, _ in named}
    if len(names) < len(named) or RESERVED in names:
        raise ArgumentError(f"`{printable(staged.path)}`: tensor names must be unique and not {RESERVED!r}")
    entries = [_row_major(name, tensor) for name, tensor in named]
    texts = {"format": "pt", **(metadata or {})}
    return _write(staged, entries, lambda _: texts)


def _row_major(name: str, tensor: StoredTensor) -> Packed:
    spec, start = tensor.spec, tensor.segment.offset + tensor.offset
    if DTYPES[spec.dtype].safetensors:
        return Packed(name, spec.dtype, spec.shape, tensor.segment.source, start, spec.nbytes)
    return Packed(name, "uint8", (spec.nbytes,), tensor.segment.source, start, spec.nbytes)


@collector_paused
def write(staged: StagedFile, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
    """Writes a document with our record: any safetensors reader finds its tensors by their dotted paths.

    Args:
        staged: the file; nothing has been written to it yet.
        document: what to write.
        top: not used by this format.

    Returns:
        ``{"notes": [...]}``: what a plain reader will find different: shared memory, dtypes that safetensors lacks.

    Raises:
        UnsupportedValue: a metadata key that the format or our record needs, or a header past ``HEADER_LIMIT``.
    """
    if _RECORD in document.metadata:
        raise UnsupportedValue(f"metadata key {_RECORD!r} is taken by the record that holdfast writes; rename it")
    packing = pack(document.tree)
    references = packing.references
    tree = to_json(document.tree, lambda leaf: references[id(leaf)])
    objects = to_json(document.objects, lambda leaf: references[id(leaf)])

    def texts(chunks: str) -> dict[str, str]:
        record = _Record(VERSION, _NO_DIGEST, chunks, tree, objects)
        return {_RECORD: dumps(record).decode(), "format": "pt", **document.metadata}

    _write(staged, packing.entries, texts)
    return {"notes": packing.notes}


def _write(staged: StagedFile, entries: list[Packed], texts: Callable[[str], dict[str, str]]) -> list[Placed]:
    """Tensor bytes first, in parallel; the header, whose length is known before its digests are, last."""
    # The largest items first: then each tensor is aligned to its own item size without holes.
    order = sorted(range(len(entries)), key=lambda index: -DTYPES[entries[index].dtype].itemsize)
    begins, rows, at = [0] * len(entries), {}, 0
    for index in order:
        entry = entries[index]
        begins[index], end = at, at + entry.length
        rows[entry.name] = HeaderEntry(DTYPES[entry.dtype].safetensors or "U8", entry.shape, (at, end))
        at = end
    blank = _NO_HEX * sum(-(-entry.length // CHUNK) for entry in entries)
    data = 8 + len(_header(staged, texts(blank), rows))
    staged.allocate(data + at)
    written: list[Written] = staged.write(
        [
            WriteRequest(data + begins[index], entries[index].source, entries[index].start, entries[index].length)
            for index in order
        ]
    )
    header = _header(staged, texts("".join(["".join(one.chunks) for one in written])), rows)
    staged.write([WriteRequest(0, (data - 8).to_bytes(8, "little") + header)], digest=False)
    by_index = dict(zip(order, written, strict=True))
    return [
        Placed(entry.name, data + begins[index], entry.length, by_index[index].chunks)
        for index, entry in enumerate(entries)
    ]


def _header(staged: StagedFile, texts: dict[str, str], rows: dict[str, HeaderEntry]) -> bytes:
    try:
        header = dumps({RESERVED: texts, **rows})
    except UnicodeEncodeError as reason:
        raise UnsupportedValue(
            f"`{printable(staged.path)}`: a name or metadata text is no valid Unicode: {reason}"
        ) from None
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    if len(header) > HEADER_LIMIT:
        raise UnsupportedValue(
            f"`{printable(staged.path)}`: names and plain values take {len(header):,} bytes, a safetensors header has "
            f"{HEADER_LIMIT:,} at most; save as .pt, or store the large values as tensors"
        )
    if header.startswith(_HEADER_START):
        digest = digest_bytes(header)
        header = header[: _DIGEST.start] + digest.encode() + header[_DIGEST.stop :]
    return header
