"""A disk that really is full, and one that really is read-only: small file systems mounted for the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import StorageError
from holdfast.runs.catalog import scan
from holdfast.runs.room import check_run_room
from holdfast.storage.filesystem import check_room, free_bytes
from holdfast.training.resuming import Position


def mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 640 KiB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=640k", "tmpfs", str(folder)):
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def objects(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {"model": nn.Linear(256, 256)}  # 263 kB in a file


def test_a_run_on_a_full_disk_keeps_its_checkpoint_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with holdfast.Run(small_disk / "a", keep="last:1", **objects(1)) as run:
        run.save(step=1)
        filler.write_bytes(bytes(200_000))
        with pytest.raises(StorageError, match=r"no room for this save: \d+,\d+ bytes are to be written"):
            run.save(step=2)
        assert [one.step for one in scan(run.path).readable] == [1]
        assert [path.name for path in (small_disk / "a").iterdir() if "partial" in path.name] == []
        filler.unlink()
        assert run.save(step=3).pruned == [1]
    fresh = objects(2)
    with holdfast.Run(small_disk / "a", **fresh) as run:
        assert run.resume() == Position(epoch=0, step=3, batch=0)
    assert torch.equal(fresh["model"].weight, objects(1)["model"].weight)


def test_the_room_that_is_told_is_the_room_that_there_is(small_disk: Path) -> None:
    free = free_bytes(str(small_disk))
    assert free is not None
    check_room(str(small_disk), free)
    with pytest.raises(StorageError, match=f"{free + 1:,} bytes are to be written, {free:,} bytes are free"):
        check_room(str(small_disk), free + 1)
    (small_disk / "all").write_bytes(bytes(free))
    with pytest.raises(StorageError, match="1 bytes are to be written, 0 bytes are free; nothing was written"):
        check_room(str(small_disk), 1)
    check_room(str(small_disk), 0)  # a save whose files are all linked needs none


def test_a_save_that_does_not_fit_names_the_rules_that_would_make_room(small_disk: Path) -> None:
    root = str(small_disk / "a")
    parts = objects(1)
    with holdfast.Run(root, **parts) as run:
        for step in (1, 2):
            nn.init.constant_(parts["model"].weight, step)  # what does not change is linked, and takes no room
            run.save(step=step)
    check_run_room(root, 10_000)
    wanted = rf"300,000 bytes are to be written, .* holdfast prune {root} --keep last:1 would free up to 2\d\d kB"
    with pytest.raises(StorageError, match=wanted):
        check_run_room(root, 300_000)
    assert [one.step for one in scan(root).readable] == [1, 2]  # nothing goes before the new one is safe


def test_a_file_on_a_full_disk_stays_what_it_was(small_disk: Path) -> None:
    file = small_disk / "net.pt"
    holdfast.save(objects(1)["model"], file)
    before = file.read_bytes()
    (small_disk / "filler").write_bytes(bytes(250_000))
    with pytest.raises(StorageError, match="what was there before is unchanged"):
        holdfast.save(objects(2)["model"], file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "net.pt"]


def test_a_read_only_disk_is_said_and_can_be_read(small_disk: Path) -> None:
    with holdfast.Run(small_disk / "a", **objects(1)) as run:
        run.save(step=1)
    holdfast.save(objects(1)["model"], small_disk / "net.pt")
    assert mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(StorageError, match="Read-only file system"):
        holdfast.save(objects(2)["model"], small_disk / "net.pt")
    with pytest.raises(StorageError, match="Read-only file system"):
        holdfast.Run(small_disk / "a", **objects(2))
    fresh = objects(2)["model"]
    holdfast.restore(f"{small_disk / 'a'}@last", model=fresh)
    holdfast.restore(small_disk / "net.pt", model=fresh)
    assert torch.equal(fresh.weight, objects(1)["model"].weight)
