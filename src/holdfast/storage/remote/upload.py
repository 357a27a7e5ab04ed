"""Files on their way into a store: planned first, digested, and then sent in one stream.

A store takes an object from its first byte to its last, while a file is written here and there, its header last, since
it holds the digests of what follows. So nothing is sent while a file is being written: requests are kept and their
bytes digested where they lie; when all are known, they are read a second time in the order of the file. Nothing is
staged on a disk and no copy of the model is made. Bytes that differ from the first time are noticed, and what was sent
of the object is thrown away.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import xxhash

from holdfast.errors import ArgumentError, StorageError
from holdfast.spec import CHUNK
from holdfast.storage.output import take_into
from holdfast.storage.requests import WriteRequest, Written, digest_requests
from holdfast.storage.source import ByteSource, FilledSource, MemorySource, check_inside, shown
from holdfast.storage.staged import refuse_gaps
from holdfast.storage.workers import BLOCK

_Planned = tuple[int, int, ByteSource, int, tuple[str, ...]]
"""(first byte in the file, the byte after its last, the source, first byte there, digests of each 8 MiB)."""


class StagedObject:
    """One object that is being written and that nobody sees yet.

    Attributes:
        path: its URL.
        size: its bytes, as told to :meth:`allocate`, else as far as was written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        self._allocated = False
        self._planned: list[_Planned] = []

    def allocate(self, size: int) -> None:
        """Says how many bytes it will have, once and before writing. Raises ArgumentError when it comes too late."""
        if self._allocated or self._planned or size < 0:
            raise ArgumentError(f"`{shown(self.path)}`: allocate({size:,}) must come once, before anything is written")
        self.size = size
        self._allocated = True

    def write(self, requests: Sequence[WriteRequest], *, digest: bool = True, crc: bool = False) -> list[Written]:
        """Takes requests and digests their bytes, in parallel; may be called several times.

        Args:
            requests: bytes and where they go; they must stay as they are until the object is sent.
            digest: whether to give XXH3-128 digests of each 8 MiB.
            crc: whether to give CRC-32s.

        Raises:
            ArgumentError: a request lies outside the allocated size.
        """
        end = max((request.offset + request.size for request in requests), default=0)
        if self._allocated and end > self.size:
            raise ArgumentError(f"`{shown(self.path)}`: a write up to byte {end:,}, {self.size:,} bytes were allocated")
        self.size = max(self.size, end)
        written = digest_requests(requests, digest=True, crc=crc)
        for request, one in zip(requests, written, strict=True):
            source = request.source
            known = MemorySource(source) if isinstance(source, bytes | bytearray | memoryview) else source
            self._planned.append((request.offset, request.offset + request.size, known, request.start, one.chunks))
        return written if digest else [Written((), one.crc32) for one in written]

    def written(self) -> ByteSource:
        """What will be sent, to be read."""
        refuse_gaps(self.path, [one[:2] for one in self._planned], self.size)
        return _PlannedSource(self.path, self.size, self._planned)

    def blocks(self) -> Iterator[bytes]:
        """The bytes in the order of the file, each read for the last time.

        Raises:
            ArgumentError: bytes were left out or written twice: the writer's own mistake.
            StorageError: they are not what they were when they were digested.
        """
        refuse_gaps(self.path, [one[:2] for one in self._planned], self.size)
        for offset, end, source, start, chunks in sorted(self._planned, key=lambda one: one[0]):
            hasher = xxhash.xxh3_128()
            for at in range(0, end - offset, BLOCK):
                block = bytearray(min(BLOCK, end - offset - at))
                take_into(source, start + at, memoryview(block))
                hasher.update(block)
                done = at + len(block)
                if done % CHUNK == 0 or done == end - offset:
                    if hasher.hexdigest() != chunks[at // CHUNK]:
                        raise self._changed(offset + at // CHUNK * CHUNK, offset + done)
                    hasher.reset()
                yield bytes(block)

    def _changed(self, begin: int, end: int) -> StorageError:
        return StorageError(
            f"`{shown(self.path)}`: bytes {begin:,} to {end:,} changed while they were saved: something writes into "
            "the tensors; save when it rests",
            file=self.path,
            offset=begin,
        )


class _PlannedSource(FilledSource):
    """The bytes of an object that has not been sent, where they lie."""

    def __init__(self, name: str, size: int, planned: Sequence[_Planned]) -> None:
        self.name = name
        self._size = size
        self._planned = sorted((one for one in planned if one[1] > one[0]), key=lambda one: one[0])

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        index = bisect.bisect_right(self._planned, offset, key=lambda one: one[0]) - 1
        done = 0
        while done < buffer.nbytes:
            begin, end, source, start, _ = self._planned[index]
            size = min(end - offset - done, buffer.nbytes - done)
            source.read_into(start + offset + done - begin, buffer[done : done + size])
            done += size
            index += 1
