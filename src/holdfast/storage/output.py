"""The writing end of one job: blocks are digested, gathered with their neighbours, and written."""

from __future__ import annotations

import errno

import xxhash

from holdfast.storage.digest import crc32
from holdfast.storage.source import VECTOR, ByteSource, remainder
from holdfast.storage.syscalls import Syscalls
from holdfast.storage.workers import BLOCK

Feed = tuple[int, int, int, memoryview | ByteSource]
"""(offset in the file, first byte in the source, bytes, the source): a WriteRequest after its checks."""


class NothingTaken(OSError):
    """A write that took no byte and gave no reason."""


class Output:
    """Gathers neighbouring blocks of one job and writes them with as few system calls as their number allows."""

    def __init__(self, fd: int, syscalls: Syscalls, block: memoryview) -> None:
        self._fd = fd
        self._block = block
        self._pwritev = syscalls.pwritev
        self._blocks: list[memoryview] = []
        self._start = 0
        self._bytes = 0
        self._buffered = 0

    def put(self, block: memoryview, offset: int) -> None:
        """Queues ``block``, which must stay as it is until the next flush."""
        if offset != self._start + self._bytes or len(self._blocks) == VECTOR:
            self.flush()
            self._start = offset
        self._blocks.append(block)
        self._bytes += block.nbytes
        if self._bytes >= BLOCK:
            self.flush()

    def fetch(self, source: ByteSource, start: int, length: int) -> memoryview:
        """Reads from a source into this thread's buffer; the bytes stay there until the next flush."""
        if self._buffered + length > BLOCK:
            self.flush()
            self._buffered = 0  # only here: a flush in put must not give away the block that is about to be queued
        block = self._block[self._buffered : self._buffered + length]
        source.read_into(start, block)
        self._buffered += length
        return block

    def flush(self) -> None:
        blocks, at, end = self._blocks, self._start, self._start + self._bytes
        while at < end:
            count = self._pwritev(self._fd, blocks, at)
            if count == 0:  # asking again could go on for ever
                raise NothingTaken(errno.EIO, "the disk took none of the bytes and did not say why")
            at += count
            if at < end:  # a short write: a signal, or a disk that is nearly full
                blocks = remainder(blocks, count)
        self._blocks, self._start, self._bytes = [], end, 0


def write_piece(out: Output, feed: Feed, start: int, length: int, digest: bool, crc: bool) -> tuple[str, int]:
    """Writes ``length`` bytes from ``start`` of what ``feed`` says; returns digest and CRC, "" and 0 if unasked."""
    offset, first, _, source = feed
    if length <= BLOCK:
        block = _block(out, source, first + start, length)
        hexed = xxhash.xxh3_128_hexdigest(block) if digest else ""
        value = crc32(block) if crc else 0
        out.put(block, offset + start)
        return hexed, value
    hasher, value = xxhash.xxh3_128(), 0
    for at in range(start, start + length, BLOCK):
        block = _block(out, source, first + at, min(BLOCK, start + length - at))
        if digest:
            hasher.update(block)
        if crc:
            value = crc32(block, value)
        out.put(block, offset + at)
    return hasher.hexdigest() if digest else "", value


def _block(out: Output, source: memoryview | ByteSource, start: int, length: int) -> memoryview:
    if isinstance(source, memoryview):
        return source[start : start + length]
    return out.fetch(source, start, length)
