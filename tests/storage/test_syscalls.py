from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.storage.syscalls import LOCAL, Syscalls


def test_a_new_file_must_be_new(tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    with pytest.raises(FileExistsError):
        LOCAL.open_new(str(tmp_path / "link"), 0o600)
    assert not (tmp_path / "elsewhere").exists()
    fd = LOCAL.open_new(str(tmp_path / "new"), 0o600)
    assert not os.get_inheritable(fd)
    LOCAL.close(fd)


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    """Also where the file system can't reserve, and for an empty file, which posix_fallocate refuses."""
    if code is not None:

        def refuse(fd: int, offset: int, length: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    fd = LOCAL.open_new(str(tmp_path / "new"), 0o600)
    LOCAL.allocate(fd, 100_000)
    assert os.fstat(fd).st_size == 100_000
    LOCAL.allocate(fd, 0)
    LOCAL.close(fd)


def test_allocate_passes_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    fd = LOCAL.open_new(str(tmp_path / "new"), 0o600)
    with pytest.raises(OSError, match="full"):
        LOCAL.allocate(fd, 10)
    LOCAL.close(fd)


def test_a_link_is_linked_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.symlink("file", tmp_path / "soft")
    LOCAL.link(str(tmp_path / "soft"), str(tmp_path / "hard"))
    assert (tmp_path / "hard").is_symlink()


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_folders_that_can_not_be_synced(tmp_path: Path, open_files: Callable[[], int], code: int, passes: bool) -> None:
    class NoSuchThing(Syscalls):
        def fsync(self, fd: int) -> None:
            raise OSError(code, os.strerror(code))

    if passes:
        NoSuchThing().fsync_folder(str(tmp_path))
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            NoSuchThing().fsync_folder(str(tmp_path))
    assert open_files() == 0
