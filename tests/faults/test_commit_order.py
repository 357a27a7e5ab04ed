"""Stop a save after every single call, by a kill and by a power cut: the old or the new is there, whole.

The same check is then turned on savers that leave out one step each; it must find every one of them.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.storage.atomic import StagedFolder, move_folder, remove_folder, replace_file
from holdfast.storage.requests import WriteRequest
from holdfast.storage.syscalls import LOCAL, Syscalls
from tests.faults.simulated_disk import File, Recording, State, on_disk

OLD = b"old " * 700
NEW = b"new!" * 1000
FILES = {"model": b"weights " * 500, "manifest": b"{}"}
Save = Callable[[Path, Syscalls], None]


def save_file(root: Path, syscalls: Syscalls) -> None:
    with replace_file(root / "model.pt", syscalls=syscalls) as staged:
        staged.allocate(len(NEW))
        half = len(NEW) // 2
        staged.write([WriteRequest(half, NEW[half:])])
        staged.write([WriteRequest(0, NEW[:half])])


def save_folder(root: Path, syscalls: Syscalls) -> None:
    with StagedFolder(root / "run", "step-2", syscalls=syscalls) as folder:
        for name, data in FILES.items():
            with folder.file(name) as staged:
                staged.write([WriteRequest(0, data)])
        folder.share(root / "shard", "shard")
        folder.commit()


def prepare(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "model.pt").write_bytes(OLD)
    (root / "shard").write_bytes(b"frozen")


def file_fault(state: State, *, done: bool) -> str | None:
    """What is wrong with a disk after ``save_file`` was stopped; None when nothing is."""
    found = state.get("model.pt")
    if found is None:
        return "the file is gone"
    if found not in (OLD, NEW):
        return f"the file is a mixture of {len(found)} bytes"
    if done and found != NEW:
        return "the save was acknowledged and is lost"
    leftovers = [name for name in state if name not in ("model.pt", "shard")]
    if len(leftovers) > 1 or not all(name.startswith(".model.pt.") and name.endswith(".partial") for name in leftovers):
        return f"left behind: {leftovers}"
    return None


def folder_fault(state: State, *, done: bool) -> str | None:
    if state.get("model.pt") != OLD or state.get("shard") != b"frozen":
        return "another file was touched"
    inside = {name: state[name] for name in state if name.startswith("run/step-2/")}
    if "run/step-2" not in state:
        return "the commit was acknowledged and is lost" if done else None
    if inside != {"run/step-2/shard": b"frozen"} | {f"run/step-2/{name}": data for name, data in FILES.items()}:
        return f"committed, but it has {sorted(inside)}"
    return None


KINDS = pytest.mark.parametrize(("save", "fault"), [(save_file, file_fault), (save_folder, folder_fault)])
Fault = Callable[..., str | None]


def power_cut_faults(root: Path, save: Save, fault: Fault, syscalls: Recording) -> list[str]:
    """Runs the save to its end; judges every state that a power cut after each of its calls may leave."""
    save(root, syscalls)
    found = []
    for number, states in enumerate(syscalls.states):
        for state in states:
            wrong = fault(state, done=False)
            if wrong:
                found.append(f"after call {number} ({['start', *syscalls.calls][number]}): {wrong}")
    found.extend(f"after the end: {wrong}" for state in syscalls.states[-1] if (wrong := fault(state, done=True)))
    return found


@KINDS
def test_power_cut_after_every_call(tmp_path: Path, save: Save, fault: Fault) -> None:
    prepare(tmp_path)
    syscalls = Recording(tmp_path)
    assert power_cut_faults(tmp_path, save, fault, syscalls) == []
    assert len(syscalls.calls) >= 8
    assert sum(len(states) for states in syscalls.states) > 30  # the model found something to forget
    assert fault(on_disk(tmp_path), done=True) is None


def test_the_first_file_of_a_new_folder_survives_a_power_cut(tmp_path: Path) -> None:
    syscalls = Recording(tmp_path)
    with replace_file(tmp_path / "a" / "b" / "new.pt", syscalls=syscalls) as staged:
        staged.write([WriteRequest(0, NEW)])
    assert [state.get("a/b/new.pt") for state in syscalls.states[-1]] == [NEW]
    assert {state.get("a/b/new.pt") for states in syscalls.states for state in states} == {None, NEW}


# ---- the check itself is checked: savers with one step missing ------------------------------------------------------


class NoFsync(Recording):
    def fsync(self, fd: int) -> None:
        """Leaves out the fsync of files."""


class NoPartialFsync(Recording):
    def fsync_folder(self, path: str) -> None:
        if not path.endswith(".partial"):
            super().fsync_folder(path)


class NoParentFsync(Recording):
    def fsync_folder(self, path: str) -> None:
        if path.endswith(".partial"):
            super().fsync_folder(path)


class InPlace(Recording):
    """Writes into the target itself, as ``open(path, "wb")`` does."""

    def open_new(self, path: str, mode: int) -> int:
        target = os.path.join(os.path.dirname(path), "model.pt")
        fd = os.open(target, os.O_RDWR | os.O_TRUNC)
        file = self.disk.node(target)
        assert isinstance(file, File)
        file.data.clear()
        file.dirty = True
        self._files[fd] = file
        os.link(target, path)  # so that the saver, which looks whether it was swept, goes on
        self._done("open in place")
        return fd

    def rename(self, source: str, target: str) -> None:
        os.unlink(source)


@pytest.mark.parametrize(
    ("mutant", "save", "fault", "expected"),
    [
        (NoFsync, save_file, file_fault, "mixture"),
        (NoFsync, save_folder, folder_fault, "committed, but it has"),
        (NoPartialFsync, save_folder, folder_fault, "committed, but it has"),
        (NoParentFsync, save_file, file_fault, "acknowledged and is lost"),
        (NoParentFsync, save_folder, folder_fault, "acknowledged and is lost"),
        (InPlace, save_file, file_fault, "mixture"),
    ],
)
def test_a_missing_step_is_found(
    tmp_path: Path, mutant: type[Recording], save: Save, fault: Fault, expected: str
) -> None:
    prepare(tmp_path)
    found = power_cut_faults(tmp_path, save, fault, mutant(tmp_path))
    assert any(expected in wrong for wrong in found), found[:5]


# ---- the process is killed: everything that was written is there, and nothing after it happens ----------------------


class Killed(BaseException):
    """Stands for the end of the process: no clean-up runs after it."""


class Stopping(Syscalls):
    """Does ``limit`` calls, then none, not even those of a clean-up."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.open: set[int] = set()

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if name in vars(Syscalls) and not name.startswith("_"):
            self.count += 1
            if self.count > self.limit:
                raise Killed(name)
        return value

    def open_new(self, path: str, mode: int) -> int:
        fd = Syscalls.open_new(self, path, mode)
        self.open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        Syscalls.close(self, fd)
        self.open.discard(fd)

    def release(self) -> None:
        """What the kernel does when the process is gone."""
        for fd in self.open:
            os.close(fd)
        self.open.clear()


