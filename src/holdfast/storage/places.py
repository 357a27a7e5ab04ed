"""Where a path leads: to this machine's disks, or into an object store. The path says which, by how it begins.

``runs/a/step-00001000`` is a folder here, ``s3://bucket/runs/a/step-00001000`` one in a store. Whoever reads and writes
runs asks the functions at the end of this file, or a :class:`Place`, and does not ask which of the two it is.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

from holdfast.errors import ArgumentError, NotFound, StorageError
from holdfast.storage.source import ByteSource, FileSource, shown, status_of

if TYPE_CHECKING:
    from holdfast.storage.requests import WriteRequest, Written

StrPath = str | os.PathLike[str]
Kind = Literal["file", "folder"]

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory")
"""What a URL of an object store begins with; ``memory`` is one that lives in this process, for trying things out."""

COMMIT = "manifest.json"
"""The file that makes the files of a step a checkpoint: written last, and in a store only if there is none."""
STEP = re.compile(r"step-(\d{8,19})")
"""What the folders of steps are called."""
ATTEMPT = re.compile(r"[0-9a-f]{16}")
"""What the folders below a step are called in a store: one for each writing of it."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOST_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


def is_url(path: StrPath) -> bool:
    """Whether a path is the URL of an object in a store: ``s3://bucket/key``.

    Raises:
        ArgumentError: a URL of another kind, or one that ``pathlib`` took a slash of.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or ":/" not in text:
        return False
    match = _URL.match(text)
    if match is None:
        lost = _LOST_SLASH.match(text)
        if lost is not None and not os.path.lexists(text):
            raise ArgumentError(
                f"`{shown(text)}`: a Path keeps one slash of a URL's two; give the URL as a str, {lost[1]}://...",
                file=text,
            )
        return False
    if match[1].lower() in SCHEMES:
        return True
    if os.path.lexists(text):
        return False
    if match[1].lower() == "file":
        raise ArgumentError(f"`{shown(text)}`: give the path alone, without file://", file=text)
    raise ArgumentError(
        f"`{shown(text)}`: {shown(match[1])}:// is no object store known here; "
        f"there are: {', '.join(f'{name}://' for name in SCHEMES)}. Download it first, and give the file's path",
        file=text,
    )


class Staged(Protocol):
    """One file that is being written and that nobody sees yet."""

    path: str
    size: int

    def allocate(self, size: int) -> None:
        """Says how many bytes it will have, once and before writing."""
        ...

    def write(self, requests: Sequence[WriteRequest], *, digest: bool = True, crc: bool = False) -> list[Written]:
        """Takes bytes for their places in the file."""
        ...

    def written(self) -> ByteSource:
        """What was written so far, to be read; the caller closes it."""
        ...


class StagedStep(Protocol):
    """The files of one checkpoint while they are written; nobody sees it before :meth:`commit`.

    Attributes:
        parent: the run.
        path: what it will be called.
        partial: where its files are now.
        data: where they stay, below the run; empty when that is the checkpoint's own folder.
    """

    parent: str
    path: str
    partial: str
    data: str

    def file(self, name: str, *, shard: bool = False) -> AbstractContextManager[Staged]:
        """A new file of it, complete when the block ends."""
        ...

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Adds a small file."""
        ...

    def share(self, existing: StrPath, name: str) -> bool:
        """Adds a file that an earlier checkpoint has; whether both now share their bytes."""
        ...

    def commit(self) -> None:
        """Makes it visible, with all its files, in one step."""
        ...

    def abandon(self) -> None:
        """Removes what was not committed."""
        ...


class Place(Protocol):
    """What holds files and folders under paths.

    Attributes:
        whole: whether a folder gets its name with all that is in it, as a renamed one does. Where it is not, the
            folder of a checkpoint exists when its manifest does.
    """

    whole: bool

    def kind(self, path: str) -> Kind | None:
        """What has this path; None when nothing has. Raises StorageError when that can't be found out."""
        ...

    def source(self, path: str) -> ByteSource:
        """Opens a file. Raises NotFound, StorageError."""
        ...

    def names(self, folder: str) -> list[str]:
        """The sorted names directly in a folder. Raises NotFound, StorageError."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes or replaces a small file in one step. Raises StorageError."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file. Raises NotFound, StorageError."""
        ...

    def stage(self, path: str, *, durable: bool) -> AbstractContextManager[Staged]:
        """A file that takes the place of ``path`` when the block ends well. Raises StorageError."""
        ...

    def stage_step(self, root: str, name: str) -> StagedStep:
        """A checkpoint that appears in a run when it is committed. Raises StorageError."""
        ...

    def add(self, partial: str, name: str, *, durable: bool) -> AbstractContextManager[Staged]:
        """A file of a checkpoint that another process has begun, and which that one commits.

        Args:
            partial: where its files are, as that process says.
            name: of the file.
            durable: whether it is on the medium when the block ends.
        """
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """The files directly in a folder and their bytes. Raises StorageError."""
        ...

    def remove_step(self, path: str, data: str) -> None:
        """Removes a checkpoint; at no moment is there half of one. Raises NotFound, StorageError."""
        ...

    def move_step(self, path: str, target: str) -> None:
        """Gives a checkpoint another name. Raises NotFound, StorageError."""
        ...

    def sweep(self, root: str, used: Collection[str]) -> None:
        """Removes what killed writers left in a run, for the holder of its lock.

        Args:
            root: the run.
            used: where its checkpoints say that their files are.
        """
        ...


