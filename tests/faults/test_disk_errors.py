"""The disk says no at any call of a whole story of a run: an error is raised, and what was there before is intact."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import StorageError
from holdfast.storage.syscalls import Syscalls
from tests.faults.killing import after_a_stop, stages_of
from tests.faults.scenarios import SCENARIOS, between, put, save_step, state
from tests.faults.simulated_disk import installed
from tests.faults.test_commit_order import Failing

pytestmark = pytest.mark.usefixtures("small_files_are_linked")

CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


def fail_everywhere(
    name: str, root: Path, caplog: pytest.LogCaptureFixture, codes: Sequence[int], *, lasting: bool, every: int = 1
) -> int:
    """Plays a scenario once for each call of it, which fails; returns how often. Raises what was wrong then.

    Every failure is an error of the call that it befell, but for one: a save whose pruning fails is saved.
    """
    scenario = SCENARIOS[name]
    stages = stages_of(scenario, root / "whole")
    (root / "template").mkdir()
    first = scenario.prepare(root / "template")
    wrong = []
    for number in range(1, 10_000, every):
        here = root / "here"
        shutil.copytree(root / "template", here)
        failing = Failing(number, codes[number % len(codes)], lasting=lasting)
        caplog.clear()
        promised, said = 0, ""
        with installed(failing):
            try:
                for _ in scenario.act(here, first):
                    promised += 1
            except StorageError as reason:
                said = str(reason)
        if not failing.failed:
            break
        found = after_a_stop(here, *between(stages, promised, failing=True), undeletable=lasting)
        if os.strerror(failing.code) not in (said or caplog.text if "pruning stopped" in caplog.text else said):
            found = f"says {said!r}"
        wrong.extend([f"{failing.failed}, call {number}: {found}"] if found else [])
        shutil.rmtree(here)
    assert wrong == []
    return len(range(1, number, every))


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_at_a_call_of_a_run(name: str, memory_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert fail_everywhere(name, memory_disk, caplog, CODES, lasting=False, every=3 - (name == "single files")) > 9


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_error_at_every_call_of_a_run(
    name: str, lasting: bool, memory_disk: Path, counted: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    failed = [fail_everywhere(name, memory_disk / str(code), caplog, [code], lasting=lasting) for code in CODES]
    counted(f"ENOSPC, EIO, EDQUOT, {name}, {'lasting' if lasting else 'once'}: {sum(failed)} calls failed")


class Short(Syscalls):
    """Takes at most ``limit`` bytes of a write."""

    limit = 7

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[: self.limit], offset)


@pytest.mark.parametrize("name", SCENARIOS)
def test_short_writes_are_continued_in_a_run(name: str, tmp_path: Path) -> None:
    with installed(Short()):
        assert stages_of(SCENARIOS[name], tmp_path / "whole")


class Nothing(Syscalls):
    """A disk that takes no byte and does not say why."""

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        return 0


def test_a_disk_that_takes_nothing_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    holdfast.save(state(1), tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    with installed(Nothing()), pytest.raises(StorageError, match="the disk took none of the bytes"):
        holdfast.save(state(2), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before
    with holdfast.Run(tmp_path / "run", **put(0)) as run:
        with installed(Nothing()), pytest.raises(StorageError, match="the disk took none of the bytes"):
            save_step(run, 1)
        save_step(run, 2)
