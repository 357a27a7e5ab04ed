r"""numpy's ``.npz``: a zip with one ``NAME.npy`` for each array, read without numpy and without unpickling.

::

    \x93NUMPY  major minor      then the length of the header: 2 bytes in version 1, 4 in versions 2 and 3
    the header                  {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, spaces and a line end
    the rest                    the elements, and nothing else

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The header is Python text; it is taken
apart by a pattern and never evaluated. Arrays of objects are pickles: they are refused. Written files hold arrays
alone: a tree becomes a flat list of names, and what is no array has no place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from holdfast.errors import CorruptFile, RefusedFile, UnknownFormat, UnsupportedValue
from holdfast.formats.archive import Archive
from holdfast.formats.arrays import CODE, itemsize, numpy_code, row_major, torch_dtype
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.lost import listed
from holdfast.formats.npz_names import Array, arrays_of
from holdfast.formats.packing import tensor_bytes
from holdfast.formats.tensors import TensorPlacer
from holdfast.formats.zips import first_name
from holdfast.formats.zipwriter import directory, directory_size, plan
from holdfast.spec import contiguous_stride
from holdfast.state.values import Tree, Typed
from holdfast.storage.digest import crc32, crc32_combine
from holdfast.storage.places import Staged
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import ByteSource, MemorySource, shown

NAME = "npz"
SUFFIXES: tuple[str, ...] = (".npz",)

HEADER_LIMIT = 10_000
"""Bytes of an array's header: as many as numpy reads from a file that it does not trust."""
VALUE_LIMIT = 64 << 20
"""Bytes of an array of a dtype that torch lacks (text, dates): it is kept as a value, in memory."""

_MAGIC = b"\x93NUMPY"
_ALIGNMENT = 64
_FIRST = 256
"""Bytes that nearly every header fits into."""
_DIGITS = 20
"""Of the largest number in 64 bits."""
_FIELD = re.compile(
    r"\s*(['\"])(?P<key>\w{1,20})\1\s*:\s*"
    r"(?:(['\"])(?P<descr>[^'\"]{0,100})\3|(?P<fortran_order>True|False)|\((?P<shape>[\d\sL,]*)\)|(?P<records>\[))\s*,?\s*"
)


