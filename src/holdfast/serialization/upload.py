"""Bytes of files on their way into tensors of an accelerator.

A few threads read them, and check their digests, in a ring of pinned blocks; a stream beside the program's own copies
each block to its places, and the block is used again when that has ended. So the disk, the digests and the device work
side by side, and the host needs the ring and no more, whatever the size of a tensor.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from holdfast.serialization.side_stream import SideStream, pinned_memory
from holdfast.spec import CHUNK
from holdfast.storage.digest import crc32, joined_crc
from holdfast.storage.requests import Damage, ReadRequest, read_requests
from holdfast.storage.source import ByteSource
from holdfast.storage.workers import run_jobs, worker_count

BLOCKS = 6
"""Blocks of a ring at most, each of them one digest chunk (8 MiB): one for each thread that reads, and one more."""

Cut = tuple[int, int, int, int]
"""(index of the request, first byte inside it, bytes, first byte in the block): at most one digest chunk."""


class UploadRequest(msgspec.Struct, eq=False, gc=False):
    """Device memory and the bytes that go into it; the ReadRequest of an accelerator.

    Attributes:
        source: where the bytes are.
        offset: first byte there.
        into: a tensor of bytes, as :func:`bytes_of` makes it; its size says how many.
        chunks: expected digests of each 8 MiB, as many as there are; None leaves them unchecked.
        crc32: the expected CRC-32; None leaves it unchecked.
        name: what a report of damage calls it.
    """

    source: ByteSource
    offset: int
    into: torch.Tensor
    chunks: tuple[str, ...] | None = None
    crc32: int | None = None
    name: str = ""


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a dense row-major tensor as a tensor of bytes, which autograd knows nothing of."""
    size = tensor.element_size()
    with torch.no_grad():
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return whole.set_(tensor.untyped_storage(), tensor.storage_offset() * size, (tensor.numel() * size,), (1,))


def cut_loads(lengths: Sequence[int]) -> list[list[Cut]]:
    """What goes through one block at a time: a whole chunk of a large tensor, or many small tensors in a row."""
    loads: list[list[Cut]] = []
    load: list[Cut] = []
    used = 0
    for index, length in enumerate(lengths):
        for start in range(0, length, CHUNK):
            size = min(CHUNK, length - start)
            if used + size > CHUNK:
                loads.append(load)
                load, used = [], 0
            load.append((index, start, size, used))
            used += size
    return [*loads, load] if load else loads


class Upload:
    """The way into the memory of one device.

    Args:
        device: which.
        api: its part of torch, such as ``torch.cuda``.
        memory: gives memory that the device reads by itself.
        blocks: of the ring, at most.
    """

    def __init__(
        self,
        device: torch.device,
        api: Any = None,
        *,
        memory: Callable[[int], memoryview] = pinned_memory,
        blocks: int = BLOCKS,
    ) -> None:
        self._stream = SideStream(device, api)
        self._memory = memory
        self._blocks = blocks

    def carry_out(self, requests: Sequence[UploadRequest], *, workers: int | None = None) -> list[Damage]:
        """Fills device memory from files; when this returns or raises, no copy is under way any more.

        Args:
            requests: in the order of the file for the best speed.
            workers: threads; None means one for each core, and one less than the ring has blocks at most.

        Returns:
            What does not have its expected digest or CRC, in order; empty when all is well. A block whose digest is
            another never leaves the host.

        Raises:
            CorruptFile: a source has fewer bytes than a request says. Some tensors are written then.
            StorageError: reading failed; as above.
        """
        loads = cut_loads([request.into.numel() for request in requests])
        sizes = [load[-1][3] + load[-1][2] for load in loads]
        workers = min(worker_count(workers), max(1, self._blocks - 1))
        ring = _Ring(self._memory, min(self._blocks, len(loads), workers + 1), max(sizes, default=0))
        passage = _Passage(requests, self._stream, ring)
        self._stream.begin()
        try:
            run_jobs(loads, passage.do, workers)
        finally:
            self._stream.mark().synchronize()  # the ring may go, and what the program starts next sees it all
        return passage.result()


class _Block:
    """One block of the ring, and the event that says when the device has read it."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.event: Any = None


class _Ring:
    """Blocks that are lent to one thread at a time, the one that was given back first before the others."""

    def __init__(self, make: Callable[[int], memoryview], count: int, size: int) -> None:
        self._free: queue.SimpleQueue[_Block] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(_Block(make(size)))

    @contextmanager
    def lent(self) -> Iterator[_Block]:
        """A block that the device has read."""
        block = self._free.get()
        try:
            if block.event is not None:
                block.event.synchronize()
            yield block
        finally:
            self._free.put(block)


class _Passage:
    """One pass over many requests; ``do`` is called by several threads, each with loads of its own."""

    def __init__(self, requests: Sequence[UploadRequest], stream: SideStream, ring: _Ring) -> None:
        self._requests = requests
        self._stream = stream
        self._ring = ring
        self._damage: list[tuple[int, int, Damage]] = []
        self._crcs = {
            index: [0] * -(-request.into.numel() // CHUNK)
            for index, request in enumerate(requests)
            if request.crc32 is not None and request.into.numel()
        }

    def do(self, load: list[Cut]) -> None:
        """Reads and checks a load in a block of the ring, and starts its copies."""
        with self._ring.lent() as block:
            parts = [block.memory[at : at + size] for _, _, size, at in load]
            reads = [self._read(cut, part) for cut, part in zip(load, parts, strict=True)]
            damage = read_requests(reads, workers=1)
            for (index, start, _, _), part in zip(load, parts, strict=True):
                if index in self._crcs:
                    self._crcs[index][start // CHUNK] = crc32(part)
            if damage:
                self._damage += [(load[0][0], load[0][1], one) for one in damage]
                return
            targets = [self._requests[index].into[start : start + size] for index, start, size, _ in load]
            self._stream.copy_in(zip(parts, targets, strict=True))
            block.event = self._stream.mark()

    def _read(self, cut: Cut, into: memoryview) -> ReadRequest:
        index, start, _, _ = cut
        request = self._requests[index]
        chunks = None if request.chunks is None else request.chunks[start // CHUNK :][:1]
        return ReadRequest(request.source, request.offset + start, into, chunks, None, request.name)

    def result(self) -> list[Damage]:
        for index, values in self._crcs.items():
            request = self._requests[index]
            found = joined_crc(values, request.into.numel())
            if found != request.crc32:
                row = (request.into.numel(), f"crc32 {request.crc32:08x}", f"crc32 {found:08x}")
                damage = Damage(request.name, request.source.name, request.offset, *row)
                self._damage.append((index, 0, damage))
        return [damage for _, _, damage in sorted(self._damage, key=lambda row: row[:2])]
