"""Copy on step: the state of one moment, read while training goes on.

Between two steps of an optimizer its parameters and its state do not change, so a background save reads them where
they lie. Right before the next step (``register_step_pre_hook``) what has not been read yet is copied, and the step
goes on. Whatever no registered optimizer owns, such as buffers, averages and random states, is copied at once.

A program that writes parameters behind its optimizer breaks the first sentence. ``tensor._version`` counts such writes,
unless they go through ``.data``: a tensor whose count moved before it was read or copied makes the snapshot *torn*, and
a torn snapshot is never committed.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import xxhash
from torch.optim import Optimizer

from holdfast.errors import SnapshotTorn
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.serialization.memory import LIVE_READERS, TensorMemory, TensorSource, address_of, copy_out
from holdfast.spec import CHUNK, Path
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted
from holdfast.storage.requests import ReadRequest, read_requests
from holdfast.storage.source import ByteSource, check_inside
from holdfast.storage.workers import BLOCK
from holdfast.training.staging import Staging

_TORCHS = "torch.optim."


class Owned:
    """The memory that optimizers own: their parameters, and the tensors of their state."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._at: dict[int, tuple[int, list[tuple[Optimizer, torch.Tensor]]]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._add(parameter, optimizer, parameter)
                    for value in optimizer.state.get(parameter, {}).values():
                        if isinstance(value, torch.Tensor):
                            self._add(value, optimizer, parameter)

    def _add(self, tensor: torch.Tensor, optimizer: Optimizer, parameter: torch.Tensor) -> None:
        if tensor.layout is torch.strided and tensor.is_cpu and not tensor.is_inference():
            self._at.setdefault(tensor.data_ptr(), (tensor.nbytes, []))[1].append((optimizer, parameter))

    def owners(self, source: ByteSource) -> list[tuple[Optimizer, torch.Tensor]]:
        """Which optimizers change these bytes, each with the parameter whose gradient makes it; empty for nobody's."""
        if not isinstance(source, TensorMemory | TensorSource) or not source.tensor.is_cpu:
            return []
        address = source.address if isinstance(source, TensorMemory) else source.tensor.data_ptr()
        length, owners = self._at.get(address, (0, []))
        return owners if source.size <= length else []


