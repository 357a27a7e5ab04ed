"""Digests and checksums: XXH3-128 of chunks, CRC-32 of zip records, and CRCs joined without reading again.

XXH3 finds damage, not forgery: whoever can change a file can change its digest. https://github.com/Cyan4973/xxHash
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import xxhash

from holdfast.errors import CorruptFile
from holdfast.spec import CHUNK
from holdfast.storage.source import byte_view, shown

try:
    from isal.isal_zlib import crc32 as _crc32  # the same CRC-32, several times faster
except ImportError:
    from zlib import crc32 as _crc32

ALGORITHM = "xxh3-128"
"""What new digests are made with. Where a digest stands without a prefix, it is this one."""

Bytes = bytes | bytearray | memoryview


class Hasher(Protocol):
    """What hashlib's and xxhash's objects have in common."""

    def update(self, data: Any, /) -> object:
        """Takes more bytes in."""
        ...

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""
        ...


def hasher_like(expected: str) -> tuple[Hasher, str]:
    """A fresh hasher of the algorithm that ``expected`` was made with, and the prefix to put before its hex.

    Raises:
        CorruptFile: the algorithm is unknown.
    """
    algorithm, mark, _ = expected.rpartition(":")
    if algorithm in ("", ALGORITHM):
        return xxhash.xxh3_128(), algorithm + mark
    if algorithm == "sha256":
        import hashlib  # it loads OpenSSL, for files that few have

        return hashlib.sha256(), algorithm + mark
    raise CorruptFile(f"digest {expected[:100]!r}: the algorithm is neither {ALGORITHM} nor sha256")


def chunk_digests(buffer: Bytes) -> tuple[str, ...]:
    """One XXH3-128 digest (hex) for each 8 MiB of ``buffer``, the last chunk shorter; none for no bytes."""
    view = byte_view(buffer)
    return tuple(xxhash.xxh3_128_hexdigest(view[at : at + CHUNK]) for at in range(0, view.nbytes, CHUNK))


def digest_bytes(data: Bytes) -> str:
    """The digest of a small file as manifests name it: ``xxh3-128:`` and hex."""
    return f"{ALGORITHM}:{xxhash.xxh3_128_hexdigest(data)}"


def check_digest(data: Bytes, expected: str, *, file: str) -> None:
    """Raises CorruptFile, naming ``file``, unless ``data`` has the digest ``expected`` (``xxh3-128:..``)."""
    hasher, prefix = hasher_like(expected)
    hasher.update(data)
    found = prefix + hasher.hexdigest()
    if found != expected:
        raise CorruptFile(f"`{shown(file)}`: its digest is {found}, {expected[:100]} is recorded: corrupt", file=file)


def crc32(buffer: Bytes, value: int = 0) -> int:
    """The CRC-32 of zip files (ISO 3309), continued from ``value``."""
    return _crc32(buffer, value)


_POLYNOMIAL = 0xEDB88320
"""x**32 + x**26 + ... + 1 with the bits reversed, as zip uses it: the highest power is the lowest bit."""


def _multiply(a: int, b: int) -> int:
    """a(x) * b(x) modulo the CRC's polynomial, over GF(2), bits reversed."""
    product = 0
    bit = 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


@lru_cache(maxsize=4096)
def _shift(length: int) -> int:
    """x**(8 * length) modulo the polynomial: what ``length`` more bytes multiply a CRC by. By repeated squaring."""
    power, square = 1 << 31, 1 << 23  # x**0, x**8
    while length:
        if length & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        length >>= 1
    return power


def crc32_combine(first: int, second: int, second_length: int) -> int:
    """The CRC-32 of two pieces in a row from the CRC-32 of each and the length of the second, in bytes.

    A CRC is linear over GF(2): appending n bytes multiplies it by x**(8n), and the second piece's CRC is added. The
    idea is that of zlib's function of the same name (Mark Adler, https://github.com/madler/zlib, crc32.c).
    """
    return _multiply(_shift(second_length), first) ^ second


def joined_crc(values: Sequence[int], length: int) -> int:
    """The CRC-32 of ``length`` bytes from the CRC-32 of each 8 MiB of them."""
    whole = values[0]
    for number, value in enumerate(values[1:], 1):
        whole = crc32_combine(whole, value, min(CHUNK, length - number * CHUNK))
    return whole
