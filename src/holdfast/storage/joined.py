"""A folder that another process stages and commits, and that this one adds files to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from holdfast.errors import StorageError
from holdfast.storage.source import shown, status_of
from holdfast.storage.staged import StagedFile, new_file, partial_of
from holdfast.storage.syscalls import LOCAL, Syscalls


def check_file(partial: str, name: str, size: int) -> None:
    """Raises StorageError unless another process's file is there with all of its bytes, as this one sees the disk."""
    path = os.path.join(partial, name)
    status = status_of(path, follow=False)
    if status is None or status.st_size != size:
        seen = "is not there" if status is None else f"has {status.st_size:,} bytes"
        raise StorageError(
            f"`{shown(path)}`: {seen}, the rank that wrote it says {size:,}; all ranks need one shared disk", file=path
        )


@contextlib.contextmanager
def file_in_partial(path: str, name: str, *, durable: bool = True, syscalls: Syscalls = LOCAL) -> Iterator[StagedFile]:
    """A new file in the folder that will be ``path``; it is on the medium when the block ends.

    Args:
        path: the folder as it will be named; another process has begun it.
        name: of the file.
        durable: see :class:`holdfast.storage.atomic.StagedFolder`.
        syscalls: what changes the disk.

    Raises:
        StorageError: the folder is not there, on a disk that is not shared for one; or writing failed.
    """
    partial = partial_of(path)
    if not os.path.isdir(partial):
        raise StorageError(
            f"`{shown(path)}`: the folder that rank 0 has begun is not seen here; all ranks need one shared disk",
            file=path,
        )
    with new_file(
        os.path.join(partial, name), os.path.join(path, name), shard=True, durable=durable, syscalls=syscalls
    ) as staged:
        yield staged