class LocalPlace:
    """The disks of this machine."""

    whole = True

    def kind(self, path: str) -> Kind | None:
        status = status_of(path, follow=True)
        if status is None:  # a link to nothing is something too
            return None if status_of(path, follow=False) is None else "file"
        return "folder" if stat.S_ISDIR(status.st_mode) else "file"

    def source(self, path: str) -> ByteSource:
        return FileSource(path)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"`{shown(folder)}`: no such folder", file=folder) from None
        except OSError as error:
            raise StorageError(f"`{shown(folder)}`: can't be listed: {error.strerror}", file=folder) from error

    # what changes the disk is loaded by who changes it: listing a run writes nothing

    def write(self, path: str, data: bytes) -> None:
        from holdfast.storage.atomic import write_bytes

        write_bytes(path, data)

    def remove(self, path: str) -> None:
        from holdfast.storage.atomic import remove_file

        remove_file(path)

    def stage(self, path: str, *, durable: bool) -> AbstractContextManager[Staged]:
        from holdfast.storage.atomic import replace_file

        return replace_file(path, durable=durable)

    def stage_step(self, root: str, name: str) -> StagedStep:
        from holdfast.storage.atomic import StagedFolder

        return StagedFolder(root, name)

    def add(self, partial: str, name: str, *, durable: bool) -> AbstractContextManager[Staged]:
        from holdfast.storage.joined import file_in_partial

        return file_in_partial(partial, name, durable=durable)

    def sizes(self, folder: str) -> dict[str, int]:
        found = {name: status_of(os.path.join(folder, name), follow=False) for name in self.names(folder)}
        return {name: status.st_size for name, status in found.items() if status is not None}

    def remove_step(self, path: str, data: str) -> None:
        from holdfast.storage.atomic import remove_folder

        remove_folder(path)

    def move_step(self, path: str, target: str) -> None:
        from holdfast.storage.atomic import move_folder

        move_folder(path, target)

    def sweep(self, root: str, used: Collection[str]) -> None:
        from holdfast.storage.atomic import sweep

        sweep(root, folders=True)


LOCAL_PLACE = LocalPlace()


def place_of(path: StrPath) -> Place:
    """The place that a path leads to.

    Raises:
        ArgumentError: a URL of a kind that is not known.
        MissingExtra: a URL, and the extra ``remote`` is not installed.
    """
    if not is_url(path):
        return LOCAL_PLACE
    from holdfast.storage.remote.place import store_place

    return store_place(os.fspath(path))


def absolute(path: StrPath) -> str:
    """A path that means the same in every folder."""
    return os.fspath(path).rstrip("/") if is_url(path) else os.path.abspath(path)


def open_source(path: StrPath) -> ByteSource:
    """Opens a file for reading. Raises NotFound, StorageError."""
    return place_of(path).source(os.fspath(path))


def is_there(path: StrPath) -> bool:
    """Whether something has this path, a link to nothing as well. Raises StorageError when that can't be found out."""
    if not is_url(path):
        return status_of(path, follow=False) is not None
    return place_of(path).kind(os.fspath(path)) is not None


def is_folder(path: StrPath) -> bool:
    """Whether this is a folder, or a link to one. Raises StorageError when that can't be found out."""
    return place_of(path).kind(os.fspath(path)) == "folder"


def is_file(path: StrPath) -> bool:
    """Whether this is a file, or a link to one."""
    return place_of(path).kind(os.fspath(path)) == "file" if is_url(path) else os.path.isfile(path)


def names_in(folder: StrPath) -> list[str]:
    """The names in a folder, sorted.

    Raises:
        NotFound: there is no such folder.
        StorageError: it can't be read.
    """
    return place_of(folder).names(os.fspath(folder))


def write_bytes(path: StrPath, data: bytes) -> None:
    """Writes or replaces a small file in one step, durably. Raises StorageError."""
    place_of(path).write(os.fspath(path), data)


def remove_file(path: StrPath) -> None:
    """Removes a file. Raises NotFound, StorageError."""
    place_of(path).remove(os.fspath(path))
