from __future__ import annotations

import errno
from pathlib import Path

import pytest

from holdfast.errors import NotFound, StorageError
from holdfast.storage.filesystem import examine
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
        ("commit", "hard links", "record lock", "flock", "memfd"), True
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
    assert [one.name for one in others] == ["memfd"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="gone`: no such folder"):
        examine(str(tmp_path / "gone"))

    def fails(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.statvfs", fails)
    with pytest.raises(StorageError, match="can't be examined: Input/output error"):
        examine(str(tmp_path))
