"""The header of a safetensors file: decoded in bulk, and every number in it checked against the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from holdfast.errors import CorruptFile, RefusedFile, UnknownFormat
from holdfast.spec import BY_SAFETENSORS
from holdfast.state.paths import printable
from holdfast.storage.source import ByteSource

RESERVED = "__metadata__"
"""The one name that a header keeps for itself."""
HEADER_LIMIT = 100_000_000
"""Bytes that a header may have: the format's own limit."""
MAX_RANK = 64

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Shape = Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_RANK)]


class HeaderEntry(msgspec.Struct, gc=False):
    """One tensor of a header, as the format spells it.

    Attributes:
        dtype: a code such as ``F32``.
        shape: elements per dimension.
        data_offsets: begin and end of its bytes, counted from the end of the header.
    """

    dtype: str
    shape: Shape
    data_offsets: tuple[Count, Count]


class Header(msgspec.Struct):
    """A header that has been checked against its file.

    Attributes:
        raw: its bytes.
        entries: by name, in the header's order.
        metadata: the strings under ``__metadata__``.
    """

    raw: bytes
    entries: dict[str, HeaderEntry]
    metadata: dict[str, str]

    @property
    def data(self) -> int:
        """Where the tensors' bytes begin in the file."""
        return 8 + len(self.raw)


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRIES = msgspec.json.Decoder(list[HeaderEntry])
_ENTRY = msgspec.json.Decoder(HeaderEntry)
_METADATA = msgspec.json.Decoder(dict[str, str] | None)


def read_header(source: ByteSource, file: str) -> Header:
    """Reads, decodes and checks a header.

    Raises:
        CorruptFile: it is cut short, or says what can't be true of this file.
        RefusedFile: it is larger than ``HEADER_LIMIT`` bytes.
        UnknownFormat: a dtype that this version does not know.
    """
    raw = _read(source, file)
    try:
        entries, metadata = _decode(raw, file)
    except (msgspec.DecodeError, RecursionError, ValueError) as reason:
        raise corrupt(file, f"its header is no valid safetensors header: {shown(str(reason))}", 8) from None
    _check_entries(entries, file, source.size - 8 - len(raw))
    return Header(raw, entries, metadata)


def corrupt(file: str, text: str, offset: int | None = None) -> CorruptFile:
    """The error for a file that contradicts itself."""
    return CorruptFile(f"`{printable(file)}`: {text}", file=file, offset=offset)


def shown(text: str) -> str:
    """Text from a file for a message: its beginning, printable."""
    return printable(text[:200])


def by_place(entries: Mapping[str, HeaderEntry]) -> list[tuple[str, HeaderEntry]]:
    """Entries in the order of their bytes."""
    return sorted(entries.items(), key=lambda item: item[1].data_offsets)


def _read(source: ByteSource, file: str) -> bytes:
    if source.size < 8:
        raise corrupt(file, f"has {source.size} bytes, a safetensors file has at least 8: cut short", 0)
    length = int.from_bytes(source.read(0, 8), "little")
    if length > HEADER_LIMIT:
        raise RefusedFile(
            f"`{printable(file)}`: its first 8 bytes say that the header has {length:,} bytes, the limit is "
            f"{HEADER_LIMIT:,}: not a safetensors file, or damaged",
            file=file,
            offset=0,
        )
    if length > source.size - 8:
        raise corrupt(file, f"the header should have {length:,} bytes, the file ends after {source.size - 8:,}", 8)
    header = source.read(8, length)
    if header[:1] != b"{":
        raise corrupt(file, f"at byte 8: the header begins with {header[:1]!r}, not with a brace", 8)
    return header


def _decode(header: bytes, file: str) -> tuple[dict[str, HeaderEntry], dict[str, str]]:
    """In bulk: one pass splits the header by name, a second decodes all entries as one list."""
    members = _MEMBERS.decode(header)
    count = len(members)
    metadata = _METADATA.decode(members.pop(RESERVED, b"{}")) or {}
    entries = dict(zip(members, _decode_entries(members, file), strict=True))
    texts = sum(text.count(":") for group in (entries, metadata, metadata.values()) for text in group)
    if header.count(b":") != count + 3 * len(entries) + len(metadata) + texts or b"\\u003" in header:
        _refuse_duplicates(header, file)
    return entries, metadata


def _decode_entries(members: dict[str, msgspec.Raw], file: str) -> list[HeaderEntry]:
    try:
        return _ENTRIES.decode(b"[" + b",".join(members.values()) + b"]")
    except msgspec.ValidationError:
        for name, value in members.items():  # once more, one by one: which was it?
            try:
                _ENTRY.decode(value)
            except msgspec.ValidationError as reason:
                raise corrupt(file, f"the entry of `{shown(name)}` in its header is wrong: {reason}", 8) from None
        raise


def _refuse_duplicates(header: bytes, file: str) -> None:
    """Refuses a key that stands twice, at any level: two readers could take different ones.

    The fast decoder keeps the last one silently, so its caller counts colons: a member has exactly one outside of
    strings, those inside are known from the decoded strings, and one can hide only as an escape, which begins with
    ``u003``. Only when that count is off, or can't be trusted, the header is decoded once more, here.
    """

    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise corrupt(file, f"`{shown(key)}` stands twice in its header", 8)
            seen.add(key)

    import json

    json.loads(header, object_pairs_hook=unique)


def _check_entries(entries: dict[str, HeaderEntry], file: str, data: int) -> None:
    at, before = 0, ""
    for name, entry in by_place(entries):
        begin, end = entry.data_offsets
        row = BY_SAFETENSORS.get(entry.dtype)
        if row is None:
            raise UnknownFormat(
                f"`{printable(file)}`: `{shown(name)}` has dtype '{shown(entry.dtype)}', which this version does not "
                f"know; it knows {', '.join(BY_SAFETENSORS)}",
                file=file,
                path=name,
            )
        if math.prod(entry.shape) * row.itemsize != end - begin:
            wanted = math.prod(entry.shape) * row.itemsize
            raise corrupt(
                file,
                f"`{shown(name)}`: {list(entry.shape)} {entry.dtype} takes {wanted:,} bytes, its offsets "
                f"[{begin:,}, {end:,}] hold {end - begin:,}",
            )
        if begin != at:
            what = f"overlaps `{shown(before)}`" if begin < at else "leaves a hole before it"
            raise corrupt(file, f"`{shown(name)}`: its bytes begin at {begin:,}, not at {at:,}: it {what}")
        if begin == end and math.prod(max(size, 1) for size in entry.shape) * row.itemsize >= 2**63:
            raise corrupt(file, f"`{shown(name)}`: the shape {list(entry.shape)} is too large for any machine")
        at, before = end, name
    if at != data:
        problem = "cut short" if at > data else "bytes that belong to no tensor"
        raise corrupt(file, f"its tensors take {at:,} bytes, {data:,} follow the header: {problem}")
