"""Files that are written into an object with ``write``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from holdfast.storage.staged import StagedFile

_COPY_BLOCK = 8 * 1024 * 1024


@contextmanager
def stage_into(stream: IO[bytes], name: str) -> Iterator[StagedFile]:
    """A staged file in memory whose bytes are written to ``stream`` when all of them are there.

    The file is built at its own offsets first, since a stream may not seek; nothing reaches it before that.

    Args:
        stream: an object with ``write``, which may take less than it is given.
        name: what messages call it.
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
                count = stream.write(block)
                block = block[len(block) if count is None else count :]
    finally:
        os.close(memory)
