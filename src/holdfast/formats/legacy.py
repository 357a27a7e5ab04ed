"""The stream that ``torch.save`` wrote before 1.6, and still writes with ``_use_new_zipfile_serialization=False``.

Five pickles back to back: a magic number, the protocol (1001), facts about the writer that no reader uses, the object,
and the sorted keys of its storages. Then, in that order, each storage: its elements as an int64, and the elements,
always little-endian. Nothing in it is a checksum, so only lengths can be verified. Source: ``torch/serialization.py``
of torch 1.0 to 2.13.

A stream may hold several objects one after another; a container is the first of them from where it begins.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import CorruptFile, RefusedFile, UnsupportedValue
from holdfast.formats.base import Container, Document, Segment
from holdfast.formats.codes import integer, text
from holdfast.formats.emit import emit
from holdfast.formats.nodes import Global
from holdfast.formats.pickles import Parsed, parse
from holdfast.formats.rebuild import BASE_NODES, NODES_PER_BYTE, Builder
from holdfast.spec import BY_STORAGE
from holdfast.state.paths import printable
from holdfast.state.values import Tree, Typed
from holdfast.storage.places import Staged
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import ByteSource, shown

NAME = "torch-legacy"
SUFFIXES: tuple[str, ...] = (".pt", ".pth")

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
PICKLE_LIMIT = 256 << 20
"""Bytes of the largest pickle that is read."""
_FIRST_WINDOW = 1 << 16
_BINARY_MAGIC = b"\x8a\n" + MAGIC.to_bytes(10, "little") + b"."
_TEXT_MAGIC = b"L%dL\n." % MAGIC
_EXACT = frozenset({"bytearray", "conj", "counter", "dict", "meta", "neg", "ordered_dict", "parameter", "quantized"})
_EXACT |= {"jagged", "set", "sparse", "state_dict", "tensor", "tuple", "torch.Size", "torch.device", "torch.dtype"}
_EXACT |= {"torch.layout", "torch.qscheme", "torch.storage"}
"""Kinds of values that a torch pickle holds as what they are."""

log = logging.getLogger("holdfast")


# -- reading


def sniff(head: bytes) -> bool:
    """Whether a file that begins with ``head`` starts with the magic number, pickled in any protocol."""
    return (head[:1] == b"\x80" and _BINARY_MAGIC in head[:40]) or head.startswith(_TEXT_MAGIC)


def open(source: ByteSource, file: str) -> TorchLegacy:  # noqa: A001 - a Format's verb
    """Opens a stream: its pickles are parsed and the lengths of its storages checked.

    Raises:
        CorruptFile: it is cut short, or its parts disagree.
        RefusedFile: past a limit.
    """
    return TorchLegacy(source, file)


class TorchLegacy(Container):
    """An opened stream.

    Attributes:
        pickle: the bytes of the object's pickle.
        storages: the segments by their keys.
        end: the first byte after the last storage, where another object may begin.
    """

    format = NAME

    def __init__(self, source: ByteSource, file: str) -> None:
        self.file = file
        self._source = source
        at = self._preamble()
        self.pickle, self._object = read_pickle(source, file, at)
        at += len(self.pickle)
        data, keys = read_pickle(source, file, at)
        self.storages: dict[str, Segment] = {}
        self.end = self._read_lengths(keys.root, at + len(data))

    def document(self) -> Document:
        if self.end < self._source.size:
            log.warning(
                "`%s`: %d bytes follow its first object and are left alone; holdfast.compat.load reads several objects "
                "one after another out of an open file",
                shown(self.file),
                self._source.size - self.end,
            )
        budget = BASE_NODES + NODES_PER_BYTE * len(self.pickle)
        return Document(Builder(self._storage, self.file, budget).build(self._object.root))

    def segments(self) -> list[Segment]:
        return list(self.storages.values())

    def close(self) -> None:
        self._source.close()

    def _preamble(self) -> int:
        """Checks magic number and protocol, skips the writer's facts; returns where the object begins."""
        at = 0
        for what, wanted in (("magic number", MAGIC), ("protocol", PROTOCOL), ("system information", None)):
            data, parsed = read_pickle(self._source, self.file, at)
            if wanted is not None and parsed.root != wanted:
                raise CorruptFile(
                    f"`{shown(self.file)}`: at byte {at:,}: the {what} is {printable(repr(parsed.root)[:80])}, a torch "
                    f"stream has {wanted}: corrupt",
                    file=self.file,
                    offset=at,
                )
            at += len(data)
        return at

    def _read_lengths(self, keys: Any, at: int) -> int:
        """Finds each storage; returns the byte after the last."""
        said = self._said()
        if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
            raise self._lie(at, "the storages have no list of distinct keys")
        for key in keys:
            if key not in said:
                raise self._lie(at, f"there is a storage {printable(key[:80])} that the object does not use")
            elements, itemsize, location = said[key]
            stored = int.from_bytes(self._source.read(at, 8), "little", signed=True)
            if stored != elements:
                raise self._lie(
                    at, f"the storage {printable(key[:80])} has {stored:,} elements, the object says {elements:,}"
                )
            at += 8
            length = elements * itemsize
            if at + length > self._source.size:
                raise self._lie(
                    at,
                    f"the storage {printable(key[:80])} needs {length:,} bytes, {self._source.size - at:,} are left; "
                    "the file is cut short",
                )
            self.storages[key] = Segment(self._source, at, length, f"storage {key}", location=location)
            at += length
        return at

    def _said(self) -> dict[str, tuple[int, int, str]]:
        """Elements, bytes of one and location of each storage, by its key, as the object's pickle has them."""
        said: dict[str, tuple[int, int, str]] = {}
        for node in self._object.outside:
            mark, cls, key, location, elements = (*node.id, *[None] * 5)[:5] if type(node.id) is tuple else [None] * 5
            if mark != "storage" or type(cls) is not Global or type(key) is not str or type(location) is not str:
                continue  # classes; what is damaged is reported when the tree is built
            row = BY_STORAGE.get(cls.name)
            if type(elements) is int and elements >= 0:
                said.setdefault(key, (elements, row.itemsize if row else 1, location))
        return said

    def _storage(self, key: str, location: str, length: int) -> Segment:
        segment = self.storages.get(key)
        if segment is None or segment.length != length:
            has = "has no such storage" if segment is None else f"has {segment.length:,}"
            raise CorruptFile(
                f"`{shown(self.file)}`: the object says that storage {printable(key[:80])} has {length:,} bytes, the "
                f"stream {has}: corrupt",
                file=self.file,
            )
        return segment

    def _lie(self, at: int, what: str) -> CorruptFile:
        return CorruptFile(f"`{shown(self.file)}`: at byte {at:,}: {what}: corrupt", file=self.file, offset=at)


