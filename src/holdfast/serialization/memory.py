"""The memory of tensors as byte buffers and byte sources."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from holdfast.serialization.side_stream import program_stream
from holdfast.storage.source import FilledSource, MemorySource, check_inside

_from_memory: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_from_memory.restype = ctypes.py_object
_from_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_WRITABLE = 0x200  # PyBUF_WRITE
_bytes_at: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
_bytes_at.restype = ctypes.py_object
_bytes_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)

BLOCK = 8 * 1024 * 1024
"""Bytes that go through CPU memory at a time when a tensor does not lie there row-major."""


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def view_memory(address: int, length: int) -> memoryview:
    """Raw memory as a writable buffer. Keeps nothing alive: the caller holds the tensor while the view is used."""
    return _from_memory(address, length, _WRITABLE) if length else memoryview(bytearray())


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements are where it says: strided, and of no subclass.

    A tensor of a subclass may hold its elements somewhere else than its own address says.
    """
    return type(tensor) in _PLAIN and tensor.layout is torch.strided


def address_of(buffer: memoryview) -> int:
    """Where a writable buffer with at least one byte begins. Keeps nothing alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def copy_out(address: int, buffer: memoryview) -> None:
    """Fills a writable buffer from raw memory; other threads run meanwhile, which a slice assignment forbids."""
    ctypes.memmove(address_of(buffer), address, buffer.nbytes)


class TensorMemory(MemorySource):
    """The bytes of a CPU tensor where they lie, from ``start`` (bytes after its first element). Keeps it alive.

    Attributes:
        tensor: the tensor.
    """

    def __init__(self, tensor: torch.Tensor, start: int, length: int) -> None:
        self.name = "memory"
        self.tensor = tensor
        self._address = tensor.data_ptr() + start
        self._length = length

    @property
    def view(self) -> memoryview:  # type: ignore[override]  # made when asked for: a small tensor is copied out instead
        return view_memory(self._address, self._length)

    @property
    def size(self) -> int:
        return self._length

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self._length, offset, length)
        copied: bytes = _bytes_at(self._address + offset, length)
        return copied

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._length, offset, buffer.nbytes)
        if buffer.nbytes:
            copy_out(self._address + offset, buffer)

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self._address


class TensorSource(FilledSource):
    """The row-major bytes of a tensor that lies elsewhere or otherwise, made in blocks on reading.

    A save of a tensor on another device or with gaps then needs one block of CPU memory, not a second tensor. Whichever
    thread reads, it sees what was started on the stream of the thread that made this.

    Attributes:
        tensor: the tensor.
    """

    def __init__(self, tensor: torch.Tensor, name: str = "tensor") -> None:
        self.name = name
        self.tensor = tensor
        self._itemsize = tensor.element_size()
        self._size = tensor.numel() * self._itemsize
        self._lock = threading.Lock()
        self._block: torch.Tensor | None = None
        self._block_start = 0
        self._stream = program_stream(tensor.device)

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self._size, offset, buffer.nbytes)
        done = 0
        with self._lock:
            while done < buffer.nbytes:
                block, start = self._block_at(offset + done)
                inside = offset + done - start
                count = min(buffer.nbytes - done, block.numel() - inside)
                buffer[done : done + count] = view_memory(block.data_ptr() + inside, count)
                done += count

    def _block_at(self, offset: int) -> tuple[torch.Tensor, int]:
        if self._block is None or not self._block_start <= offset < self._block_start + self._block.numel():
            piece, start = piece_at(self.tensor, offset // self._itemsize)
            with self._stream():
                piece = piece.detach().to("cpu")
            self._block = piece.contiguous().reshape(-1).view(torch.uint8)
            self._block_start = start * self._itemsize
        return self._block, self._block_start


IN_MEMORY = (TensorMemory, TensorSource)
"""Sources that are live tensors, not files: there is nothing to check them against."""


class LiveReader(Protocol):
    """Who reads live tensors in the background and has to be told before they are written."""

    def before_write(self) -> None:
        """Takes what is still needed of the tensors as they are; they change when this returns."""
        ...


LIVE_READERS: weakref.WeakSet[LiveReader] = weakref.WeakSet()
"""Background saves that are under way."""


def announce_write() -> None:
    """Tells every background save that live tensors are about to be written; for a restore, before it begins."""
    for reader in list(LIVE_READERS):
        reader.before_write()


def piece_at(tensor: torch.Tensor, element: int) -> tuple[torch.Tensor, int]:
    """A part of ``tensor`` of at most one block that holds its row-major ``element``, and that part's first element.

    Cuts along the first dimension; a row that is itself larger than a block is cut along its own first dimension.
    """
    start = 0
    while tensor.dim() and tensor.numel() * tensor.element_size() > BLOCK:
        row = tensor.numel() // tensor.shape[0]
        rows = max(1, BLOCK // (row * tensor.element_size()))
        first = (element - start) // row // rows * rows
        tensor = tensor[first : first + rows]
        start += first * row
        if rows == 1:
            tensor = tensor[0]
    return tensor, start


def bump_versions(tensors: Iterable[torch.Tensor]) -> None:
    """Tells autograd that the tensors' memory was written behind its back."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