def calls_of(save: Save, root: Path) -> int:
    syscalls = Stopping(10_000)
    prepare(root)
    save(root, syscalls)
    return syscalls.count


@KINDS
def test_kill_after_every_call(tmp_path: Path, save: Save, fault: Fault) -> None:
    total = calls_of(save, tmp_path / "whole")
    assert total >= 8
    for limit in range(total):
        root = tmp_path / f"killed-{limit}"
        prepare(root)
        syscalls = Stopping(limit)
        with pytest.raises(Killed):
            save(root, syscalls)
        syscalls.release()
        assert fault(on_disk(root), done=False) is None, limit
        if "run/step-2" not in on_disk(root):  # the next save cleans up and succeeds
            save(root, LOCAL)
        assert fault(on_disk(root), done=True) is None, limit
        assert not [name for name in on_disk(root) if ".partial" in name], limit


@pytest.mark.parametrize("limit", [1, 3, 5, 7])
def test_a_real_kill(tmp_path: Path, limit: int) -> None:
    """The same with a process of its own and SIGKILL instead of its n-th call."""
    prepare(tmp_path)
    program = f"""
import os, signal, sys
from pathlib import Path
from tests.faults.test_commit_order import Killed, Stopping, save_file
try:
    save_file(Path({str(tmp_path)!r}), Stopping({limit}))
except Killed:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert file_fault(on_disk(tmp_path), done=False) is None
    save_file(tmp_path, LOCAL)
    assert on_disk(tmp_path) == {"model.pt": NEW, "shard": b"frozen"}


# ---- the disk says no -----------------------------------------------------------------------------------------------


class Failing(Syscalls):
    """Fails the n-th call with an errno; with ``lasting`` also all later ones of that kind."""

    def __init__(self, number: int, code: int, *, lasting: bool = False) -> None:
        self.number = number
        self.code = code
        self.lasting = lasting
        self.count = 0
        self.failed = ""
        self.done: list[str] = []

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if name in vars(Syscalls) and not name.startswith("_"):
            self.count += 1
            if self.count == self.number or (self.lasting and name == self.failed):
                self.failed = name
                raise OSError(self.code, os.strerror(self.code))
            self.done.append(name)
        return value


@KINDS
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True])
def test_an_error_at_every_call(tmp_path: Path, save: Save, fault: Fault, code: int, lasting: bool) -> None:
    total = calls_of(save, tmp_path / "whole")
    for number in range(1, total + 1):
        root = tmp_path / f"failed-{number}"
        prepare(root)
        syscalls = Failing(number, code, lasting=lasting)
        with pytest.raises(StorageError) as caught:
            save(root, syscalls)
        assert os.strerror(code) in str(caught.value)
        after = on_disk(root)
        assert fault(after, done=False) is None, number
        committed = after["model.pt"] == NEW or "run/step-2" in after
        assert committed == ("rename" in syscalls.done), number
        assert ("a power cut may undo it" in str(caught.value)) == committed
        assert not [name for name in after if ".partial" in name] or lasting
        if "run/step-2" not in after:
            save(root, LOCAL)
        assert not [name for name in on_disk(root) if ".partial" in name]


def away(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_full_disk_is_told_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    with pytest.raises(
        StorageError, match=r"4,000 bytes were to be written, [\d,]+ bytes are free; make room and save"
    ) as caught:
        save_file(tmp_path, Failing(3, errno.ENOSPC))
    assert "what was there before is unchanged" in str(caught.value)
    assert caught.value.file == str(tmp_path / "model.pt")
    monkeypatch.setattr("holdfast.storage.staged.os.statvfs", away)
    with pytest.raises(StorageError, match="an unknown number of bytes are free"):
        save_file(tmp_path, Failing(3, errno.ENOSPC))


class Short(Syscalls):
    """Takes at most ``limit`` bytes of a write."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[: self.limit], offset)


