"""What happens to folders outside of any program: clocks that jump, copies, other times, read-only places, modes."""

from __future__ import annotations

import datetime
import itertools
import os
import random
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.cli.main import main
from holdfast.errors import StorageError
from holdfast.runs.catalog import scan
from tests.faults.scenarios import copied, fill, loaded_whole, put, same, save_step, state

NOBODY = 65534


def resumed(run: Path) -> int:
    """The step that a training would go on from, after its numbers were compared."""
    with holdfast.Run(run, **put(0), rng=False) as training:
        at = training.resume()
        assert at is not None
        assert same(copied(), state(at.step))
    return at.step


REAL = datetime.datetime


class Backwards(REAL):
    """A clock that goes back by a month each time someone looks."""

    _looks = itertools.count()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return REAL(2050, 1, 1, tzinfo=tz) - 30 * next(cls._looks) * datetime.timedelta(days=1)


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "warm", 1)
    assert resumed(tmp_path / "warm" / "run") == 1  # annotations that say datetime are looked up once, at first use
    monkeypatch.setattr(datetime, "datetime", Backwards)
    with holdfast.Run(tmp_path / "run", **put(0), rng=False, best="loss:min", keep="last:2 best:1") as run:
        for step in range(1, 6):
            save_step(run, step, loss=abs(step - 2))
        assert (run.last.step, run.best.step) == (5, 2)
    monkeypatch.undo()
    steps = scan(tmp_path / "run").readable
    assert [one.step for one in steps] == [2, 4, 5]
    times = [one.manifest.time for one in steps if one.manifest]
    assert times == sorted(times, reverse=True)
    assert resumed(tmp_path / "run") == 5


def test_times_of_files_mean_nothing(tmp_path: Path) -> None:
    fill(tmp_path, *range(1, 13))
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    random.Random(3).shuffle(paths)
    for when, path in enumerate(paths):
        os.utime(path, (1_000_000 + when, 1_000_000 + when))
    assert loaded_whole(f"{tmp_path / 'run'}@last", 12) is None
    assert loaded_whole(f"{tmp_path / 'run'}@-4", 9) is None
    assert resumed(tmp_path / "run") == 12
    with holdfast.Run(tmp_path / "run", **put(0), rng=False, keep="last:3") as run:
        run.resume()
        save_step(run, 13)
    assert [one.step for one in scan(tmp_path / "run").readable] == [11, 12, 13]


def test_a_copy_of_a_run_is_a_run(tmp_path: Path) -> None:
    with holdfast.Run(tmp_path / "run", **put(0), rng=False) as run:  # also of one that is being written
        for step in (1, 2, 3):
            save_step(run, step)
        subprocess.run(["cp", "-r", str(tmp_path / "run"), str(tmp_path / "copy")], check=True)
    assert holdfast.verify(tmp_path / "copy").status == "OK"
    assert resumed(tmp_path / "copy") == 3
    with holdfast.Run(tmp_path / "copy", **put(0), rng=False, keep="last:1") as copy:
        copy.resume()
        save_step(copy, 4)
    assert [one.step for one in scan(tmp_path / "copy").readable] == [4]
    assert [one.step for one in scan(tmp_path / "run").readable] == [1, 2, 3]
    assert holdfast.verify(tmp_path / "run").status == "OK"


def test_a_copy_that_was_cut_off_says_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    victim = sorted((tmp_path / "copy" / "step-00000002").glob("*.safetensors"))[0]
    victim.unlink()
    report = holdfast.verify(tmp_path / "copy")
    assert [item.status for item in report.items] == ["OK", "CORRUPT"]
    assert victim.name in str(report)
    assert resumed(tmp_path / "copy") == 1


# ---- folders that may not be written --------------------------------------------------------------------------------


Unprivileged = Callable[[Callable[[], str | None]], str | None]


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder that everybody may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="holdfast-faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for inside in (folder, *folder.rglob("*")):
            inside.chmod(0o755)


