"""The zip file of ``torch.save`` since 1.6, read without unpickling and written so that ``torch.load`` reads it.

Beside what torch writes, our files have one record, ``.data/holdfast``, which torch ignores: the tree with its exact
types, digests of every storage, and what was recorded of the live objects. It is JSON; its last field is a digest of
the rest, and it holds the digest of ``data.pkl``, so that neither can be exchanged alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import xxhash

from holdfast.errors import CorruptFile, UnknownFormat, UnsupportedValue
from holdfast.formats.agreement import disagreement
from holdfast.formats.archive import Archive
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.rebuild import build_tree
from holdfast.formats.tensors import TensorPlacer
from holdfast.formats.zipwriter import ALIGNMENT, Planned, directory, directory_size, plan, serialization_id
from holdfast.spec import CHUNK
from holdfast.state.encoding import from_json, to_json
from holdfast.state.paths import printable
from holdfast.storage.atomic import StagedFile
from holdfast.storage.digest import crc32, digest_bytes
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import ByteSource, shown

NAME = "torch-zip"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt", ".tar")

PICKLE_LIMIT = 256 << 20
"""Bytes of the largest ``data.pkl`` that is read."""
_RECORD_LIMIT = 1 << 30
_RECORD = ".data/holdfast"
_VERSION = 0
_HEX = 32
"""Characters of one digest."""
_SMALL = 64 << 10
"""Storages up to this size are written together with the headers around them."""
_BLOCK = 8 << 20
_OPEN_DIGEST = b'"digest":""}'
_DEFAULTS = (None, 0, False, None)
"""What a reference to a tensor leaves out at its end: stride, offset, requires_grad, live stride."""


class _Own(msgspec.Struct):
    """Our record in the file.

    Attributes:
        version: of this record's form.
        pickle: digest of ``data.pkl``.
        lengths: bytes of each ``data/N``.
        digests: for each ``data/N`` the digests of its chunks of 8 MiB, in hex, one after the other.
        locations: the devices that tensors were on, other than the CPU, with the numbers of their storages.
        tree: as ``state.encoding`` writes it; a tensor is ``[segment, dtype, shape, stride, offset, requires_grad,
            live stride]``, without what is default at the end.
        objects: see Document.
        metadata: see Document.
        digest: of all that stands before it.
    """

    version: int
    pickle: str
    lengths: list[int]
    digests: list[str]
    locations: dict[str, list[int]]
    tree: Any
    objects: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    digest: str = ""


# -- reading


def sniff(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a zip."""
    return head.startswith(b"PK\x03\x04")


def open(source: ByteSource, file: str) -> TorchZip:  # noqa: A001 - a Format's verb
    """Opens a torch zip; headers and small records are read and checked.

    Raises:
        CorruptFile: parts are missing, damaged or disagree.
        RefusedFile: ambiguous, or past a limit.
        UnknownFormat: a zip of another kind.
    """
    with collector_paused:
        return TorchZip(Archive(source, file))