def sniff(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a zip whose first record is a ``.npy``."""
    return first_name(head).endswith(b".npy")


def open(source: ByteSource, file: str) -> Npz:  # noqa: A001 - a Format's verb
    """Opens an npz; the header of each array is read and checked.

    Raises:
        CorruptFile: parts are missing, damaged or disagree.
        RefusedFile: an array of objects, or past a limit.
        UnknownFormat: a record that is no array.
    """
    return Npz(source, file)


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Header(msgspec.Struct):
    """What stands before the elements of an array.

    Attributes:
        code: numpy's dtype, ``<f4``.
        fortran: whether the first dimension is the one whose elements are neighbours.
        shape: elements per dimension.
        size: bytes of all of this.
        crc: their CRC-32.
    """

    code: str
    fortran: bool
    shape: tuple[int, ...]
    size: int
    crc: int


class Npz(Container):
    """An opened npz: a flat dict of its arrays."""

    format = NAME

    def __init__(self, source: ByteSource, file: str) -> None:
        self.file = file
        self._source = source
        self._archive = Archive(source, file, flat=True)
        self._placer = TensorPlacer(file)
        self._tree: dict[str, Tree] = {}
        self._segments: list[Segment] = []
        for record in self._archive.records:
            name = record.removesuffix(".npy")
            if name == record:
                raise UnknownFormat(f"`{shown(file)}`: holds {shown(record)}, which is no .npy array", file=file)
            self._tree[name] = self._array(record, name)

    def document(self) -> Document:
        """A dict of the arrays by name: tensors, and values of numpy where torch lacks the dtype."""
        return Document(dict(self._tree))

    def segments(self) -> list[Segment]:
        """The elements of each tensor, with the CRC that follows from that of its record."""
        return list(self._segments)

    def close(self) -> None:
        self._source.close()

    def _array(self, record: str, name: str) -> Tree:
        header = self._header(record)
        dtype = torch_dtype(header.code)
        length = self._archive.records[record].size - header.size
        if math.prod(header.shape) * (itemsize(header.code) or 0) != length:
            raise self._lie(
                record, f"shape {header.shape!r:.200} of {header.code} does not take the {length:,} bytes that follow"
            )
        if dtype is None:
            return self._value(record, header)
        source, start = self._archive.place(record, skip=header.size)
        crc = self._archive.records[record].crc
        crc_of_data = crc32_combine(header.crc, crc, length) if crc else None  # addition undoes itself
        big = header.code[0] == ">" and not header.code.endswith("1")
        segment = Segment(source, start, length, name, crc32=crc_of_data, swapped=big)
        self._segments.append(segment)
        stride = tuple(reversed(contiguous_stride(header.shape[::-1]))) if header.fortran else None
        return self._placer.place(segment, (dtype, header.shape, stride), 0, False)

    def _value(self, record: str, header: _Header) -> Typed:
        """An array of text or dates, say."""
        data = self._archive.read(record, limit=VALUE_LIMIT)[header.size :]
        if header.fortran:
            data = row_major(data, header.shape, itemsize(header.code) or 1)
        return Typed("numpy.array", {"dtype": header.code, "shape": list(header.shape), "data": data})

    def _header(self, record: str) -> _Header:
        head = self._archive.head(record, _FIRST)
        if head[:6] != _MAGIC or len(head) < 12:
            raise self._lie(record, f"begins with {head[:6]!r}, an array begins with {_MAGIC!r}")
        if head[6] not in (1, 2, 3):
            raise UnknownFormat(
                f"`{shown(self.file)}`: {shown(record)} is an array file of version {head[6]}; 1 to 3 are known",
                file=self.file,
            )
        start = 10 if head[6] == 1 else 12
        size = start + int.from_bytes(head[8:start], "little")
        if size > HEADER_LIMIT:
            raise RefusedFile(
                f"`{shown(self.file)}`: the header of {shown(record)} has {size:,} bytes, the limit is "
                f"{HEADER_LIMIT:,}",
                file=self.file,
            )
        if size > len(head):
            head = self._archive.head(record, size)
        if size > len(head):
            raise self._lie(record, f"its header should have {size:,} bytes, it ends after {len(head):,}")
        return self._parsed(record, head[:size], str(head[start:size], "latin-1"))

    def _parsed(self, record: str, head: bytes, text: str) -> _Header:
        fields: dict[str, str] = {}
        body = text.strip()
        at, end = 1, len(body) - 1
        while body[:1] == "{" and body[-1:] == "}" and at < end:
            match = _FIELD.match(body, at, end)
            if match is not None and match["records"] and match["key"] == "descr":
                raise self._refused(record, "records (a structured dtype)")
            if match is None or match.lastgroup != match["key"]:
                break
            fields[match["key"]] = match[match["key"]]
            at = match.end()
        sizes = fields.get("shape", "").split(",")
        if sorted(fields) != ["descr", "fortran_order", "shape"] or at != end:
            raise self._lie(record, f"its header is {text[:100]!r}, which numpy does not write")
        return self._checked(record, fields, sizes, head)

    def _checked(self, record: str, fields: Mapping[str, str], sizes: Sequence[str], head: bytes) -> _Header:
        code = fields["descr"]
        if CODE.fullmatch(code) is None:
            raise self._refused(record, f"{'Python objects' if code[-1:] == 'O' else 'values'} (dtype {shown(code)})")
        numbers = [size.strip().removesuffix("L") for size in sizes]  # Python 2 wrote 3L
        if numbers[-1] == "":
            numbers.pop()
        if not all(number.isdecimal() and len(number) <= _DIGITS for number in numbers):
            raise self._lie(record, f"its shape is ({fields['shape'][:100]})")
        return _Header(code, fields["fortran_order"] == "True", tuple(map(int, numbers)), len(head), crc32(head))

    def _refused(self, record: str, what: str) -> RefusedFile:
        return RefusedFile(
            f"`{shown(self.file)}`: {shown(record)} holds {what}, which is not read: objects would be made by running "
            "a pickle; load it where it was made and save its numbers",
            file=self.file,
        )

    def _lie(self, record: str, what: str) -> CorruptFile:
        offset = self._archive.records[record].start
        return CorruptFile(
            f"`{shown(self.file)}`: at byte {offset:,}: {shown(record)}: {what}: corrupt", file=self.file, offset=offset
        )


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(staged: Staged, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
    """Writes the arrays of a document under their dotted paths, uncompressed.

    Args:
        staged: the file; nothing has been written to it yet.
        document: what to write; all of it must be arrays.
        top: not used by this format.

    Returns:
        ``{"notes": [...]}``: what a reader will find different.

    Raises:
        UnsupportedValue: lists what numpy has no array for.
    """
    arrays, lost = arrays_of(document)
    if lost:
        raise UnsupportedValue(
            f"`{shown(staged.path)}`: an npz holds arrays only, and can't carry {listed(lost)}", path=lost[0].name
        )
    if not arrays:
        raise UnsupportedValue(f"`{shown(staged.path)}`: there is no tensor to write; an npz holds arrays")
    parts = [_content(array) for array in arrays]
    sizes = [(f"{array.name}.npy", len(head) + data.size) for array, (head, data) in zip(arrays, parts, strict=True)]
    planned = plan(sizes, "")
    staged.allocate(planned[-1].end + directory_size(planned))
    requests = [
        WriteRequest(record.start + len(head), data) for record, (head, data) in zip(planned, parts, strict=True)
    ]
    around: list[WriteRequest] = []
    written = staged.write(requests, digest=False, crc=True)
    for record, (head, data), one in zip(planned, parts, written, strict=True):
        record.crc = crc32_combine(crc32(head), one.crc32 or 0, data.size)
        around.append(WriteRequest(record.header, record.head() + head))
        around.append(WriteRequest(record.start + record.size, record.tail()))
    staged.write([*around, WriteRequest(planned[-1].end, directory(planned))], digest=False)
    return {"notes": []}


def _content(array: Array) -> tuple[bytes, ByteSource]:
    """The header and the bytes of an array."""
    if isinstance(array.value, StoredTensor):
        spec = array.value.spec
        columns = spec.stride == tuple(reversed(contiguous_stride(spec.shape[::-1])))
        code = numpy_code(spec.dtype) or ""
        return _head(code, columns, spec.shape), tensor_bytes(array.value, as_it_lies=columns)
    payload = array.value
    return _head(payload["dtype"], False, tuple(payload["shape"])), MemorySource(payload["data"])


def _head(code: str, fortran: bool, shape: tuple[int, ...]) -> bytes:
    """Magic, length and header, padded so that the elements begin at a multiple of the alignment."""
    text = f"{{'descr': {code!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}".encode("ascii")
    text += b" " * (-(10 + len(text) + 1) % _ALIGNMENT) + b"\n"
    return _MAGIC + b"\1\0" + len(text).to_bytes(2, "little") + text
