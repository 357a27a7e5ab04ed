"""The writing end of one job: blocks are digested, gathered with their neighbours, and written."""

from __future__ import annotations

import errno
from typing import Protocol

import xxhash

from holdfast.storage.digest import crc32
from holdfast.storage.source import VECTOR, ByteSource, remainder
from holdfast.storage.syscalls import Syscalls
from holdfast.storage.workers import BLOCK, PAGE

Feed = tuple[int, int, int, memoryview | ByteSource]
"""(offset in the file, first byte in the source, bytes, the source): a WriteRequest after its checks."""


class NothingTaken(OSError):
    """A write that took no byte and gave no reason."""


class Output(Protocol):
    """Takes the bytes of one job in the order of the file."""

    def take(self, source: memoryview | ByteSource, start: int, length: int, offset: int) -> memoryview:
        """Queues ``length`` bytes, :data:`BLOCK` at most, for ``offset``; gives them to look at until the next call."""
        ...

    def flush(self) -> None:
        """Writes what is queued."""
        ...


class BufferedOutput:
    """Gathers neighbouring blocks of one job and writes them with as few system calls as their number allows."""

    def __init__(self, fd: int, syscalls: Syscalls, block: memoryview) -> None:
        self._fd = fd
        self._block = block
        self._pwritev = syscalls.pwritev
        self._blocks: list[memoryview] = []
        self._start = 0
        self._bytes = 0
        self._buffered = 0

    def take(self, source: memoryview | ByteSource, start: int, length: int, offset: int) -> memoryview:
        # memory is queued where it lies, so it must stay as it is until it is written
        block = source[start : start + length] if isinstance(source, memoryview) else self._fetch(source, start, length)
        if offset != self._start + self._bytes or len(self._blocks) == VECTOR:
            self.flush()
            self._start = offset
        self._blocks.append(block)
        self._bytes += length
        if self._bytes >= BLOCK:
            self.flush()
        return block

    def _fetch(self, source: ByteSource, start: int, length: int) -> memoryview:
        """Reads from a source into this thread's buffer; the bytes stay there until the flush before the next fetch."""
        if self._buffered + length > BLOCK:
            self.flush()
            self._buffered = 0
        block = self._block[self._buffered : self._buffered + length]
        take_into(source, start, block)
        self._buffered += length
        return block

    def flush(self) -> None:
        blocks, at, end = self._blocks, self._start, self._start + self._bytes
        while at < end:
            count = _some(self._pwritev(self._fd, blocks, at))
            at += count
            if at < end:  # a short write: a signal, or a disk that is nearly full
                blocks = remainder(blocks, count)
        self._blocks, self._start, self._bytes = [], end, 0


class DirectOutput:
    """Writes past the page cache: no fresh page of memory for each page of the file, and nothing left to flush.

    Such writes begin and end at page borders, in the file and in memory. The bytes are gathered in this thread's own
    block, which begins at a border, each at the place that it has within its page of the file. What remains of a page
    at both ends of a job is written through the cache; it shares no page with what goes past it.

    Args:
        fd: the file, through the cache.
        direct: the file, past it (``O_DIRECT``).
        syscalls: what writes.
        block: this thread's block, two pages longer than ``BLOCK`` and at a page border.
    """

    def __init__(self, fd: int, direct: int, syscalls: Syscalls, block: memoryview) -> None:
        self._fd = fd
        self._direct = direct
        self._syscalls = syscalls
        self._block = block
        self._offset = 0  # in the file, of the block's first byte: a page border
        self._first = self._end = 0  # what is queued of the block

    def take(self, source: memoryview | ByteSource, start: int, length: int, offset: int) -> memoryview:
        if offset != self._offset + self._end:
            self.flush()
            self._offset = offset // PAGE * PAGE
            self._first = self._end = offset % PAGE
        if self._end + length > self._block.nbytes:
            self._write_pages()
        block = self._block[self._end : self._end + length]
        if isinstance(source, memoryview):
            block[:] = source[start : start + length]
        else:
            take_into(source, start, block)
        self._end += length
        return block

    def flush(self) -> None:
        self._write_pages()
        self._write(self._fd, self._first, self._end)
        self._first = self._end

    def _write_pages(self) -> None:
        """Writes all whole pages; what is left of the last one moves to the front."""
        if self._first % PAGE:
            border = min(-(-self._first // PAGE) * PAGE, self._end)
            self._write(self._fd, self._first, border)
            self._first = border
        border = self._end // PAGE * PAGE
        if border <= self._first:
            return
        self._write(self._direct, self._first, border)
        rest = self._end - border
        self._block[:rest] = self._block[border : self._end]
        self._offset += border
        self._first, self._end = 0, rest

    def _write(self, fd: int, begin: int, end: int) -> None:
        while begin < end:
            try:
                count = self._syscalls.pwritev(fd, [self._block[begin:end]], self._offset + begin)
            except OSError as error:
                if fd == self._fd or error.errno != errno.EINVAL:
                    raise
                fd = self._direct = self._fd  # this disk wants other borders: through the cache, from here on
                continue
            begin += _some(count)
            if begin % PAGE:
                fd = self._fd  # a short write may end anywhere


class NoOutput:
    """Only shows the bytes, to be digested. Sources keep what they hold for a writer, which comes later."""

    def __init__(self, block: memoryview) -> None:
        self._block = block

    def take(self, source: memoryview | ByteSource, start: int, length: int, offset: int) -> memoryview:
        if isinstance(source, memoryview):
            return source[start : start + length]
        block = self._block[:length]
        source.read_into(start, block)
        return block

    def flush(self) -> None:
        """Nothing is queued."""


def _some(count: int) -> int:
    """The count of a write; one that took nothing is an error, since asking again could go on for ever."""
    if count == 0:
        raise NothingTaken(errno.EIO, "the disk took none of the bytes and did not say why")
    return count


def pass_over(source: object) -> None:
    """Tells a source that nobody will read it: one that keeps bytes for a reader need not."""
    leave = getattr(source, "leave", None)
    if leave is not None:
        leave()


def take_into(source: ByteSource, start: int, block: memoryview) -> None:
    """Reads bytes for the last time: a source that holds them for the writer alone may let go of them."""
    take = getattr(source, "take_into", None)
    (take or source.read_into)(start, block)


def write_piece(out: Output, feed: Feed, start: int, length: int, digest: bool, crc: bool) -> tuple[str, int]:
    """Writes ``length`` bytes from ``start`` of what ``feed`` says; returns digest and CRC, "" and 0 if unasked."""
    offset, first, _, source = feed
    if length <= BLOCK:
        block = out.take(source, first + start, length, offset + start)
        return xxhash.xxh3_128_hexdigest(block) if digest else "", crc32(block) if crc else 0
    hasher, value = xxhash.xxh3_128(), 0
    for at in range(start, start + length, BLOCK):
        block = out.take(source, first + at, min(BLOCK, start + length - at), offset + at)
        if digest:
            hasher.update(block)
        if crc:
            value = crc32(block, value)
    return hasher.hexdigest() if digest else "", value