class TorchZip(Container):
    """An opened torch zip."""

    format = NAME

    def __init__(self, archive: Archive) -> None:
        self.file = file = archive.file
        self._source = archive.source
        self._archive = archive
        _check_kind(archive)
        self._swapped = byte_order(archive)
        self._pickle = archive.read("data.pkl", limit=PICKLE_LIMIT)
        self._own = _read_own(archive, self._pickle) if _RECORD in archive.records else None
        places = self._own.locations if self._own else {}
        self._locations = {number: device for device, numbers in places.items() for number in numbers}
        self._segments: dict[str, Segment] = {}
        self._placer = TensorPlacer(file)
        self._read = {"data.pkl", "version", "byteorder", _RECORD}

    def document(self) -> Document:
        with collector_paused:
            return self._document()

    def _document(self) -> Document:
        own = self._own
        if own is None:
            return Document(build_tree(self._pickle, self._storage, f"{self.file}"))
        try:
            tree = from_json(own.tree, self._leaf, shown(self.file))
            objects = {name: from_json(record, self._leaf, shown(self.file)) for name, record in own.objects.items()}
        except RecursionError:
            raise CorruptFile(f"`{shown(self.file)}`: its record is nested too deep", file=self.file) from None
        return Document(tree, objects, own.metadata)

    def check(self, document: Document) -> None:
        if self._own is None:
            return
        with collector_paused:
            where = disagreement(document.tree, self._pickle, self._record_of, self.file)
        if where is not None:
            raise CorruptFile(
                f"`{shown(self.file)}`: `{printable(where)}` is one thing in {_RECORD}, which holdfast reads, and "
                "another in data.pkl, which torch reads: a program that has changed one of them has forged the digests "
                "too. Don't trust the file",
                file=self.file,
                path=where,
            )

    def segments(self) -> list[Segment]:
        return [self._segment(name) for name in self._archive.records if name not in self._read]

    def close(self) -> None:
        self._source.close()

    def _storage(self, key: str, location: str, length: int) -> Segment:
        """The segment of a storage that the pickle names."""
        segment = self._record_of(key, location, length)
        segment.location = location
        return segment

    def _record_of(self, key: str, _: str, length: int) -> Segment:
        name = f"data/{key}"
        record = self._archive.records.get(name)
        if record is None or record.size != length:
            has = "the archive has no such record" if record is None else f"the record has {record.size:,}"
            raise CorruptFile(
                f"`{shown(self.file)}`: data.pkl says that {printable(name)} has {length:,} bytes, {has}: corrupt",
                file=self.file,
            )
        return self._segment(name)

    def _segment(self, name: str) -> Segment:
        segment = self._segments.get(name)
        if segment is None:
            record = self._archive.records[name]
            source, start = self._archive.place(name)
            segment = Segment(source, start, record.size, name, crc32=record.crc or None, swapped=self._swapped)
            if self._own is not None and name.startswith("data/"):
                number = _number(name)
                segment.location = self._locations.get(number, "cpu")
                segment.chunks = _split(self._own.digests[number])
            self._segments[name] = segment
        return segment

    def _leaf(self, reference: Any) -> StoredTensor:
        """A tensor out of our record."""
        full = [*reference, *_DEFAULTS[max(len(reference) - 3, 0) :]]
        index, dtype, shape, stride, offset, requires_grad, live = full
        if type(index) is not int or not 0 <= index < len(self._own.lengths if self._own else ()):
            raise ValueError(f"no storage {index!r:.100}")
        numbers = dtype, tuple(shape), None if stride is None else tuple(stride)
        leaf = self._placer.place(self._segment(f"data/{index}"), numbers, offset, requires_grad)
        if live is not None:
            leaf.live_stride = tuple(live)
        return leaf


def _check_kind(archive: Archive) -> None:
    """Refuses archives that torch.load reads as something else, by name."""
    records, file = archive.records, archive.file
    kind = None
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        kind = "a TorchScript archive (a program with its weights); torch.jit.load reads it"
    elif "archive_format" in records:
        kind = "a torch.export archive (.pt2); torch.export.load reads it"
    elif ".data/extern_modules" in records:
        kind = "a torch.package archive; torch.package.PackageImporter reads it"
    if kind is not None:
        raise UnknownFormat(f"`{shown(file)}`: is {kind}; its weights are no tree of torch.save", file=file)
    version = "version" if "version" in records else ".data/version"
    text = archive.read(version, limit=64).strip()
    if not text.isdigit() or not 1 <= int(text) <= 10:
        raise UnknownFormat(
            f"`{shown(file)}`: is a torch file of version {text!r}; versions 1 to 10 are known", file=file
        )


def byte_order(archive: Archive) -> bool:
    """Whether numbers are big-endian; files before torch 2.0 do not say and are little-endian."""
    if "byteorder" not in archive.records:
        return False
    order = archive.read("byteorder", limit=64)
    if order not in (b"little", b"big"):
        raise CorruptFile(f"`{shown(archive.file)}`: byteorder is {order!r}, little or big is meant", file=archive.file)
    return order == b"big"


