"""Writing so that a crash leaves the old or the new, whole, and never a mixture. The only module that renames.

The order of a commit, for a file and for a folder alike: write beside the target under a name of its own, fsync what
was written, rename, fsync the folder that holds the name. Only then has anything been promised. A failed fsync is
never tried again (the kernel may have dropped the pages and report success the second time): what was written is
thrown away and the error raised.

Names of what is not committed begin with a dot and end with ``.partial``; of what is being deleted, ``.deleting``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator

import xxhash

from holdfast.errors import ArgumentError, NotFound, StorageError
from holdfast.storage.descriptors import close_reading
from holdfast.storage.requests import WriteRequest
from holdfast.storage.source import FileSource, shown
from holdfast.storage.staged import PARTIAL, new_file, partial_of, reported
from holdfast.storage.staged import StagedFile as StagedFile
from holdfast.storage.syscalls import LOCAL, Syscalls

DELETING = ".deleting"
_LONG_NAME = 200
StrPath = str | os.PathLike[str]
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def replace_file(path: StrPath, *, durable: bool = True, syscalls: Syscalls = LOCAL) -> Iterator[StagedFile]:
    """A file that takes the place of ``path`` when the block ends well, and of which nothing is left when it does not.

    The file is written beside its target, so the disk needs room for both. Missing folders are created; a symbolic
    link is followed and stays; a replaced file's permission bits are kept, a new one follows the umask.

    Args:
        path: where the file goes.
        durable: fsync the file and its folder, so that a power cut after the block can't undo it. Without it the
            change is still atomic for everyone who reads, and may be lost when the machine stops.
        syscalls: what changes the disk.

    Raises:
        StorageError: the disk is full or read-only, or ``path`` is a folder, a device or write-protected.
        ArgumentError: ``path`` can't be a file's name.

    Example::

        with replace_file("notes.txt") as staged:
            staged.write([WriteRequest(0, b"all or nothing")])
    """
    given = os.fspath(path)
    target, mode = _target(given)
    folder, name = os.path.split(target)
    make_folders(folder, durable=durable, syscalls=syscalls)
    sweep(folder, name=name, syscalls=syscalls)
    with reported(given, "creating a file beside it"):
        partial, fd, guard = _open_partial(folder, name, mode, syscalls)
    staged = StagedFile(given, fd, syscalls=syscalls)
    try:
        yield staged
        staged.finish(durable)
        with reported(given, "renaming"):
            syscalls.rename(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            syscalls.unlink(partial)
        with contextlib.suppress(StorageError):
            staged.close()
        raise
    finally:
        close_reading(guard)
    if durable:
        with reported(given, "fsync of its folder", kept="the new file is in place, but a power cut may undo it"):
            syscalls.fsync_folder(folder)


def write_bytes(path: StrPath, data: bytes | memoryview, *, durable: bool = True, syscalls: Syscalls = LOCAL) -> None:
    """Replaces a small file with ``data``, as :func:`replace_file` does and with its errors."""
    with replace_file(path, durable=durable, syscalls=syscalls) as staged:
        staged.write([WriteRequest(0, data)], digest=False)


def _target(path: str) -> tuple[str, int | None]:
    """The file that ``path`` means after its links, and its permission bits when it exists."""
    if os.path.basename(path) in ("", ".", "..") or "\0" in path:
        raise ArgumentError(f"`{shown(path)}`: is not a file's name", file=path)
    with reported(path, "looking at it"):
        target = os.path.realpath(path)
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            return target, None
    if stat.S_ISDIR(mode):
        raise StorageError(f"`{shown(path)}`: is a folder; name a file inside it", file=path)
    if not stat.S_ISREG(mode):
        raise StorageError(f"`{shown(path)}`: is a FIFO, socket or device, and not replaced by a file", file=path)
    if not mode & 0o222:
        raise StorageError(
            f"`{shown(path)}`: is write-protected (mode {stat.S_IMODE(mode):04o}); "
            "make it writable or choose another name",
            file=path,
        )
    return target, stat.S_IMODE(mode) & 0o777


def _open_partial(folder: str, name: str, mode: int | None, syscalls: Syscalls) -> tuple[str, int, int]:
    """Creates the file to write. Returns its path, its descriptor, and a second one that guards it from sweepers.

    The guard shares the first one's lock and outlives it until the rename is done.
    """
    while True:
        partial = os.path.join(folder, f"{_partial_prefix(name)}{os.urandom(8).hex()}{PARTIAL}")
        fd = syscalls.open_new(partial, 0o666 if mode is None else mode)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: sweepers can't lock either, and keep off
                fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.path.lexists(partial):  # swept in the moment before it was locked
                syscalls.close(fd)
                continue
            if mode is not None:
                syscalls.chmod(partial, mode)
            return partial, fd, os.dup(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                syscalls.unlink(partial)
            with contextlib.suppress(OSError):
                syscalls.close(fd)
            raise


class StagedFolder:
    """A folder that is being written and takes its name, with all that is in it, at :meth:`commit`.

    It is built as ``.NAME.partial`` beside the target. A stale one is removed first: only one process may stage a
    name, the holder of the run's lock. As a context manager it abandons what was not committed.

    Args:
        parent: the folder that it appears in; created when missing.
        name: its name there.
        durable: fsync every file and folder; see :func:`replace_file`.
        replace: whether a folder that has the name is exchanged with the new one, in one step, and then removed.
        syscalls: what changes the disk.

    Raises:
        StorageError: the name is taken, or the folder can't be created.
        ArgumentError: ``name`` is not a plain name.
    """

    def __init__(
        self, parent: StrPath, name: str, *, durable: bool = True, replace: bool = False, syscalls: Syscalls = LOCAL
    ) -> None:
        self.parent = os.path.abspath(parent)
        self.data = ""  # its files lie in the folder itself
        self.path = os.path.join(os.fspath(parent), _plain(name))
        self._target = os.path.join(self.parent, name)
        self.partial = partial_of(self._target)
        self._durable, self._replace = durable, replace
        self._syscalls = syscalls
        self._state = "open"
        self._refuse_taken()
        make_folders(self.parent, durable=durable, syscalls=syscalls)
        with reported(self.path, "creating its partial folder"):
            if os.path.lexists(self.partial):
                _remove_tree(self.partial, syscalls)
            syscalls.mkdir(self.partial)

    def _refuse_taken(self) -> None:
        if os.path.lexists(self._target) and not (self._replace and os.path.isdir(self._target)):
            raise StorageError(f"`{shown(self.path)}`: exists already; nothing was written", file=self.path)

    @contextlib.contextmanager
    def file(self, name: str, *, shard: bool = False) -> Iterator[StagedFile]:
        """A new file of the folder, checked, fsynced and closed when the block ends; an error in it fails the folder.

        Args:
            name: its name in the folder.
            shard: it is large and may become a file of other folders too, so it loses its write bits; and it is
                written past the page cache where the disk can do that.
        """
        self._writable()
        path, shown_path = os.path.join(self.partial, _plain(name)), os.path.join(self.path, name)
        with (
            self._or_failed(),
            new_file(path, shown_path, shard=shard, durable=self._durable, syscalls=self._syscalls) as staged,
        ):
            yield staged

    def write_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Adds a small file."""
        with self.file(name) as staged:
            staged.write([WriteRequest(0, data)], digest=False)

    def share(self, existing: StrPath, name: str) -> bool:
        """Adds a file that exists elsewhere: as a hard link, or as a copy where the file system can't link.

        Returns:
            Whether it is a link.

        Raises:
            StorageError: neither worked.
        """
        self._writable()
        source, target = os.fspath(existing), os.path.join(self.partial, _plain(name))
        with self._or_failed():
            try:
                self._syscalls.link(source, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    with reported(os.path.join(self.path, name), f"linking `{shown(source)}` there"):
                        raise
            else:
                return True
            self._copy(source, name)
        return False

    def _copy(self, existing: str, name: str) -> None:
        source = FileSource(existing)
        with contextlib.closing(source), self.file(name, shard=True) as staged:
            staged.allocate(source.size)
            staged.write([WriteRequest(0, source)], digest=False)

    def commit(self) -> None:
        """Makes the folder visible under its name, with everything in it; durable when this returns.

        Raises:
            StorageError: the name is taken, a file of it failed, or the disk did; nothing is visible then, except when
                only the last fsync failed, which the message says.
        """
        self._writable()
        try:
            self._refuse_taken()
            with reported(self.path, "committing", kept="it was not committed and is removed"):
                if self._durable:
                    self._syscalls.fsync_folder(self.partial)
                if replaced := self._replace and os.path.isdir(self._target) and bool(os.listdir(self._target)):
                    self._syscalls.exchange(self.partial, self._target)
                else:
                    self._syscalls.rename(self.partial, self._target)
        except BaseException:
            self.abandon()
            raise
        self._state = "committed"
        if self._durable:
            with reported(self.path, "fsync of its parent", kept="it is in place, but a power cut may undo it"):
                self._syscalls.fsync_folder(self.parent)
        if replaced:
            with contextlib.suppress(OSError):  # the old one, under the partial's name: the next writer removes it
                _remove_tree(self.partial, self._syscalls)

    def abandon(self) -> None:
        """Removes what was written so far; what can't be removed is left for the next writer of this name."""
        if self._state in ("open", "failed"):
            self._state = "abandoned"
            with contextlib.suppress(OSError):
                _remove_tree(self.partial, self._syscalls)

    def _writable(self) -> None:
        if self._state == "failed":
            raise StorageError(f"`{shown(self.path)}`: a file of it failed; it can't be committed", file=self.path)
        if self._state != "open":
            raise ArgumentError(f"`{shown(self.path)}`: is {self._state} already", file=self.path)

    @contextlib.contextmanager
    def _or_failed(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._state = "failed"
            raise

    def __enter__(self) -> StagedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


def _plain(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ArgumentError(f"{name!r} is not a plain file name")
    return name


def remove_file(path: StrPath, *, syscalls: Syscalls = LOCAL) -> None:
    """Removes a file, or a link itself, and fsyncs its folder.

    Raises:
        NotFound: there is no such file.
        StorageError: it is a folder, or can't be removed.
    """
    given = os.fspath(path)
    if not os.path.lexists(given):
        raise NotFound(f"`{shown(given)}`: no such file", file=given)
    with reported(given, "removing", kept="it is still there"):
        syscalls.unlink(given)
    with reported(given, "fsync after removing it", kept="it is gone, but a power cut may bring it back"):
        syscalls.fsync_folder(os.path.dirname(os.path.abspath(given)))


def remove_folder(path: StrPath, *, syscalls: Syscalls = LOCAL) -> None:
    """Removes a folder and all in it. At no moment does a part of it bear its name.

    It is first renamed to ``.NAME.deleting``, durably; what an earlier call left of such a folder is removed as well.

    Raises:
        NotFound: there is no such folder, and nothing left of one.
        StorageError: it can't be renamed (nothing is lost), or not removed (what is left is ``.NAME.deleting``).
    """
    given, target = os.fspath(path), os.path.abspath(path)
    parent, name = os.path.split(target)
    doomed = os.path.join(parent, f".{name}{DELETING}")
    there, left = os.path.lexists(target), os.path.lexists(doomed)
    if not there and not left:
        raise NotFound(f"`{shown(given)}`: no such folder", file=given)
    with reported(given, "renaming it before removal", kept="nothing was removed"):
        if there and left:
            _remove_tree(doomed, syscalls)
        if there:
            syscalls.rename(target, doomed)
            syscalls.fsync_folder(parent)
    with reported(given, "removing", kept=f"what is left is named .{shown(name)}{DELETING}"):
        _remove_tree(doomed, syscalls)


def move_folder(source: StrPath, target: StrPath, *, syscalls: Syscalls = LOCAL) -> None:
    """Gives a folder another name on the same disk, in one step, and fsyncs both parents.

    Raises:
        NotFound: there is no folder ``source``.
        StorageError: ``target`` exists, or lies on another disk; nothing has moved then.
    """
    given, old, new = os.fspath(source), os.path.abspath(source), os.path.abspath(target)
    if not os.path.lexists(old):
        raise NotFound(f"`{shown(given)}`: no such folder", file=given)
    if os.path.lexists(new):
        raise StorageError(f"`{shown(os.fspath(target))}`: exists already; `{shown(given)}` stays", file=given)
    make_folders(os.path.dirname(new), syscalls=syscalls)
    with reported(given, f"moving it to `{shown(os.fspath(target))}`", kept="it stays where it was"):
        syscalls.rename(old, new)
    with reported(given, "fsync after moving it", kept="it has moved, but a power cut may undo that"):
        syscalls.fsync_folder(os.path.dirname(new))  # the new name first: never a moment without one
        syscalls.fsync_folder(os.path.dirname(old))


def make_folders(path: StrPath, *, durable: bool = True, syscalls: Syscalls = LOCAL) -> None:
    """Creates a folder and those above it, and fsyncs each name that it makes.

    Raises:
        StorageError: a folder can't be created.
    """
    missing = []
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with reported(folder, "creating the folder"):
            try:
                syscalls.mkdir(folder)
            except FileExistsError:  # another process made it meanwhile, or a file has the name
                if not os.path.isdir(folder):
                    raise
            if durable:
                syscalls.fsync_folder(os.path.dirname(folder))


def _remove_tree(path: str, syscalls: Syscalls) -> None:
    """Removes a file, a link (never what it points to), or a folder with all in it."""
    if os.path.islink(path) or not os.path.isdir(path):
        syscalls.unlink(path)
        return
    with os.scandir(path) as entries:
        inside = [entry.path for entry in entries]
    for entry in inside:
        _remove_tree(entry, syscalls)
    syscalls.rmdir(path)


def _partial_prefix(name: str) -> str:
    """What the names of one target's partial files begin with; a name that would grow too long is shortened."""
    if len(os.fsencode(name)) > _LONG_NAME:
        name = xxhash.xxh3_128_hexdigest(os.fsencode(name))
    return f".{name}."


def sweep(folder: str, *, name: str | None = None, folders: bool = False, syscalls: Syscalls = LOCAL) -> list[str]:
    """Removes what writers that died left behind; what a living writer holds stays.

    A writer locks (``flock``) its partial file from its creation to its rename, and the kernel lets go of the lock when
    the process ends in whatever way. That tells the living from the dead better than a process id in the name would:
    ids are reused, and mean nothing to another container or host on the same disk. Partial folders carry no lock.

    Args:
        folder: where to look, not below it.
        name: only partial files of this target; None means of all.
        folders: also remove partial folders and those that are half deleted. Only for the holder of the run's lock.
        syscalls: what changes the disk.

    Returns:
        The names that were removed. What can't be removed stays and is no error.
    """
    wanted = re.compile(
        rf"{re.escape(_partial_prefix(name)) if name else '[.].+[.]'}[0-9a-f]{{16}}{re.escape(PARTIAL)}", re.S
    )
    removed = []
    try:
        entries = os.listdir(folder)
    except OSError:
        return []
    for entry in entries:
        path, gone = os.path.join(folder, entry), False
        if wanted.fullmatch(entry) and not os.path.isdir(path):
            gone = _sweep_file(path, syscalls)
        elif folders and entry.startswith(".") and entry.endswith((PARTIAL, DELETING)) and os.path.isdir(path):
            gone = _sweep_folder(path, syscalls)
        if gone:
            removed.append(entry)
    return removed


def _sweep_file(path: str, syscalls: Syscalls) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        syscalls.unlink(path)
    except OSError:
        return False
    finally:
        close_reading(fd)
    return True


def _sweep_folder(path: str, syscalls: Syscalls) -> bool:
    with contextlib.suppress(OSError):
        _remove_tree(path, syscalls)
        return True
    return False