class Snapshot:
    """A document whose bytes stay those of the moment at which this was made.

    Args:
        document: over live tensors; its segments are replaced.
        staging: memory for copies; nobody else's until :meth:`close`.
        optimizers: those whose steps are announced by :meth:`before_step`; what they own is not copied now.
        digests: take a digest of everything now and compare what is read with it, to find a program that writes where
            nothing counts it; as slow as it sounds.

    Attributes:
        document: what to write, from any thread.
        copied: bytes that were copied so far.
    """

    def __init__(
        self,
        document: Document,
        staging: Staging,
        optimizers: Sequence[Optimizer] = (),
        *,
        digests: bool = False,
    ) -> None:
        self.document = document
        self.copied = 0
        self._staging = staging
        self._change = threading.Condition()
        self._readers = 0
        self._closed = False
        self._torn: str | None = None
        self._live: dict[int, _Source] = {}
        owned = Owned(optimizers)
        now: list[_Source] = []
        for path, segment in _segments(document.tree):
            source = _Source(self, path, segment, owned.owners(segment.source))
            if source.owners:
                self._live[id(source)] = source
                if digests:
                    source.digest()
            else:
                now.append(source)
            segment.source, segment.offset = source, 0
        self._copy(now)
        if self._live:
            LIVE_READERS.add(self)

    # -- in the thread that trains -------------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        """Copies what the coming step may change and nobody has read yet.

        Args:
            optimizer: whose step it is.
            closure: whether the step computes gradients itself, so that those there are now say nothing.
        """
        # torch's own optimizers leave a parameter without a gradient, and its state, as they are
        all_of_it = closure or not type(optimizer).__module__.startswith(_TORCHS)
        self._settle(
            lambda source: any(
                owner is optimizer and (all_of_it or parameter.grad is not None) for owner, parameter in source.owners
            )
        )

    def before_write(self) -> None:
        """Copies all that nobody has read yet: a restore is about to write live tensors."""
        self._settle(lambda _: True)

    def _settle(self, chosen: Callable[[_Source], bool]) -> None:
        with self._alone():
            sources = [source for source in self._live.values() if chosen(source)]
            self._tear(*(source for source in sources if source.has_moved()))
            if self._torn is None:
                try:
                    self._copy(sources)
                except MemoryError as reason:
                    self._torn = f"there is no memory for a copy of what the next step changes ({reason})"
            for source in sources:
                del self._live[id(source)]

    def _copy(self, sources: Iterable[_Source]) -> None:
        requests = [request for source in sources for request in source.copies(self._staging)]
        self.copied += sum(request.length for request in requests)
        read_requests(requests)

    # -- in the thread that writes -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises SnapshotTorn when what was read is not the state of one moment."""
        with self._alone():
            self._tear(*(source for source in self._live.values() if source.has_moved()))
        self._refuse_torn()

    def _refuse_torn(self) -> None:
        if self._torn is not None:
            raise SnapshotTorn(f"{self._torn} (that save was not committed)")

    def close(self) -> None:
        """The bytes are no longer needed; the staging is free for the next snapshot."""
        LIVE_READERS.discard(self)
        with self._alone():
            self._live.clear()
        self._staging.give_back()

    # -- between the two -----------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While this is held no tensor changes that was not copied: the thread that trains waits."""
        with self._change:
            self._change.wait_for(lambda: not self._closed)
            self._readers += 1
        try:
            self._refuse_torn()
            yield
        finally:
            with self._change:
                self._readers -= 1
                self._change.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this is held nobody reads."""
        with self._change:
            self._change.wait_for(lambda: not self._closed)
            self._closed = True
            self._change.wait_for(lambda: self._readers == 0)
        try:
            yield
        finally:
            with self._change:
                self._closed = False
                self._change.notify_all()

    def took(self, source: _Source, blocks: Iterable[int]) -> None:
        """Blocks of a source were read for the last time; called while they are held for reading."""
        with self._change:
            if source.mark(blocks) and self._live.pop(id(source), None) is not None and source.has_moved():
                self._tear(source)

    def differs(self, source: _Source) -> None:
        """What was read of a source is not what was there at the save."""
        self._tear(source)
        self._refuse_torn()

    def _tear(self, *sources: _Source) -> None:
        if sources and self._torn is None:
            self._torn = (
                f"`{dotted(sources[0].path)}`: was written by the program while a background save read it; write "
                "parameters in the optimizer's step only, or give the run background='copy'"
            )


class _Source:
    """The bytes of a segment as they were: read where they lie until they are copied.

    Args:
        snapshot: what this is a part of.
        path: of the first tensor in it.
        segment: the bytes.
        owners: optimizers that change them, each with the parameter concerned; none when they are copied at once.

    Attributes:
        path: as given.
        owners: as given.
    """

    def __init__(
        self, snapshot: Snapshot, path: Path, segment: Segment, owners: Collection[tuple[Optimizer, torch.Tensor]]
    ) -> None:
        self.owners = owners
        self.name = "memory"
        self.path = path
        self._snapshot = snapshot
        self._source = segment.source
        self._offset = segment.offset
        self._size = segment.length
        blocks = -(-segment.length // BLOCK)
        self._taken = bytearray(blocks)
        self._left = blocks
        self._copies: array[int] | None = None  # by block, the address of its copy, 0 while there is none
        self._digests: list[int] | None = None
        tensor = segment.source.tensor if isinstance(segment.source, TensorMemory | TensorSource) and owners else None
        self._tensor: torch.Tensor | None = tensor
        self._version = 0 if tensor is None else tensor._version

    @property
    def size(self) -> int:
        return self._size

    def digest(self) -> None:
        """Takes digests of all blocks, with which :meth:`take_into` compares what it reads."""
        self._digests = []
        for at in range(0, self._size, BLOCK):
            data = self._source.read(self._offset + at, min(BLOCK, self._size - at))
            self._digests.append(xxhash.xxh3_64_intdigest(data))

    def has_moved(self) -> bool:
        """Whether the tensor was written since the snapshot, as far as torch counts that."""
        return self._tensor is not None and self._tensor._version != self._version

    def mark(self, blocks: Iterable[int]) -> bool:
        """Notes blocks as taken; returns whether all are."""
        for block in blocks:
            self._left -= 1 - self._taken[block]
            self._taken[block] = 1
        return self._left == 0

    def copies(self, staging: Staging) -> list[ReadRequest]:
        """What it takes to copy all that was not taken; from then on reads go to the copies."""
        if self._copies is None:
            self._copies = array("Q", bytes(8 * len(self._taken)))
        requests = []
        for first, end in _runs(self._taken):
            begin = first * BLOCK
            into = staging.take(min(end * BLOCK, self._size) - begin)
            requests.append(ReadRequest(self._source, self._offset + begin, into))
            address = address_of(into)
            for block in range(first, end):
                self._copies[block] = address + (block - first) * BLOCK
        return requests

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        with self._snapshot.reading():
            self._read(offset, buffer)

    def take_into(self, offset: int, buffer: memoryview) -> None:
        """Reads bytes for the last time: they need no copy from then on."""
        end = offset + buffer.nbytes
        check_inside(self.name, self._size, offset, buffer.nbytes)
        with self._snapshot.reading():
            self._read(offset, buffer)
            whole = offset % BLOCK == 0 and (end == self._size or buffer.nbytes == BLOCK)
            if (
                self._digests is not None
                and whole
                and xxhash.xxh3_64_intdigest(buffer) != self._digests[offset // BLOCK]
            ):
                self._snapshot.differs(self)
            if self.owners:
                last = len(self._taken) if end == self._size else end // BLOCK
                self._snapshot.took(self, range(-(-offset // BLOCK), last))

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

    def close(self) -> None:
        """Nothing to let go of: the snapshot has it all."""


def _segments(tree: Any) -> list[tuple[Path, Segment]]:
    """The segments of a tree that have bytes, each once, with the path of the first tensor in it."""
    found: dict[int, tuple[Path, Segment]] = {}
    for path, leaf in leaves(tree):
        if isinstance(leaf, StoredTensor):
            found.setdefault(id(leaf.segment), (path, leaf.segment))
    return [(path, segment) for path, segment in found.values() if segment.length]


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