def read_pickle(source: ByteSource, file: str, at: int) -> tuple[bytes, Parsed]:
    """The pickle that begins at byte ``at``, which may be a small part of the file: its bytes, and what it holds.

    Raises:
        CorruptFile: there is none, or it is cut short.
        RefusedFile: it is larger than ``PICKLE_LIMIT``.
    """
    left = source.size - at
    window = _FIRST_WINDOW
    while True:
        data = source.read(at, min(window, left))
        try:
            parsed = parse(data, file)
        except CorruptFile:
            if window >= left:
                raise
            if window >= PICKLE_LIMIT:
                raise RefusedFile(
                    f"`{shown(file)}`: at byte {at:,}: a pickle of more than {PICKLE_LIMIT:,} bytes, or a damaged one",
                    file=file,
                    offset=at,
                ) from None
            window *= 8
        else:
            return data[: parsed.end], parsed


# -- writing


def write(staged: Staged, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
    """Writes a document as torch before 1.6 would.

    Args:
        staged: the file.
        document: its tensors' bytes are read from their segments, in parallel.
        top: not used: a stream has no folders.

    Returns:
        ``notes``: values that come back as a plainer type, since the stream has no place for our own record.

    Raises:
        UnsupportedValue: a value that a torch file can't hold, or big-endian tensors.
    """
    emitted = emit(document.tree, stream=True)
    if any(segment.swapped and segment.length for segment in emitted.segments):
        raise UnsupportedValue(f"`{shown(staged.path)}`: a torch stream is little-endian, the tensors are not")
    requests = stream_requests(emitted.data, list(zip(emitted.elements, emitted.segments, strict=True)))
    staged.allocate(sum(request.size for request in requests))
    staged.write(requests, digest=False)
    return {"notes": _notes(document)}


def stream_requests(pickle: bytes, storages: Sequence[tuple[int, Segment]]) -> list[WriteRequest]:
    """Everything that a stream consists of, and where it goes.

    Args:
        pickle: the object; the keys of its storages are "0", "1", ...
        storages: elements and bytes of each.
    """
    order = sorted(range(len(storages)), key=str)
    keys = b"\x80\x02](" + b"".join([text(str(index)) for index in order]) + b"e."
    frame, at = b"".join([_pickled(integer(MAGIC)), _pickled(integer(PROTOCOL)), _pickled(_system()), pickle, keys]), 0
    requests: list[WriteRequest] = []
    for elements, segment in [storages[index] for index in order]:
        frame += elements.to_bytes(8, "little")
        if segment.length:
            requests.append(WriteRequest(at, frame))
            at += len(frame)
            requests.append(WriteRequest(at, segment.source, segment.offset, segment.length))
            at, frame = at + segment.length, b""
    return [*requests, WriteRequest(at, frame)] if frame else requests


def _pickled(code: bytes) -> bytes:
    return b"\x80\x02" + code + b"."


def _system() -> bytes:
    """The facts that torch writes; no torch reads them."""
    sizes = _dict_of({"short": integer(2), "int": integer(4), "long": integer(4)})
    return _dict_of({"protocol_version": integer(PROTOCOL), "little_endian": b"\x88", "type_sizes": sizes})


def _dict_of(values: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join([text(name) + code for name, code in values.items()]) + b"u"


def _notes(document: Document) -> list[str]:
    notes = []
    plainer = sorted(_kinds(document.tree) - _EXACT)
    if plainer:
        notes.append(f"the stream of torch < 1.6 has no exact form for: {', '.join(plainer)}; they come back plainer")
    if document.metadata or document.objects:
        notes.append("the stream of torch < 1.6 has no place for metadata and records of objects: they are left out")
    return notes


def _kinds(tree: Tree) -> set[str]:
    found: set[str] = set()
    rest: list[Any] = [tree]
    while rest:
        item = rest.pop()
        if type(item) is Typed:
            found.add(item.kind)
            rest.append(item.payload)
        elif isinstance(item, Sequence) and not isinstance(item, str | bytes):
            rest.extend(item)
        elif type(item) is dict:
            rest.extend(item.values())
    return found
