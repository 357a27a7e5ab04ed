"""The opcodes of single values in a pickle of protocol 2."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def integer(value: int) -> bytes:
    """The shortest opcode for an integer. Raises OverflowError past 255 bytes."""
    if 0 <= value < 256:
        return b"K%c" % value
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > 255:
        raise OverflowError
    return b"\x8a%c%b" % (len(data), data)


def integers(values: Iterable[int]) -> bytes:
    """A tuple of integers."""
    return b"(%bt" % b"".join([integer(value) for value in values])


def real(value: float) -> bytes:
    """A float, NaN and infinities included."""
    return b"G" + struct.pack(">d", value)


def text(value: str) -> bytes:
    """A string, lone surrogates included."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def boolean(value: bool) -> bytes:
    """True or False."""
    return b"\x88" if value else b"\x89"
