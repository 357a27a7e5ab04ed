"""A folder that another process stages and commits, and that this one adds files to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from holdfast.errors import NotFound, StorageError
from holdfast.storage.places import place_of
from holdfast.storage.source import shown
from holdfast.storage.staged import StagedFile, new_file
from holdfast.storage.syscalls import LOCAL, Syscalls


def check_files(partial: str, sizes: Mapping[str, int]) -> None:
    """Raises StorageError unless other processes' files are there with all of their bytes, as this one sees them."""
    try:
        found = place_of(partial).sizes(partial)
    except NotFound:
        found = {}
    for name, size in sizes.items():
        if found.get(name) != size:
            path = os.path.join(partial, name)
            seen = f"has {found[name]:,} bytes" if name in found else "is not there"
            raise StorageError(
                f"`{shown(path)}`: {seen}, its rank says {size:,}; all ranks need one shared disk, or one store",
                file=path,
            )


@contextlib.contextmanager
def file_in_partial(
    partial: str, name: str, *, durable: bool = True, syscalls: Syscalls = LOCAL
) -> Iterator[StagedFile]:
    """A new file in a folder that is being staged; it is on the medium when the block ends.

    Args:
        partial: the folder as it is named now; another process has begun it.
        name: of the file.
        durable: see :class:`holdfast.storage.atomic.StagedFolder`.
        syscalls: what changes the disk.

    Raises:
        StorageError: the folder is not there, on a disk that is not shared for one; or writing failed.
    """
    if not os.path.isdir(partial):
        raise StorageError(
            f"`{shown(partial)}`: the folder that rank 0 has begun is not seen here; all ranks need one shared disk",
            file=partial,
        )
    path = os.path.join(partial, name)
    with new_file(path, path, shard=True, durable=durable, syscalls=syscalls) as staged:
        yield staged
