"""A disk that forgets: what may be on it after a power cut, worked out from the calls that were made.

The rules are those that POSIX promises and no more. Bytes of a file are safe after its fsync; until then the file may
be empty, filled with zeros, half written or whole. A name is safe after an fsync of its folder; until then each
change to a folder may have reached the medium or not, whatever happened to the others. A rename is one change, also
between two folders. A file may have several names, in several folders: its bytes are safe or not for all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.storage.syscalls import LOCAL, Syscalls

State = dict[str, bytes | None]
"""What is on a disk: bytes of each file by its path, None for a folder."""
MOST_STATES = 400


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    dirty: bool = False

    def variants(self) -> list[bytes]:
        if not self.dirty:
            return [bytes(self.data)]
        half = len(self.data) // 2
        rest = len(self.data) - half
        guesses = [
            self.synced,
            b"",
            bytes(len(self.data)),
            bytes(self.data[:half]),
            bytes(self.data[:half]) + bytes(rest),
        ]
        return list(dict.fromkeys([*guesses, bytes(self.data)]))


@dataclass(eq=False)
class Change:
    """One change of names: entries that appear (or, with None, go), each in its folder."""

    entries: list[tuple[Folder, str, File | Folder | None]]


@dataclass(eq=False)
class Folder:
    live: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)


class Disk:
    """The model: starts as a copy of a real folder, all of it safe, and is told every call."""

    def __init__(self, root: Path) -> None:
        self.root_path = os.path.realpath(root)
        self.root = self._load(Path(self.root_path))

    def _load(self, path: Path, files: dict[int, File] | None = None) -> Folder:
        folder = Folder()
        files = {} if files is None else files
        for entry in path.iterdir():
            node: File | Folder
            if entry.is_dir():
                node = self._load(entry, files)
            else:  # one for each inode, whatever its names
                node = files.setdefault(entry.stat().st_ino, File(bytearray(entry.read_bytes()), entry.read_bytes()))
            folder.live[entry.name] = folder.synced[entry.name] = node
        return folder

    def _parent(self, path: str) -> tuple[Folder, str]:
        folder: File | Folder = self.root
        *above, name = os.path.relpath(
            os.path.realpath(os.path.dirname(path)) + "/" + os.path.basename(path), self.root_path
        ).split("/")
        for part in above:
            assert isinstance(folder, Folder)
            folder = folder.live[part]
        assert isinstance(folder, Folder)
        return folder, name

    def node(self, path: str) -> File | Folder:
        if os.path.realpath(path) == self.root_path:
            return self.root
        folder, name = self._parent(path)
        return folder.live[name]

    def change(self, *entries: tuple[str, File | Folder | None]) -> None:
        change = Change([(*self._parent(path), node) for path, node in entries])
        for folder in {id(folder): folder for folder, _, _ in change.entries}.values():
            folder.pending.append(change)
        _apply(change, {})

    def fsync_folder(self, path: str) -> None:
        folder = self.node(path)
        assert isinstance(folder, Folder)
        for change in list(folder.pending):
            for other, name, node in change.entries:
                if node is None:
                    other.synced.pop(name, None)
                else:
                    other.synced[name] = node
                if change in other.pending:
                    other.pending.remove(change)

    def after_power_cut(self, most: int = MOST_STATES) -> Iterator[State]:
        """Every state that may be found, or a fixed sample of ``most`` when there are more."""
        changes, files = self._unsafe()
        choices: list[Sequence[object]] = [(False, True)] * len(changes) + [file.variants() for file in files]
        for pick in _picks(choices, most):
            kept = [change for change, keep in zip(changes, pick, strict=False) if keep]
            contents = {id(file): data for file, data in zip(files, pick[len(changes) :], strict=True)}
            yield self._state(kept, contents)

    def _unsafe(self) -> tuple[list[Change], list[File]]:
        changes: list[Change] = []
        files: list[File] = []
        seen: set[int] = set()
        queue: list[File | Folder] = [self.root]
        while queue:
            node = queue.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, File):
                files.extend([node] if node.dirty else [])
                continue
            changes.extend(change for change in node.pending if change not in changes)
            queue.extend(node.live.values())
            queue.extend(node.synced.values())
            queue.extend(entry for change in node.pending for _, _, entry in change.entries if entry is not None)
        return changes, files

    def _state(self, kept: list[Change], contents: dict[int, bytes]) -> State:
        names: dict[int, dict[str, File | Folder]] = {}
        for change in kept:
            for folder, _, _ in change.entries:
                names.setdefault(id(folder), dict(folder.synced))
            _apply(change, names)
        state: State = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in names.get(id(folder), folder.synced).items():
                if isinstance(node, Folder):
                    state[prefix + name] = None
                    walk(node, f"{prefix}{name}/")
                else:
                    state[prefix + name] = contents.get(id(node), node.synced)

        walk(self.root, "")
        return state


def _picks(choices: Sequence[Sequence[object]], most: int) -> Iterator[tuple[object, ...]]:
    """All combinations; when there are too many, those where one thing differs from all or nothing, and a sample."""
    count = 1
    for choice in choices:
        count *= len(choice)
    if count <= most:
        yield from itertools.product(*choices)
        return
    everything = tuple(choice[-1] for choice in choices)
    nothing = tuple(choice[0] for choice in choices)
    yield everything
    yield nothing
    for at, choice in enumerate(choices):
        yield (*everything[:at], choice[0], *everything[at + 1 :])
        yield (*nothing[:at], choice[-1], *nothing[at + 1 :])
    chance = random.Random(len(choices))
    for _ in range(most):
        yield tuple(chance.choice(choice) for choice in choices)


def _apply(change: Change, names: dict[int, dict[str, File | Folder]]) -> None:
    for folder, name, node in change.entries:
        entries = names.get(id(folder), folder.live)
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class Recording(Syscalls):
    """Does every call on the real disk and tells the model; keeps what a power cut after each may leave.

    Args:
        root: the folder that is the disk.
        judge: told of each state that a power cut after each call may leave; without it ``states`` keeps them.
        most: states after one call.
    """

    def __init__(
        self, root: Path, judge: Callable[[str, Iterator[State]], None] | None = None, most: int = MOST_STATES
    ) -> None:
        self.disk = Disk(root)
        self.calls: list[str] = []
        self.states: list[list[State]] = [] if judge else [list(self.disk.after_power_cut(most))]
        self._judge = judge
        self._most = most
        self._files: dict[int, File] = {}

    def _done(self, call: str) -> None:
        self.calls.append(call)
        if self._judge is not None:
            self._judge(call, self.disk.after_power_cut(self._most))
        else:
            self.states.append(list(self.disk.after_power_cut(self._most)))

    def open_new(self, path: str, mode: int) -> int:
        fd = super().open_new(path, mode)
        self._files[fd] = File(dirty=True)
        self.disk.change((path, self._files[fd]))
        self._done("open_new")
        return fd

    def open_direct(self, path: str) -> int:
        fd = super().open_direct(path)
        node = self.disk.node(path)
        assert isinstance(node, File)
        self._files[fd] = node
        self._done("open_direct")
        return fd

    def allocate(self, fd: int, size: int) -> None:
        super().allocate(fd, size)
        self._files[fd].data.extend(bytes(size))
        self._files[fd].dirty = True
        self._done("allocate")

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        count = super().pwritev(fd, buffers, offset)
        data = self._files[fd].data
        data.extend(bytes(max(0, offset + count - len(data))))
        data[offset : offset + count] = b"".join(buffers)[:count]
        self._files[fd].dirty = True
        self._done("pwritev")
        return count

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        if fd in self._files:
            file = self._files[fd]
            file.synced, file.dirty = bytes(file.data), False
            self._done("fsync")

    def close(self, fd: int) -> None:
        super().close(fd)
        self._files.pop(fd)
        self._done("close")

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        self.disk.change((path, Folder()))
        self._done("mkdir")

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        self.disk.change((source, None), (target, self.disk.node(source)))
        self._done("rename")

    def link(self, source: str, target: str) -> None:
        super().link(source, target)
        self.disk.change((target, self.disk.node(source)))
        self._done("link")

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.disk.change((path, None))
        self._done("unlink")

    def rmdir(self, path: str) -> None:
        super().rmdir(path)
        self.disk.change((path, None))
        self._done("rmdir")

    def fsync_folder(self, path: str) -> None:
        super().fsync_folder(path)
        self.disk.fsync_folder(path)
        self._done("fsync_folder")


@contextlib.contextmanager
def installed(syscalls: Syscalls) -> Iterator[None]:
    """Sends every call that holdfast makes through ``syscalls``, one at a time, as long as the block runs."""
    guard = threading.RLock()

    def sent(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            with guard:
                return getattr(syscalls, name)(*arguments)

        return call

    names = [name for name in vars(Syscalls) if not name.startswith("_")]
    for name in names:
        setattr(LOCAL, name, sent(name))
    try:
        yield
    finally:
        for name in names:
            delattr(LOCAL, name)


def write_state(state: State, root: Path) -> None:
    """Makes a folder of what is left after a power cut."""
    for name, data in state.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)


def on_disk(root: Path) -> State:
    """What is really there."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }
