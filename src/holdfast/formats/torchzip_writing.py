"""Writing torch zips: planned before the first byte, large storages in parallel, all else joined into blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import xxhash

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.emit import emit
from holdfast.formats.torchzip import DEFAULTS, HEX, OPEN_DIGEST, RECORD, VERSION, Own, seal, storage_number
from holdfast.formats.zipwriter import ALIGNMENT, Planned, directory, directory_size, plan, serialization_id
from holdfast.spec import CHUNK
from holdfast.state.encoding import to_json
from holdfast.storage.digest import crc32, digest_bytes
from holdfast.storage.places import Staged
from holdfast.storage.requests import WriteRequest

_SMALL = 64 << 10
"""Storages up to this size are written together with the headers around them."""
_BLOCK = 8 << 20


@collector_paused
def write_document(staged: Staged, document: Document, top: str) -> None:
    """Writes a document and our record; see :func:`holdfast.formats.torchzip.write`."""
    emitted = emit(document.tree)
    segments, own = _own_record(document, emitted.segments, emitted.data)
    contents: dict[str, bytes | Segment] = {
        "data.pkl": emitted.data,
        ".format_version": b"1",  # promises storages in the order of their keys, one right after the other
        ".storage_alignment": b"%d" % ALIGNMENT,
        "byteorder": _written_order(segments),
        **{f"data/{index}": segment for index, segment in enumerate(segments)},
        "version": b"3\n",
        RECORD: _sealed(own),  # with the length that it will have
        ".data/serialization_id": b"0" * 40,
    }
    lengths = [(name, len(data) if isinstance(data, bytes) else data.length) for name, data in contents.items()]
    planned = plan(lengths, _folder(top))
    staged.allocate(planned[-1].end + directory_size(planned))
    _Writing(staged, own, dict(zip(contents, planned, strict=True))).run(contents)


def _folder(top: str) -> str:
    """The folder inside the archive; a name that a reader could stumble over becomes ``archive``, as in torch."""
    plain = top.isascii() and top.isprintable() and top.strip(".") and not set(top) & set("/\\")
    return top if plain else "archive"


def _own_record(document: Document, emitted: Sequence[Segment], pickle: bytes) -> tuple[list[Segment], Own]:
    """All segments of the file and our record, its digests still zeros of the right length."""
    segments = list(emitted)
    numbers = {id(segment): index for index, segment in enumerate(segments)}

    def refer(leaf: StoredTensor) -> Sequence[Any]:
        index = numbers.get(id(leaf.segment))
        if index is None:  # a part that the pickle leaves out, such as a tensor's own attributes
            index = numbers[id(leaf.segment)] = len(segments)
            segments.append(leaf.segment)
        spec = leaf.spec
        if not leaf.offset and spec.stride is None and not leaf.requires_grad and leaf.live_stride is None:
            return index, spec.dtype, spec.shape
        full = [index, spec.dtype, spec.shape, spec.stride, leaf.offset, leaf.requires_grad, leaf.live_stride]
        while len(full) > 3 and full[-1] == DEFAULTS[len(full) - 4]:
            full.pop()
        return full

    try:
        tree = to_json(document.tree, refer)
        objects = {name: to_json(record, refer) for name, record in document.objects.items()}
    except RecursionError:
        raise UnsupportedValue("the tree is nested too deep to be written from here") from None
    locations: dict[str, list[int]] = {}
    for index, segment in enumerate(segments):
        if segment.location != "cpu":
            locations.setdefault(segment.location, []).append(index)
    lengths = [segment.length for segment in segments]
    digests = ["0" * (HEX * -(-length // CHUNK)) for length in lengths]
    parts = (lengths, digests, locations, tree, objects, document.metadata)
    return segments, Own(VERSION, digest_bytes(pickle), *parts)


def _sealed(own: Own) -> bytes:
    """The bytes of our record, with its digest; digests are all of one length, so its length stays the same."""
    own.digest = ""
    data = msgspec.json.encode(own)
    return data[: -len(OPEN_DIGEST)] + seal(digest_bytes(data))


def _written_order(segments: Sequence[Segment]) -> bytes:
    orders = {segment.swapped for segment in segments if segment.length}
    if len(orders) == 2:
        raise UnsupportedValue("big-endian and little-endian tensors can't be written into one torch file")
    return b"big" if True in orders else b"little"


class _Writing:
    """Puts the bytes of an archive where they were planned.

    Large storages are written first, in parallel. All else (headers, small storages, our record) is joined into blocks:
    a file of fifty thousand small tensors takes a few dozen writes.
    """

    def __init__(self, staged: Staged, own: Own, planned: Mapping[str, Planned]) -> None:
        self._staged = staged
        self._own = own
        self._planned = planned
        self._at = 0
        self._block: list[bytes] = []

    def run(self, contents: Mapping[str, bytes | Segment]) -> None:
        """Writes everything; digests and checksums are taken on the way."""
        self._large(contents)
        done: list[Planned] = []
        for (name, content), record in zip(contents.items(), self._planned.values(), strict=True):
            if isinstance(content, Segment) and content.length > _SMALL:
                self._block.append(record.head())
                self._flush(record.start + record.size)
                self._block.append(record.tail())
            else:
                data = self._bytes(name, content, done)
                record.crc = crc32(data)
                self._block += (record.head(), data, record.tail())
                if record.start - self._at > _BLOCK:
                    self._flush(record.end)
            done.append(record)
        self._block.append(directory(done))
        self._flush(0)

    def _large(self, contents: Mapping[str, bytes | Segment]) -> None:
        parts = {name: part for name, part in contents.items() if isinstance(part, Segment) and part.length > _SMALL}
        requests = [
            WriteRequest(self._planned[name].start, part.source, part.offset, part.length)
            for name, part in parts.items()
        ]
        for name, written in zip(parts, self._staged.write(requests, crc=True), strict=True):
            self._planned[name].crc = written.crc32 or 0
            self._own.digests[storage_number(name)] = "".join(written.chunks)

    def _bytes(self, name: str, content: bytes | Segment, before: Sequence[Planned]) -> bytes:
        """The bytes of a record; two of them can only be known after those before."""
        if isinstance(content, Segment):
            data = content.source.read(content.offset, content.length)
            self._own.digests[storage_number(name)] = (
                xxhash.xxh3_128_hexdigest(data) if data else ""
            )  # one chunk: it is small
            return data
        if name == RECORD:
            return _sealed(self._own)
        return serialization_id(before) if name == ".data/serialization_id" else content

    def _flush(self, next_at: int) -> None:
        """Writes what has gathered; what comes next goes to ``next_at``."""
        self._staged.write([WriteRequest(self._at, b"".join(self._block))], digest=False)
        self._at, self._block = next_at, []
