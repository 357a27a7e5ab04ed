"""The zip file of ``torch.save`` since 1.6, read without unpickling and written so that ``torch.load`` reads it.

Beside what torch writes, our files have one record, ``.data/holdfast``, which torch ignores: the tree with its exact
types, digests of every storage, and what was recorded of the live objects. It is JSON; its last field is a digest of
the rest, and it holds the digest of ``data.pkl``, so that neither can be exchanged alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import CorruptFile, UnknownFormat
from holdfast.formats.archive import Archive
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.collector import collector_paused
from holdfast.formats.tensors import TensorPlacer
from holdfast.spec import CHUNK
from holdfast.state.encoding import from_json
from holdfast.state.paths import printable
from holdfast.storage.digest import digest_bytes
from holdfast.storage.source import ByteSource, shown

if TYPE_CHECKING:
    from holdfast.storage.places import Staged

NAME = "torch-zip"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt", ".tar")

PICKLE_LIMIT = 256 << 20
"""Bytes of the largest ``data.pkl`` that is read."""
_RECORD_LIMIT = 1 << 30
RECORD = ".data/holdfast"
"""The name of our record."""
VERSION = 0
HEX = 32
"""Characters of one digest."""
OPEN_DIGEST = b'"digest":""}'
"""How our record ends while its digest is computed."""
DEFAULTS = (None, 0, False, None)
"""What a reference to a tensor leaves out at its end: stride, offset, requires_grad, live stride."""


class Own(msgspec.Struct):
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
        self._own = _read_own(archive, self._pickle) if RECORD in archive.records else None
        places = self._own.locations if self._own else {}
        self._locations = {number: device for device, numbers in places.items() for number in numbers}
        self._segments: dict[str, Segment] = {}
        self._placer = TensorPlacer(file)
        self._read = {"data.pkl", "version", "byteorder", RECORD}

    def document(self) -> Document:
        with collector_paused:
            return self._document()

    def _document(self) -> Document:
        own = self._own
        if own is None:
            from holdfast.formats.rebuild import build_tree  # our own files have their tree without it

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
        from holdfast.formats.agreement import disagreement  # only verification asks
        from holdfast.formats.torchzip_frame import odd_byte

        with collector_paused:
            where = disagreement(document.tree, self._pickle, self._record_of, self.file)
            odd = odd_byte(self._archive)
        if where is not None:
            raise CorruptFile(
                f"`{shown(self.file)}`: `{printable(where)}` is one thing in {RECORD}, which holdfast reads, and "
                "another in data.pkl, which torch reads: a program that has changed one of them has forged the digests "
                "too. Don't trust the file",
                file=self.file,
                path=where,
            )
        if odd is not None:
            raise CorruptFile(
                f"`{shown(self.file)}`: at byte {odd:,}, between its records, is another byte than was written: "
                "corrupt; the records themselves are checked by their digests",
                file=self.file,
                offset=odd,
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
                number = storage_number(name)
                segment.location = self._locations.get(number, "cpu")
                segment.chunks = _split(self._own.digests[number])
            self._segments[name] = segment
        return segment

    def _leaf(self, reference: Any) -> StoredTensor:
        """A tensor out of our record."""
        full = [*reference, *DEFAULTS[max(len(reference) - 3, 0) :]]
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


def _read_own(archive: Archive, pickle: bytes) -> Own:
    file = archive.file
    data = archive.read(RECORD, limit=_RECORD_LIMIT)
    try:
        own = msgspec.json.decode(data, type=Own)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as reason:
        raise CorruptFile(f"`{shown(file)}`: its record {RECORD} is damaged: {reason}", file=file) from None
    if own.version != VERSION:
        raise UnknownFormat(
            f"`{shown(file)}`: its record {RECORD} is of version {own.version}; this holdfast knows {VERSION}. "
            "Use a newer holdfast, or torch.load",
            file=file,
        )
    sealed = data[: -len(seal(own.digest))] + OPEN_DIGEST
    if not data.endswith(seal(own.digest)) or digest_bytes(sealed) != own.digest:
        raise CorruptFile(f"`{shown(file)}`: its record {RECORD} differs from its digest: corrupt", file=file)
    if digest_bytes(pickle) != own.pickle:
        raise CorruptFile(
            f"`{shown(file)}`: data.pkl has digest {digest_bytes(pickle)}, {RECORD} says {own.pickle[:100]!r}: "
            "another program has changed one of them",
            file=file,
        )
    if len(own.digests) != len(own.lengths) or any(f"data/{len(own.lengths)}" == name for name in archive.records):
        raise CorruptFile(f"`{shown(file)}`: {RECORD} and the archive differ in their number of storages", file=file)
    for index, (length, digests) in enumerate(zip(own.lengths, own.digests, strict=True)):
        record = archive.records.get(f"data/{index}")
        if record is None or record.size != length or len(digests) != HEX * -(-length // CHUNK):
            raise CorruptFile(
                f"`{shown(file)}`: {RECORD} says that data/{index} has {length:,} bytes in {len(digests) // HEX} "
                f"chunks, the archive has {'no such record' if record is None else f'{record.size:,} bytes'}: corrupt",
                file=file,
            )
    return own


def storage_number(name: str) -> int:
    """Which storage a record is: 5 for ``data/5``."""
    return int(name[5:])


def _split(digests: str) -> tuple[str, ...]:
    if len(digests) == HEX:
        return (digests,)
    return tuple(digests[at : at + HEX] for at in range(0, len(digests), HEX))


def seal(digest: str) -> bytes:
    """How our record ends when its digest is ``digest``."""
    return b'"digest":%b}' % msgspec.json.encode(digest)


# -- writing


def write(staged: Staged, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
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
    from holdfast.formats.torchzip_writing import write_document  # who only reads need not wait for it

    write_document(staged, document, top)
    return {"notes": []}
