"""Stop or fail a prune at every single call: what must stay is whole, and what goes is never half a checkpoint."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.runs.catalog import scan
from holdfast.runs.moves import prune
from holdfast.runs.retention import parse_keep, plan_prune
from holdfast.runs.verify import verify
from holdfast.storage.atomic import sweep
from holdfast.storage.syscalls import Syscalls
from tests.faults.simulated_disk import Recording, State, on_disk
from tests.runs.hand_made import NOON, commit

KEPT, DOOMED = ("step-00000002", "step-00000004"), ("step-00000001", "step-00000003")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a run that does not exist yet."""
    return tmp_path / "run"


def make(root: Path) -> Path:
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3)):
        commit(root, step, metrics={"loss": loss})
    return root


def prune_it(root: Path, syscalls: Syscalls) -> list[int]:
    catalog = scan(root)
    return prune(
        catalog, plan_prune(catalog.checkpoints, parse_keep("last:1 best:1:loss:min"), NOON), syscalls=syscalls
    )


def fault(state: State, before: State) -> str | None:
    """What is wrong with a disk after a prune was stopped; None when nothing is."""
    for step in (*KEPT, *DOOMED):
        whole = {name: data for name, data in before.items() if name.startswith(f"{step}/")}
        there = {name: data for name, data in state.items() if name.startswith(f"{step}/")}
        if there != whole and (step in KEPT or step in state):
            return f"{step} has {sorted(there)}"
    return None


def test_a_power_cut_after_every_call(root: Path) -> None:
    make(root)
    before, syscalls = on_disk(root), Recording(root)
    assert prune_it(root, syscalls) == [1, 3]
    found = [
        f"after call {number} ({['start', *syscalls.calls][number]}): {wrong}"
        for number, states in enumerate(syscalls.states)
        for state in states
        if (wrong := fault(state, before))
    ]
    assert found == []
    assert len(syscalls.calls) > 10
    assert all(not any(name in state for name in DOOMED) for state in syscalls.states[-1])


class Careless(Recording):
    """Deletes without a new name first: the check must notice it."""

    def rename(self, source: str, target: str) -> None:
        self.mkdir(target)
        for name in os.listdir(source):
            self.unlink(os.path.join(source, name))
        self.rmdir(source)


def test_the_check_notices_a_prune_that_deletes_in_place(root: Path) -> None:
    make(root)
    before, syscalls = on_disk(root), Careless(root)
    prune_it(root, syscalls)
    assert any(fault(state, before) for states in syscalls.states for state in states)


class Stopped(Syscalls):
    """Ends the process by SIGKILL, or fails, at one of the calls that a prune makes."""

    def __init__(self, at: int, code: int | None = None) -> None:
        self.left, self.code = at, code

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            if self.code is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.code, os.strerror(self.code or 0))

    def rename(self, source: str, target: str) -> None:
        self._count()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._count()
        super().unlink(path)

    def rmdir(self, path: str) -> None:
        self._count()
        super().rmdir(path)

    def fsync_folder(self, path: str) -> None:
        self._count()
        super().fsync_folder(path)


def good_steps(root: Path) -> list[int]:
    assert verify(root).status == "OK"
    return [one.step for one in scan(root).readable]


def calls_of_a_prune(root: Path) -> int:
    counting = Stopped(0)
    prune_it(make(root), counting)
    return -counting.left


def test_a_kill_at_every_call_and_then_the_next_writer(tmp_path: Path) -> None:
    count = calls_of_a_prune(tmp_path / "counted")
    assert count > 10
    for at in range(1, count + 1):
        root = make(tmp_path / f"run{at}")
        child = os.fork()
        if child == 0:
            prune_it(root, Stopped(at))
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert {2, 4} <= set(good_steps(root)) <= {1, 2, 3, 4}
        assert len(scan(root).partial) <= 1
        sweep(str(root), folders=True)
        prune_it(root, Syscalls())
        assert good_steps(root) == [2, 4]
        assert scan(root).partial == ()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_failure_at_every_call_is_told_and_the_others_go(tmp_path: Path, code: int) -> None:
    count = calls_of_a_prune(tmp_path / "counted")
    for at in range(1, count + 1):
        root = make(tmp_path / f"run{at}")
        with pytest.raises(StorageError, match=r"1 of 2 checkpoints were not deleted, the others are gone: .*step-0"):
            prune_it(root, Stopped(at, code))
        left = good_steps(root)
        assert {2, 4} <= set(left)
        assert len(left) <= 3  # the one that was not hit is gone
        sweep(str(root), folders=True)
        prune_it(root, Syscalls())
        assert good_steps(root) == [2, 4]


def test_one_that_somebody_else_deleted_is_no_failure(root: Path) -> None:
    catalog = scan(make(root))
    decisions = plan_prune(catalog.checkpoints, parse_keep("last:1"), NOON)
    for name in os.listdir(root / "step-00000001"):
        (root / "step-00000001" / name).unlink()
    (root / "step-00000001").rmdir()
    assert prune(catalog, decisions) == [1, 2, 3]
    assert good_steps(root) == [4]
