"""The tar file that ``torch.save`` wrote in 2016 (0.1.1 to 0.1.9): read where it lies, nothing is unpacked.

Four members count: ``sys_info`` (no reader uses it), ``storages``, ``tensors`` and ``pickle``. Storages and tensors are
small pickles with binary numbers after each; the object refers to them by their keys, as decimal strings. Sources:
``torch/serialization.py`` of torch 0.1.6 and 2.13; POSIX.1-2001 (pax) for the tar.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from holdfast.errors import CorruptFile, RefusedFile, UnknownFormat, UnsupportedValue
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.legacy import read_pickle
from holdfast.formats.nodes import Global, Node
from holdfast.formats.pickles import Parsed
from holdfast.formats.rebuild import BASE_NODES, NODES_PER_BYTE, Builder
from holdfast.formats.tensors import MAX_RANK, stored_tensor
from holdfast.spec import BY_STORAGE, DTYPES, TensorSpec
from holdfast.state.paths import printable
from holdfast.state.values import Typed
from holdfast.storage.places import Staged
from holdfast.storage.source import ByteSource, SubSource, shown

NAME = "torch-tar"
SUFFIXES: tuple[str, ...] = ()

_BLOCK = 512
_MEMBERS = ("sys_info", "pickle", "tensors", "storages")
_HEADER_LIMIT = 64
"""Headers that are read: four members, an extended header before each, and a few more."""


def sniff(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a tar whose first member is one of torch's."""
    at = 0
    while at + _BLOCK <= len(head):
        header = head[at : at + _BLOCK]
        if header[156:157] not in (b"x", b"g"):
            return _is_header(header) and header[:100].rstrip(b"\0").decode("latin-1") in _MEMBERS
        at += _BLOCK + -(-_octal(header[124:136]) // _BLOCK) * _BLOCK
    return False


def open(source: ByteSource, file: str) -> TorchTar:  # noqa: A001 - a Format's verb
    """Opens a tar of torch; its members are found and their headers checked.

    Raises:
        CorruptFile: parts are missing, damaged or disagree.
        RefusedFile: it holds links, or names that an extended header changes.
        UnknownFormat: it is another program's tar.
    """
    return TorchTar(source, file)


def write(staged: Staged, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
    """Writes nothing: no torch since 2017 writes this format.

    Raises:
        UnsupportedValue: always.
    """
    raise UnsupportedValue(f"`{shown(staged.path)}`: the tar format of 2016 is only read; save as .pt instead")


class TorchTar(Container):
    """An opened tar of torch.

    Attributes:
        pickle: the bytes of the object's pickle.
        storages: each storage as one row of elements, by its key.
        tensors: by their keys.
        members: each member that counts, by its name.
        parsed: every pickle in it, as they were read.
    """

    format = NAME

    def __init__(self, source: ByteSource, file: str) -> None:
        self.file = file
        self._source = source
        self.members = _find_members(source, file)
        self.parsed: list[Parsed] = []
        self.storages: dict[int, StoredTensor] = {}
        self.tensors: dict[int, StoredTensor] = {}
        self._roots: list[Segment] = []
        self._read_storages(_Member(self.members["storages"], file, self.parsed))
        self._read_tensors(_Member(self.members["tensors"], file, self.parsed))
        self.pickle, self._object = read_pickle(self.members["pickle"], file, 0)
        self.parsed.append(self._object)

    def document(self) -> Document:
        for node in self._object.outside:
            node.id = self._resolved(node.id)
        budget = BASE_NODES + NODES_PER_BYTE * len(self.pickle)
        return Document(Builder(self._no_storage, self.file, budget).build(self._object.root))

    def segments(self) -> list[Segment]:
        return list(self._roots)

    def close(self) -> None:
        self._source.close()

    def _resolved(self, key: Node) -> Node:
        """What a reference of the object means: a tensor, a storage, or a class with its source."""
        if type(key) in (StoredTensor, Typed):
            return key  # the document was asked for before
        if type(key) is tuple:
            return ("module", *key) if len(key) == 3 else key
        number = int(key) if type(key) is str and key.isascii() and key.isdecimal() and len(key) < 24 else None
        if number in self.tensors:
            return self.tensors[number]
        if number in self.storages:
            row = self.storages[number]
            return Typed("torch.storage", {"dtype": row.spec.dtype, "data": row})
        return self._lie(f"the object refers to {printable(repr(key)[:80])}, which is neither a tensor nor a storage")

    def _no_storage(self, key: str, location: str, length: int) -> Segment:
        return self._lie(f"the object has a storage {printable(key[:80])} of its own")

    def _read_storages(self, member: _Member) -> None:
        for _ in range(member.count()):
            key, location, cls = member.triple()
            if type(location) is not str:
                self._lie("a storage has no location")
            dtype = _dtype(cls) or self._lie(f"the storage {key} has no known type")
            elements = member.numbers("<q")[0]
            length = elements * DTYPES[dtype].itemsize
            if elements < 0 or length > member.left:
                self._lie(f"the storage {key} has {elements:,} elements, {member.left:,} bytes are left")
            segment = Segment(member.source, member.at, length, f"storage {key}", location=location)
            member.at += length
            self._roots.append(segment)
            self.storages[key] = StoredTensor(TensorSpec(dtype, (elements,)), segment)
        views = member.pickle().root
        for view in views if type(views) is list else [None]:
            if type(view) is not tuple or len(view) != 4 or not all(type(part) is int for part in view):
                self._lie("the list of views is damaged")
            target, root, first, elements = view
            self.storages[target] = self._part(root, (elements,), None, first)

    def _read_tensors(self, member: _Member) -> None:
        for _ in range(member.count()):
            key, storage, cls = member.triple()
            if type(cls) is not Global:
                self._lie(f"the tensor {key} has no type")
            rank, _ = member.numbers("<iI")  # the second half of a rank that was once written in eight bytes
            if not 0 <= rank <= MAX_RANK:
                self._lie(f"the tensor {key} has {rank} dimensions; {MAX_RANK} is the most")
            sizes, strides = member.numbers(f"<{rank}q"), member.numbers(f"<{rank}q")
            self.tensors[key] = self._part(storage, sizes, strides, member.numbers("<q")[0])

    def _part(self, root: Node, sizes: tuple[int, ...], strides: tuple[int, ...] | None, first: int) -> StoredTensor:
        """A tensor inside a storage, or the part of a storage that another storage is."""
        row = self.storages.get(root) if type(root) is int else None
        if row is None:
            return self._lie(f"there is no storage {printable(repr(root)[:80])}")
        offset = row.offset + first * row.spec.itemsize
        part = stored_tensor(row.segment, TensorSpec(row.spec.dtype, sizes, strides), offset=offset, file=self.file)
        if offset < row.offset or offset + part.spec.extent * part.spec.itemsize > row.offset + row.spec.nbytes:
            self._lie(f"a tensor {part.spec} reaches past its storage {root}")
        return part

    def _lie(self, what: str) -> NoReturn:
        raise CorruptFile(f"`{shown(self.file)}`: {what}: corrupt", file=self.file)


class _Member(msgspec.Struct):
    """A place in a member: pickles and numbers are read from it one after another."""

    source: ByteSource
    file: str
    parsed: list[Parsed]
    at: int = 0

    @property
    def left(self) -> int:
        return self.source.size - self.at

    def pickle(self) -> Parsed:
        data, parsed = read_pickle(self.source, self.file, self.at)
        self.at += len(data)
        self.parsed.append(parsed)
        return parsed

    def count(self) -> int:
        count = self.pickle().root
        if type(count) is not int or not 0 <= count <= self.left:  # each takes more than one byte
            raise CorruptFile(f"`{shown(self.file)}`: {printable(repr(count)[:80])} is no number of parts: corrupt")
        return count

    def triple(self) -> tuple[int, Node, Node]:
        """(key, something, class)."""
        root = self.pickle().root
        if type(root) is not tuple or len(root) != 3 or type(root[0]) is not int:
            raise CorruptFile(f"`{shown(self.file)}`: {printable(repr(root)[:80])} describes no part: corrupt")
        return root

    def numbers(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        found = struct.unpack(form, self.source.read(self.at, size))
        self.at += size
        return found


def _dtype(cls: Node) -> str | None:
    if type(cls) is not Global or cls.module not in ("torch", "torch.cuda"):
        return None
    row = BY_STORAGE.get(cls.name)
    return row.name if row else None


# -- the tar around it


def _find_members(source: ByteSource, file: str) -> dict[str, SubSource]:
    """The members that count, each as a part of the file."""
    found: dict[str, SubSource] = {}
    at = 0
    for _ in range(_HEADER_LIMIT):
        header = source.read(at, min(_BLOCK, source.size - at)) if at < source.size else b""
        if at <= source.size and not any(header):  # two empty blocks, or just the end
            break
        if len(header) < _BLOCK or not _is_header(header):
            raise CorruptFile(f"`{shown(file)}`: at byte {at:,}: no tar header: corrupt", file=file, offset=at)
        size = _octal(header[124:136])
        kind, name = header[156:157], header[:100].rstrip(b"\0").decode("latin-1")
        begin = at + _BLOCK
        if begin + size > source.size:
            raise CorruptFile(
                f"`{shown(file)}`: at byte {at:,}: the member {printable(name)} has {size:,} bytes, "
                f"{source.size - begin:,} are left: cut short",
                file=file,
                offset=at,
            )
        if kind in (b"x", b"g"):
            _check_extended(source.read(begin, min(size, _BLOCK * 16)), file, at)
        elif kind not in (b"0", b"\0", b"5"):
            raise RefusedFile(f"`{shown(file)}`: {printable(name)} is a link or device in a tar", file=file, offset=at)
        elif name in found:
            raise RefusedFile(f"`{shown(file)}`: two members are called {name}", file=file, offset=at)
        elif name in _MEMBERS:
            found[name] = SubSource(source, begin, size)
        at = begin + -(-size // _BLOCK) * _BLOCK
    missing = [name for name in _MEMBERS[1:] if name not in found]
    if missing:
        raise UnknownFormat(
            f"`{shown(file)}`: is a tar archive without {', '.join(missing)}, which a torch file of 2016 has; unpack "
            "it and open what is inside",
            file=file,
        )
    return found


def _is_header(header: bytes) -> bool:
    """Whether its checksum is right: the sum of its bytes, the checksum itself taken as spaces."""
    return _octal(header[148:156]) == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _octal(field: bytes) -> int:
    """A number of a header; one that is none is larger than any file."""
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return 1 << 63


def _check_extended(data: bytes, file: str, at: int) -> None:
    """An extended header may say when a file was made, not what it is called or how long it is."""
    for line in data.split(b"\n"):
        keyword = line.partition(b" ")[2].partition(b"=")[0]
        if keyword in (b"path", b"size", b"linkpath") or keyword.startswith(b"GNU.sparse"):
            raise RefusedFile(
                f"`{shown(file)}`: at byte {at:,}: an extended header changes a member's {keyword.decode('latin-1')}; "
                "torch wrote none that do",
                file=file,
                offset=at,
            )
