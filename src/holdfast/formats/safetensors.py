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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import UnknownFormat
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.safetensors_header import (
    HEADER_LIMIT,
    Count,
    Header,
    Shape,
    by_place,
    corrupt,
    read_header,
    shown,
)
from holdfast.formats.tensors import needed_bytes
from holdfast.spec import BY_SAFETENSORS, CHUNK, DTYPES, TensorSpec
from holdfast.state.encoding import dumps, from_json
from holdfast.state.paths import printable
from holdfast.storage.digest import digest_bytes
from holdfast.storage.source import ByteSource

if TYPE_CHECKING:
    from holdfast.storage.places import Staged

NAME = "safetensors"
SUFFIXES: tuple[str, ...] = (".safetensors",)

VERSION = 0

RECORD = "holdfast"
"""The metadata key of our record."""
_NO_HEX = "0" * 32
NO_DIGEST = f"xxh3-128:{_NO_HEX}"
_RECORD_START = f'{{"holdfast":{VERSION},"digest":"'
HEADER_START = b'{"__metadata__":{"holdfast":' + dumps(_RECORD_START)[:-1]
DIGEST = slice(len(HEADER_START), len(HEADER_START) + len(NO_DIGEST))
"""Where the digest stands in a header of ours."""


class Record(msgspec.Struct):
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
            if key != RECORD and (key, text) != ("format", "pt")
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
        return recorded(self._record.tree, self._record.objects, tensors, self.metadata, self.file)

    def segments(self) -> list[Segment]:
        """The bytes of each entry, with chunk digests when our record has them."""
        return [tensor.segment for tensor in self.tensors().values()]

    def close(self) -> None:
        self._source.close()


def recorded(
    tree: Any, objects: Any, tensors: dict[str, StoredTensor], metadata: dict[str, str], file: str
) -> Document:
    """The document that a record of ours describes.

    Args:
        tree: as the record has it.
        objects: likewise.
        tensors: the entries that it refers to, by name.
        metadata: the user's own strings.
        file: what messages call it.

    Raises:
        CorruptFile: it is no tree, or refers to what is not there.
    """

    def leaf(reference: Any) -> StoredTensor:
        if type(reference) is str and reference in tensors:
            return tensors[reference]
        return _referred(reference, tensors, file)

    found = from_json(tree, leaf, file)
    of_objects = from_json(objects, leaf, file)
    if type(of_objects) is not dict or any(type(value) is not dict for value in of_objects.values()):
        raise corrupt(file, "the objects in its record are not a dict of dicts")
    return Document(found, of_objects, metadata)


def _checked_record(checked: Header, file: str) -> Record | None:
    header, metadata = checked.raw, checked.metadata
    text = metadata.get(RECORD)
    if text is None:
        astray = next((key for key, value in metadata.items() if value.startswith(_RECORD_START)), None)
        if astray is not None:
            raise corrupt(file, f"its record stands under the name `{shown(astray)}`: damaged", 8)
        return None
    try:
        record = msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, RecursionError, ValueError) as reason:
        raise corrupt(file, f"its metadata key `{RECORD}` is no record of ours: {str(reason)[:200]}", 8) from None
    if record.holdfast != VERSION:
        raise UnknownFormat(
            f"`{printable(file)}`: its record has version {record.holdfast}, this holdfast reads version {VERSION}; "
            "a newer holdfast wrote it",
            file=file,
        )
    found = digest_bytes(header[: DIGEST.start] + NO_DIGEST.encode() + header[DIGEST.stop :])
    if not header.startswith(HEADER_START) or record.digest != found:
        raise corrupt(
            file,
            f"its header has digest {found}, the record in it says {shown(record.digest)}: damaged, or rewritten by a "
            f"program that copied the metadata key `{RECORD}`, which must then be left out",
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


def write(staged: Staged, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
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
    from holdfast.formats.safetensors_writing import write_document  # who only reads need not wait for it

    return write_document(staged, document)
