"""The bytes of one segment of a snapshot: read where they lie until they are copied."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import xxhash

from holdfast.formats.base import Segment
from holdfast.serialization.memory import TensorMemory, TensorSource, address_of, copy_out
from holdfast.spec import CHUNK, Path
from holdfast.storage.requests import ReadRequest
from holdfast.storage.source import FilledSource, check_inside
from holdfast.storage.workers import BLOCK
from holdfast.training.snapshots.owned import Owner
from holdfast.training.snapshots.staging import Staging


class Gate(Protocol):
    """What a source asks of its snapshot."""

    def reading(self) -> AbstractContextManager[None]:
        """While this is held no tensor changes that was not copied."""
        ...

    def took(self, source: SnapshotSource, blocks: Iterable[int]) -> None:
        """Blocks were read for the last time; called while :meth:`reading` is held."""
        ...

    def differs(self, source: SnapshotSource) -> None:
        """What was read is not what was there at the save. Raises SnapshotTorn."""
        ...


class SnapshotSource(FilledSource):
    """The bytes of a segment as they were: read where they lie until they are copied.

    Args:
        gate: the snapshot that this is a part of.
        path: of the first tensor in it.
        segment: the bytes.
        owners: who changes them; nobody when they are copied at once.

    Attributes:
        path: as given.
        owners: as given.
        event: of the copy that an accelerator is making; None where the processor copies.
    """

    def __init__(self, gate: Gate, path: Path, segment: Segment, owners: Collection[Owner]) -> None:
        self.owners = owners
        self.event: Any = None
        self.name = "memory"
        self.path = path
        self._gate = gate
        self._source = segment.source
        self._offset = segment.offset
        self._size = segment.length
        blocks = -(-segment.length // BLOCK)
        self._taken = bytearray(blocks)
        self._left = blocks
        self._copies: array[int] | None = None  # by block, the address of its copy, 0 while there is none
        self._digests: list[int] | None = None
        self._versions = self._written()

    @property
    def size(self) -> int:
        return self._size

    @property
    def tensor(self) -> torch.Tensor | None:
        """The live tensor, when it is one."""
        return self._source.tensor if isinstance(self._source, TensorMemory | TensorSource) else None

    def digest(self) -> None:
        """Takes digests of all blocks, with which :meth:`take_into` compares what it reads."""
        self._digests = []
        for at in range(0, self._size, BLOCK):
            data = self._source.read(self._offset + at, min(BLOCK, self._size - at))
            self._digests.append(xxhash.xxh3_64_intdigest(data))

    def has_moved(self) -> bool:
        """Whether the tensor was written since the snapshot, as far as torch counts that."""
        return self._written() != self._versions

    def _written(self) -> list[int]:
        """How often each of the tensors that have these bytes was written."""
        return [value._version for _, _, value in self.owners]

    def mark(self, blocks: Iterable[int]) -> bool:
        """Notes blocks as taken; returns whether all are."""
        for block in blocks:
            self._left -= 1 - self._taken[block]
            self._taken[block] = 1
        return self._left == 0

    def copies(self, staging: Staging) -> list[ReadRequest]:
        """What it takes to copy all that was not taken; from then on reads go to the copies."""
        requests = []
        for first, end in _runs(self._taken):
            begin = first * BLOCK
            into = staging.take(min(end * BLOCK, self._size) - begin)
            requests.append(ReadRequest(self._source, self._offset + begin, into))
            self._point(range(first, end), into)
        return requests

    def read_from(self, copy: memoryview, event: Any) -> None:
        """All of it is being copied there; the event says when that has ended."""
        self.event = event
        self._point(range(len(self._taken)), copy)

    def _point(self, blocks: range, copy: memoryview) -> None:
        if self._copies is None:
            self._copies = array("Q", bytes(8 * len(self._taken)))
        address = address_of(copy)
        for block in blocks:
            self._copies[block] = address + (block - blocks.start) * BLOCK

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        self._wait()
        with self._gate.reading():
            self._read(offset, buffer)

    def _wait(self) -> None:
        """Before the gate: the training must not wait for who waits here."""
        if self.event is not None:
            self.event.synchronize()

    def take_into(self, offset: int, buffer: memoryview) -> None:
        """Reads bytes for the last time: they need no copy from then on."""
        end = offset + buffer.nbytes
        check_inside(self.name, self._size, offset, buffer.nbytes)
        self._wait()
        with self._gate.reading():
            self._read(offset, buffer)
            whole = offset % BLOCK == 0 and (end == self._size or buffer.nbytes == BLOCK)
            if (
                self._digests is not None
                and whole
                and xxhash.xxh3_64_intdigest(buffer) != self._digests[offset // BLOCK]
            ):
                self._gate.differs(self)
            if self.owners:
                last = len(self._taken) if end == self._size else end // BLOCK
                self._gate.took(self, range(-(-offset // BLOCK), last))

    def leave(self) -> None:
        """Nobody reads it: another process writes these bytes, which it has as well."""
        if self.owners:
            with self._gate.reading():
                self._gate.took(self, range(len(self._taken)))

    def _read(self, offset: int, buffer: memoryview) -> None:
        if self._copies is None:
            self._source.read_into(self._offset + offset, buffer)
            return
        end = offset + buffer.nbytes
        at = offset
        while at < end:
            block = at // BLOCK
            stop = min((block + 1) * BLOCK, end)
            part = buffer[at - offset : stop - offset]
            address = self._copies[block]
            if address:
                copy_out(address + at - block * BLOCK, part)
            else:
                self._source.read_into(self._offset + at, part)
            at = stop


def _runs(taken: bytearray) -> Iterator[tuple[int, int]]:
    """Neighbouring blocks that were not taken, in pieces of at most one chunk."""
    most, first = CHUNK // BLOCK, None
    for block, done in enumerate(taken):
        if first is not None and (done or block - first == most):
            yield first, block
            first = None
        if first is None and not done:
            first = block
    if first is not None:
        yield first, len(taken)
