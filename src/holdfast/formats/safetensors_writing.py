"""Writing safetensors files: tensor bytes first, in parallel; the header, with the digests that they got, last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.errors import ArgumentError, UnsupportedValue
from holdfast.formats.base import Document, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.packing import Packed, pack
from holdfast.formats.safetensors import DIGEST, HEADER_START, NO_DIGEST, RECORD, VERSION, Record
from holdfast.formats.safetensors_header import HEADER_LIMIT, RESERVED, HeaderEntry
from holdfast.spec import CHUNK, DTYPES
from holdfast.state.encoding import dumps, to_json
from holdfast.state.paths import printable
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import Staged
from holdfast.storage.requests import WriteRequest, Written

_ALIGNMENT = 64
"""Data begins at a multiple of this many bytes, so that a mapped file can be used in place."""
_NO_HEX = "0" * 32


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
    staged: Staged, named: Sequence[tuple[str, StoredTensor]], metadata: Mapping[str, str] | None = None
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
def write_document(staged: Staged, document: Document) -> Mapping[str, Any]:
    """Writes a document with our record; see :func:`holdfast.formats.safetensors.write`."""
    if RECORD in document.metadata:
        raise UnsupportedValue(f"metadata key {RECORD!r} is taken by the record that holdfast writes; rename it")
    packing = pack(document.tree)
    references = packing.references
    tree = to_json(document.tree, lambda leaf: references[id(leaf)])
    objects = to_json(document.objects, lambda leaf: references[id(leaf)])

    def texts(chunks: str) -> dict[str, str]:
        record = Record(VERSION, NO_DIGEST, chunks, tree, objects)
        return {RECORD: dumps(record).decode(), "format": "pt", **document.metadata}

    _write(staged, packing.entries, texts)
    return {"notes": packing.notes}


def _write(staged: Staged, entries: list[Packed], texts: Callable[[str], dict[str, str]]) -> list[Placed]:
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


def _header(staged: Staged, texts: dict[str, str], rows: dict[str, HeaderEntry]) -> bytes:
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
    if header.startswith(HEADER_START):
        digest = digest_bytes(header)
        header = header[: DIGEST.start] + digest.encode() + header[DIGEST.stop :]
    return header
