"""Whole torch storages out of segments, for readers that put tensors together themselves."""

from __future__ import annotations

import os
from typing import Any

import torch

from holdfast.formats.base import Segment
from holdfast.serialization.memory import view_memory
from holdfast.serialization.reading import raise_damage
from holdfast.storage.digest import crc32
from holdfast.storage.requests import ReadRequest, read_requests

_SMALL = 1 << 16
"""Bytes that are read at once, without asking other threads for help."""
_UntypedStorage: Any = torch.UntypedStorage  # its constructors have no annotations


def empty_storage(size: int, device: str = "cpu") -> Any:
    """A storage of ``size`` bytes that nobody has written."""
    return _UntypedStorage(size, device=device)


def read_storage(segment: Segment, *, fixed: bool) -> Any:
    """A segment as a storage in CPU memory, checked against its digests or CRC.

    Args:
        segment: the bytes.
        fixed: whether the storage refuses to be resized.

    Raises:
        CorruptFile: the bytes differ from what is recorded of them.
    """
    storage = _UntypedStorage(segment.length)
    if segment.length:
        into = view_memory(storage.data_ptr(), segment.length)
        if segment.length <= _SMALL and segment.chunks is None:
            segment.source.read_into(segment.offset, into)
            if segment.crc32 is None or crc32(into) == segment.crc32:
                return storage[0 : segment.length] if fixed else storage
        request = ReadRequest(segment.source, segment.offset, into, segment.chunks, segment.crc32, segment.name)
        raise_damage(read_requests([request]))
    return storage[0 : segment.length] if fixed else storage  # a part of a storage can't be resized


def mapped_storage(path: str | os.PathLike[str], *, shared: bool) -> torch.UntypedStorage:
    """A file as one storage whose pages are those of the file.

    Args:
        path: the file.
        shared: whether what is written into the storage goes into the file.
    """
    name = os.fspath(path)
    mapped: torch.UntypedStorage = _UntypedStorage.from_file(name, shared, os.path.getsize(name))
    return mapped