def _read_own(archive: Archive, pickle: bytes) -> _Own:
    file = archive.file
    data = archive.read(_RECORD, limit=_RECORD_LIMIT)
    try:
        own = msgspec.json.decode(data, type=_Own)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as reason:
        raise CorruptFile(f"`{shown(file)}`: its record {_RECORD} is damaged: {reason}", file=file) from None
    if own.version != _VERSION:
        raise UnknownFormat(
            f"`{shown(file)}`: its record {_RECORD} is of version {own.version}; this holdfast knows {_VERSION}. "
            "Use a newer holdfast, or torch.load",
            file=file,
        )
    sealed = data[: -len(_seal(own.digest))] + _OPEN_DIGEST
    if not data.endswith(_seal(own.digest)) or digest_bytes(sealed) != own.digest:
        raise CorruptFile(f"`{shown(file)}`: its record {_RECORD} differs from its digest: corrupt", file=file)
    if digest_bytes(pickle) != own.pickle:
        raise CorruptFile(
            f"`{shown(file)}`: data.pkl has digest {digest_bytes(pickle)}, {_RECORD} says {own.pickle[:100]!r}: "
            "another program has changed one of them",
            file=file,
        )
    if len(own.digests) != len(own.lengths) or any(f"data/{len(own.lengths)}" == name for name in archive.records):
        raise CorruptFile(f"`{shown(file)}`: {_RECORD} and the archive differ in their number of storages", file=file)
    for index, (length, digests) in enumerate(zip(own.lengths, own.digests, strict=True)):
        record = archive.records.get(f"data/{index}")
        if record is None or record.size != length or len(digests) != _HEX * -(-length // CHUNK):
            raise CorruptFile(
                f"`{shown(file)}`: {_RECORD} says that data/{index} has {length:,} bytes in {len(digests) // _HEX} "
                f"chunks, the archive has {'no such record' if record is None else f'{record.size:,} bytes'}: corrupt",
                file=file,
            )
    return own


def _number(name: str) -> int:
    """Which storage a record is: 5 for ``data/5``."""
    return int(name[5:])


def _split(digests: str) -> tuple[str, ...]:
    if len(digests) == _HEX:
        return (digests,)
    return tuple(digests[at : at + _HEX] for at in range(0, len(digests), _HEX))


def _seal(digest: str) -> bytes:
    return b'"digest":%b}' % msgspec.json.encode(digest)


# -- writing


def write(staged: StagedFile, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
    """Writes a document as torch would, with our record beside it.

    Args:
        staged: the file.
        document: its tensors' bytes are read from their segments, in parallel.
        top: the folder inside the archive; torch uses the file's name without suffix.

    Returns:
        ``notes``: what the caller should be told (none so far).

    Raises:
        UnsupportedValue: a value that a torch file can't hold.
    """
    with collector_paused:
        _write(staged, document, top)
    return {"notes": []}


def _write(staged: StagedFile, document: Document, top: str) -> None:
    from holdfast.formats.emit import emit  # who only reads need not wait for it

    emitted = emit(document.tree)
    segments, own = _own_record(document, emitted.segments, emitted.data)
    contents: dict[str, bytes | Segment] = {
        "data.pkl": emitted.data,
        ".format_version": b"1",  # promises storages in the order of their keys, one right after the other
        ".storage_alignment": b"%d" % ALIGNMENT,
        "byteorder": _written_order(segments),
        **{f"data/{index}": segment for index, segment in enumerate(segments)},
        "version": b"3\n",
        _RECORD: _sealed(own),  # with the length that it will have
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


def _own_record(document: Document, emitted: Sequence[Segment], pickle: bytes) -> tuple[list[Segment], _Own]:
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
        while len(full) > 3 and full[-1] == _DEFAULTS[len(full) - 4]:
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
    digests = ["0" * (_HEX * -(-length // CHUNK)) for length in lengths]
    parts = (lengths, digests, locations, tree, objects, document.metadata)
    return segments, _Own(_VERSION, digest_bytes(pickle), *parts)


def _sealed(own: _Own) -> bytes:
    """The bytes of our record, with its digest; digests are all of one length, so its length stays the same."""
    own.digest = ""
    data = msgspec.json.encode(own)
    return data[: -len(_OPEN_DIGEST)] + _seal(digest_bytes(data))


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

    def __init__(self, staged: StagedFile, own: _Own, planned: Mapping[str, Planned]) -> None:
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
            self._own.digests[_number(name)] = "".join(written.chunks)

    def _bytes(self, name: str, content: bytes | Segment, before: Sequence[Planned]) -> bytes:
        """The bytes of a record; two of them can only be known after those before."""
        if isinstance(content, Segment):
            data = content.source.read(content.offset, content.length)
            self._own.digests[_number(name)] = xxhash.xxh3_128_hexdigest(data) if data else ""  # one chunk: it is small
            return data
        if name == _RECORD:
            return _sealed(self._own)
        return serialization_id(before) if name == ".data/serialization_id" else content

    def _flush(self, next_at: int) -> None:
        """Writes what has gathered; what comes next goes to ``next_at``."""
        self._staged.write([WriteRequest(self._at, b"".join(self._block))], digest=False)
        self._at, self._block = next_at, []
