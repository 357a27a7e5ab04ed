"""The frame of a torch zip: where each record goes, and the headers around it, as torch 2.13's own writer lays it out.

Lengths decide every position, so the plan stands before a byte is written; checksums are filled in afterwards. Source:
``caffe2/serialize/inline_container.cc`` of torch 2.13 and the ZIP application note, 6.3.10.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

import msgspec
import xxhash

from holdfast.errors import ArgumentError
from holdfast.formats.archive import (
    BIG,
    BIG16,
    CENTRAL,
    CENTRAL_MARK,
    DESCRIPTOR_MARK,
    END,
    END64,
    END64_MARK,
    END_MARK,
    HAS_DESCRIPTOR,
    LOCAL,
    LOCAL_MARK,
    LOCATOR,
    LOCATOR_MARK,
    UTF8,
)

ALIGNMENT = 64
"""Where records begin: at multiples of this."""
_TAIL, _LONG_TAIL = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")


class Planned(msgspec.Struct, gc=False):
    """One record of the archive to be.

    Attributes:
        name: with its folder, ``model/data/0``.
        size: bytes.
        header: where its header goes.
        start: where its bytes go.
        crc: their CRC-32, once they are known.
    """

    name: bytes
    size: int
    header: int
    start: int
    crc: int = 0

    @property
    def end(self) -> int:
        """The first byte after its descriptor."""
        return self.start + self.size + (0 if not self.size else 24 if self._is_big else 16)

    @property
    def _is_big(self) -> bool:
        return self.size >= BIG or self.header >= BIG

    def head(self) -> bytes:
        """The local header, padded so that the bytes begin at a multiple of the alignment."""
        wide = self.wide(packed=0)
        local, padding = _around_name(self._flags, len(self.name), len(wide), self.start - self.header)
        return local + self.name + wide + padding

    def tail(self) -> bytes:
        """The descriptor after the bytes; empty records have none."""
        if not self.size:
            return b""
        return (_LONG_TAIL if self._is_big else _TAIL).pack(DESCRIPTOR_MARK, self.crc, self.size, self.size)

    def entry(self) -> bytes:
        """Its entry in the central directory."""
        size, header, wide = self.size, self.header, self.wide()
        if wide:
            size, header = min(size, BIG), min(header, BIG)
        name = self.name
        fixed = CENTRAL.pack(
            CENTRAL_MARK, 0, 0, self._flags, 0, 0, 0, self.crc, size, size, len(name), len(wide), 0, 0, 0, 0, header
        )
        return fixed + name + wide

    @property
    def _flags(self) -> int:
        return UTF8 | HAS_DESCRIPTOR if self.size else UTF8

    def wide(self, packed: int | None = None) -> bytes:
        """The zip64 field of the numbers that four bytes can't hold; nothing when all fit."""
        if self.size < BIG and self.header < BIG:
            return b""
        numbers = struct.pack("<2Q", self.size, self.size if packed is None else packed) if self.size >= BIG else b""
        if self.header >= BIG:
            numbers += struct.pack("<Q", self.header)
        return struct.pack("<HH", 1, len(numbers)) + numbers


@functools.lru_cache(maxsize=1024)
def _around_name(flags: int, name_size: int, wide_size: int, room: int) -> tuple[bytes, bytes]:
    """A local header of ``room`` bytes, up to the name and after the zip64 field: many records have the same ones.

    What is left is an extra field of bytes that mean nothing.
    """
    count = room - LOCAL.size - name_size - wide_size - 4
    local = LOCAL.pack(LOCAL_MARK, 0, flags, 0, 0, 0, 0, 0, 0, name_size, wide_size + 4 + count)
    return local, b"FB" + struct.pack("<H", count) + b"Z" * count


def plan(records: Sequence[tuple[str, int]], top: str, *, alignment: int = ALIGNMENT) -> list[Planned]:
    """Positions for records, in their order.

    Args:
        records: names inside the folder, and bytes.
        top: the folder; empty for none.
        alignment: the bytes of each record begin at a multiple of this.

    Raises:
        ArgumentError: the padding does not fit into 16 bits.
    """
    planned: list[Planned] = []
    prefix = top.encode() + b"/" if top else b""
    at = 0
    for inner, size in records:
        name = prefix + inner.encode()
        start = at + LOCAL.size + len(name) + 4
        if at >= BIG or size >= BIG:
            start += 4 + (16 if size >= BIG else 0) + (8 if at >= BIG else 0)
        start += -start % alignment
        if start - at - LOCAL.size - len(name) > BIG16:
            raise ArgumentError(f"alignment {alignment:,} needs more padding than a zip can have; take half of it")
        record = Planned(name, size, at, start)
        planned.append(record)
        at = record.end
    return planned


def directory(planned: Sequence[Planned]) -> bytes:
    """The central directory and the end records; their length does not depend on the checksums."""
    start = planned[-1].end
    entries = b"".join([record.entry() for record in planned])
    count, end = len(planned), start + len(entries)
    end64 = END64.pack(END64_MARK, END64.size - 12, 798, 45, 0, 0, count, count, len(entries), start)
    locator = LOCATOR.pack(LOCATOR_MARK, 0, end, 1)
    short = min(count, BIG16)
    last = END.pack(END_MARK, 0, 0, short, short, min(len(entries), BIG), min(start, BIG), 0)
    return entries + end64 + locator + last


def directory_size(planned: Sequence[Planned]) -> int:
    """Bytes that :func:`directory` will have."""
    entries = sum(CENTRAL.size + len(record.name) for record in planned)
    wide = sum(len(record.wide()) for record in planned if record.size >= BIG or record.header >= BIG)
    return entries + wide + END64.size + LOCATOR.size + END.size


def serialization_id(planned: Sequence[Planned]) -> bytes:
    """40 digits out of the records' names and checksums, as torch has them; torch logs them and never compares."""
    names = xxhash.xxh64_intdigest(b"\0".join([record.name for record in planned]))
    sums = xxhash.xxh64_intdigest(b"".join([record.crc.to_bytes(4, "little") for record in planned]))
    return b"%020d%020d" % (names, sums)
