from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import RunLocked, StorageError
from holdfast.runs.lock import RunLock

HOLD = """
import os, sys, time
from holdfast.runs.lock import RunLock
lock = RunLock(sys.argv[1])
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.setsid()
        os.write(1, b"%d\\n" % os.getpid())  # one call: lines of several processes never mix
        time.sleep(60)
        os._exit(0)
os.write(1, b"held\\n")
time.sleep(60)
"""
TRY = """
import sys
from holdfast.errors import RunLocked
from holdfast.runs.lock import RunLock
try:
    RunLock(sys.argv[1])
except RunLocked as reason:
    print(reason)
    sys.exit(reason.exit_code)
"""


class Holding:
    """A process that holds the lock, and its forked children."""

    def __init__(self, root: Path, children: int) -> None:
        arguments = [sys.executable, "-c", HOLD, str(root), str(children)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        self.children: list[int] = []
        assert self.process.stdout is not None
        words = [self.process.stdout.readline().strip() for _ in range(children + 1)]
        self.children = [int(word) for word in words if word != "held"]
        assert "held" in words

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def close(self) -> None:
        self.kill()
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def holding(root: Path) -> Iterator[Holding]:
    """Another process that writes the run and has two children."""
    other = Holding(root, 2)
    yield other
    other.close()


def attempt(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRY, str(root)], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_second_writer_in_another_process_is_told_who_the_first_is(root: Path, holding: Holding) -> None:
    with pytest.raises(RunLocked, match=f"pid {holding.process.pid} on {socket.gethostname()} since 20") as caught:
        RunLock(root)
    assert caught.value.exit_code == 5
    assert caught.value.file == str(root)


def test_a_killed_holder_does_not_block_although_its_children_live(root: Path, holding: Holding) -> None:
    holding.kill()
    with RunLock(root) as lock:
        assert lock.held
    for pid in holding.children:
        os.kill(pid, 0)  # they did live on, with the descriptor that they inherited


def test_the_same_process_is_refused_too_and_keeps_its_lock(root: Path) -> None:
    with RunLock(root):
        with pytest.raises(RunLocked, match=rf"this process \(pid {os.getpid()}\) writes the run already"):
            RunLock(root)
        other = attempt(root)
        assert other.returncode == 5
        assert f"pid {os.getpid()} on" in other.stdout


def test_release_lets_the_next_one_in_and_leaves_no_name(root: Path) -> None:
    lock = RunLock(root)
    lock.release()
    lock.release()
    assert not lock.held
    assert lock.path == str(root / ".lock")
    assert (root / ".lock").read_bytes() == b""
    assert attempt(root).returncode == 0
    RunLock(root).release()


def test_a_forked_child_does_not_hold_it_and_can_not_lose_it(root: Path) -> None:
    lock = RunLock(root)
    child = os.fork()
    if child == 0:  # results travel as bits of the exit code: pytest must not run on in here
        result = 1 if lock.held else 0
        try:
            RunLock(root)
        except RunLocked as reason:
            result |= 0 if f"pid {os.getppid()}" in str(reason) else 2
        else:
            result |= 4
        lock.release()
        os._exit(result)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock.held
    assert attempt(root).returncode == 5
    lock.release()


def test_a_child_forked_while_a_thread_takes_a_lock_does_not_hang(root: Path) -> None:
    from holdfast.runs import lock as room

    with room._guard:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            RunLock(root / "other").release()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_eight_processes_at_once_one_wins(root: Path) -> None:
    script = TRY + "\nimport time; print('won', flush=True); time.sleep(5)"
    arguments = [sys.executable, "-c", script, str(root)]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    words = [one.communicate(timeout=60)[0] for one in started]
    assert sum("won" in word for word in words) == 1
    assert sum("writes this run" in word for word in words) == 7


def test_text_that_is_no_holder_is_still_an_error_without_a_name(root: Path) -> None:
    lock = RunLock(root)
    (root / "other").mkdir()
    os.pwrite(lock._fd, b"\x1b[31m not json", 0)
    assert "another process writes this run; stop it, or write to another folder" in attempt(root).stdout
    lock.release()


def test_a_disk_without_locks_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("holdfast.runs.lock.fcntl.lockf", none)
    with pytest.raises(StorageError, match=r"\.lock`: can't be locked: No locks available"):
        RunLock(root)


def test_a_folder_that_can_not_be_locked(root: Path, tmp_path: Path) -> None:
    (root / ".lock").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"\.lock`: can't be opened"):
        RunLock(root)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        RunLock(tmp_path / "file")
