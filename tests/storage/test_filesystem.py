from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from holdfast.errors import NotFound, StorageError
from holdfast.storage.filesystem import check_room, examine, free_bytes
from holdfast.storage.syscalls import Syscalls


class NoLinks(Syscalls):
    """A file system like FAT."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


class Full(Syscalls):
    """A disk without room."""

    def pwritev(self, fd: int, buffers: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_all_of_it_works_here_and_nothing_is_left(tmp_path: Path) -> None:
    found = examine(str(tmp_path))
    assert {one.name: one.works for one in found.features} == dict.fromkeys(
        ("commit", "hard links", "record lock", "flock", "memfd", "free space"), True
    )
    assert found.total > 0
    assert found.kind
    assert list(tmp_path.iterdir()) == []


def test_without_links_files_are_copied(tmp_path: Path) -> None:
    (links,) = [one for one in examine(str(tmp_path), syscalls=NoLinks()).features if one.name == "hard links"]
    assert (links.works, links.needed, links.detail) == (False, False, "files are copied instead")


def test_a_commit_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    first, *others = examine(str(tmp_path), syscalls=Full()).features
    assert (first.works, first.needed) == (False, True)
    assert "No space left on device" in first.detail
    assert [one.name for one in others] == ["memfd", "free space"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="gone`: no such folder"):
        examine(str(tmp_path / "gone"))

    def fails(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.statvfs", fails)
    with pytest.raises(StorageError, match="can't be examined: Input/output error"):
        examine(str(tmp_path))


def test_a_save_that_can_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    check_room(str(tmp_path), 0)
    check_room(str(tmp_path), 1)
    wanted = (
        rf"^`{tmp_path}`: no room for this save: 1,000,000,000,000,000,000 bytes are to be written, [0-9,]+ bytes are "
        "free; nothing was written and nothing was deleted; make room and save again$"
    )
    with pytest.raises(StorageError, match=wanted) as caught:
        check_room(str(tmp_path), 10**18)
    assert caught.value.file == str(tmp_path)
    with pytest.raises(StorageError, match=r"nothing was deleted; buy a disk$"):
        check_room(str(tmp_path), 10**18, advice="buy a disk")
    assert list(tmp_path.iterdir()) == []


def answer(monkeypatch: pytest.MonkeyPatch, **fields: int) -> None:
    """The room that a file system says, in blocks of 1,000 bytes."""
    order = ["f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag"]
    given = {"f_bsize": 4000, "f_frsize": 1000, **fields}
    told = os.statvfs_result([given.get(name, 0) for name in [*order, "f_namemax"]])
    monkeypatch.setattr("os.statvfs", lambda _: told)


def test_what_is_set_aside_for_root_counts_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, f_blocks=100, f_bfree=10, f_bavail=5)
    for user, free in ((0, 10_000), (1000, 5_000)):
        monkeypatch.setattr("os.geteuid", lambda user=user: user)
        assert free_bytes("/") == free
        check_room("/", free)
        with pytest.raises(StorageError, match=f"{free + 1:,} bytes are to be written, {free:,} bytes are free"):
            check_room("/", free + 1)


def test_where_the_room_is_not_told_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert free_bytes("/proc") is None
    assert free_bytes(str(tmp_path / "gone")) is None
    answer(monkeypatch)
    assert free_bytes("/") is None
    check_room("/", 10**18)
    room = examine(str(tmp_path)).features[-1]
    assert (room.name, room.works, room.needed) == ("free space", False, False)