@pytest.fixture
def unprivileged() -> Unprivileged:
    """unprivileged(work) does it in a forked child that is not root; returns what it returned or raised."""

    def run(work: Callable[[], str | None]) -> str | None:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child needs none of this process's threads
            pid = os.fork()
        if pid == 0:
            said: str | None = "died"
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                said = work()
            except BaseException as reason:
                said = f"{type(reason).__name__}: {reason}"
            finally:
                os.write(writer, (said or "").encode())
                os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            return pipe.read().decode() or None

    return run


def read_everything(run: Path, file: Path) -> str | None:
    """All that only reads; what is wrong with it."""
    for verb in (["ls", run], ["verify", run], ["inspect", f"{run}@last"], ["explain", run], ["path", f"{run}@last"]):
        try:
            main([str(word) for word in verb])
        except SystemExit as left:
            if left.code:
                return f"{verb[0]} exits with {left.code}"
    holdfast.restore(f"{run}@last", **put(0))
    return loaded_whole(str(file), 1) or (None if same(copied(), state(2)) else "restored other numbers")


def test_a_read_only_run_can_be_read_and_says_that_it_can_not_be_written(
    disk: Path, unprivileged: Unprivileged
) -> None:
    fill(disk, 1, 2)
    run, file = disk / "run", disk / "files" / "net.pt"
    holdfast.save(state(1), file)
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
    for folder in (run, *(path for path in run.iterdir() if path.is_dir()), file.parent):
        folder.chmod(0o555)
    assert read_everything(run, file) is None  # which loads all the modules that it takes
    assert unprivileged(lambda: read_everything(run, file)) is None

    def save_file() -> str | None:
        holdfast.save(state(2), file)
        return None

    def open_run() -> str | None:
        holdfast.Run(run, **put(0))
        return None

    denied = "Permission denied"
    assert f"StorageError: `{file}`: creating a file beside it failed: {denied}" in (unprivileged(save_file) or "")
    assert f"StorageError: `{run / '.lock'}`: can't be opened: {denied}" in (unprivileged(open_run) or "")
    assert before == {path: path.stat().st_mtime_ns for path in disk.rglob("*")}


def test_a_step_that_may_not_be_read_is_no_damage(disk: Path, unprivileged: Unprivileged) -> None:
    """A training says that it can't read it; it does not set it aside and go on from an older one."""
    fill(disk, 1, 2)
    run = disk / "run"
    if os.getuid() == 0:
        for path in (run, *run.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    (run / "step-00000002" / "manifest.json").chmod(0)

    def resume() -> str | None:
        with holdfast.Run(run, **put(0)) as training:
            training.resume()
        return None

    said = unprivileged(resume)
    assert said == f"StorageError: `{run}/step-00000002/manifest.json`: can't be opened: Permission denied"
    (run / "step-00000002" / "manifest.json").chmod(0o644)
    assert [one.step for one in scan(run).readable] == [1, 2]
    assert scan(run).quarantined == ()


# ---- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_new_files_follow_the_umask(mask: int, tmp_path: Path) -> None:
    """Containers may lack the right to write besides: they are never changed."""
    before = os.umask(mask)
    try:
        fill(tmp_path, 1)
        holdfast.save(state(1), tmp_path / "net.pt")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        mode, wanted = stat.S_IMODE(path.stat().st_mode), (0o777 if path.is_dir() else 0o666) & ~mask
        assert mode in (wanted, wanted & 0o555 if path.is_file() else wanted), (path, oct(mode))


def test_what_lies_in_a_setgid_folder_belongs_to_its_group(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("giving a folder to another group takes root")
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, NOBODY)
    shared.chmod(0o2775)
    fill(shared, 1)
    holdfast.save(state(1), shared / "net.pt")
    holdfast.save(state(2), shared / "net.pt")
    assert {path.stat().st_gid for path in shared.rglob("*")} == {NOBODY}
    assert all(path.stat().st_mode & stat.S_ISGID for path in shared.rglob("*") if path.is_dir())


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    holdfast.save(state(1), file)
    for mode in (0o600, 0o640, 0o666, 0o755):
        file.chmod(mode)
        holdfast.save(state(2), file)
        assert stat.S_IMODE(file.stat().st_mode) == mode
    file.chmod(0o444)
    with pytest.raises(StorageError, match=r"is write-protected \(mode 0444\)"):
        holdfast.save(state(1), file)
    assert loaded_whole(str(file), 2) is None