@KINDS
@pytest.mark.parametrize("limit", [1, 7, 1999])
def test_short_writes_are_continued(tmp_path: Path, save: Save, fault: Fault, limit: int) -> None:
    prepare(tmp_path)
    save(tmp_path, Short(limit))
    assert fault(on_disk(tmp_path), done=True) is None


# ---- deleting and moving --------------------------------------------------------------------------------------------


def test_a_half_deleted_folder_never_bears_its_name(tmp_path: Path) -> None:
    step = tmp_path / "step-1"
    step.mkdir()
    for name, data in FILES.items():
        (step / name).write_bytes(data)
    syscalls = Recording(tmp_path)
    remove_folder(step, syscalls=syscalls)
    whole = {f"step-1/{name}": data for name, data in FILES.items()}
    seen = {"step-1" in state for states in syscalls.states for state in states}
    assert seen == {True, False}
    for states in syscalls.states:
        for state in states:
            assert "step-1" not in state or whole.items() <= state.items()
    assert [name for state in syscalls.states[-1] for name in state if name == "step-1"] == []


def test_a_moved_folder_is_never_in_no_place(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "model").write_bytes(NEW)
    syscalls = Recording(tmp_path)
    move_folder(tmp_path / "step-1", tmp_path / "quarantine" / "step-1", syscalls=syscalls)
    for states in syscalls.states:
        for state in states:
            places = [state.get("step-1/model"), state.get("quarantine/step-1/model")]
            assert sorted(places, key=bool) == [None, NEW]
    assert [state["quarantine/step-1/model"] for state in syscalls.states[-1]] == [NEW]
