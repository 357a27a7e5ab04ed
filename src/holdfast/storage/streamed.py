"""Files that are written into an object with ``write``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from holdfast.errors import ArgumentError, StorageError
from holdfast.storage.source import shown
from holdfast.storage.staged import StagedFile

_COPY_BLOCK = 8 * 1024 * 1024


@contextmanager
def stage_into(stream: IO[bytes], name: str) -> Iterator[StagedFile]:
    """A staged file in memory whose bytes are written to ``stream`` when all of them are there.

    The file is built at its own offsets first, since a stream may not seek; nothing reaches it before that.

    Args:
        stream: an object with ``write``, which may take less than it is given.
        name: what messages call it.

    Raises:
        StorageError: the object fails or takes no more; it may have taken a part.
        ArgumentError: the object takes no bytes.
    """
    memory = os.memfd_create("holdfast", os.MFD_CLOEXEC)
    try:
        staged = StagedFile(name, os.dup(memory))
        try:
            yield staged
            staged.finish(durable=False)
        finally:
            staged.close()
        for offset in range(0, staged.size, _COPY_BLOCK):
            block = memoryview(os.pread(memory, min(_COPY_BLOCK, staged.size - offset), offset))
            while block:  # a raw file may take less than it is given
                taken = _write(stream, block, name, staged.size)
                block = block[taken:]
    finally:
        os.close(memory)


def _write(stream: IO[bytes], block: memoryview, name: str, size: int) -> int:
    """Writes the beginning of ``block``; returns how many bytes were taken."""
    try:
        count = stream.write(block)
    except OSError as error:
        raise StorageError(f"`{shown(name)}`: can't be written: {error}", file=name) from error
    except (TypeError, ValueError) as reason:  # opened as text, closed, or no file at all
        raise ArgumentError(
            f"`{shown(name)}`: can't be written to: {reason}; give a file object opened with mode 'wb'", file=name
        ) from reason
    if count == 0:
        raise StorageError(f"`{shown(name)}`: takes no more bytes, before all {size:,} were written", file=name)
    return len(block) if count is None else count
