from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, NotFound, StorageError
from holdfast.storage.atomic import (
    StagedFolder,
    make_folders,
    move_folder,
    remove_file,
    remove_folder,
    replace_file,
    sweep,
    write_bytes,
)
from holdfast.storage.digest import chunk_digests
from holdfast.storage.requests import WriteRequest
from holdfast.storage.syscalls import Syscalls


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_replacing(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with replace_file(path, durable=durable) as staged:
        staged.allocate(10)
        [late] = staged.write([WriteRequest(4, b"second")])
        [early] = staged.write([WriteRequest(0, b"1st.")], crc=True)
        assert path.read_bytes() == b"old"
        assert staged.path == str(path)
        assert staged.size == 10
    assert path.read_bytes() == b"1st.second"
    assert late.chunks == chunk_digests(b"second")
    assert late.crc32 is None
    assert early.crc32 is not None
    assert names(tmp_path) == ["model.pt"]


def test_without_allocation_the_file_grows(tmp_path: Path) -> None:
    with replace_file(tmp_path / "grown") as staged:
        staged.write([WriteRequest(3, b"def"), WriteRequest(0, b"abc")])
        assert staged.size == 6
    assert (tmp_path / "grown").read_bytes() == b"abcdef"
    with replace_file(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").read_bytes() == b""


def save_and_raise(path: Path, error: BaseException) -> None:
    with replace_file(path) as staged:
        staged.write([WriteRequest(0, b"new")])
        assert all(len(os.fsencode(entry)) < 256 for entry in names(path.parent))
        raise error


def save_pieces(path: Path, size: int, writes: Sequence[tuple[int, bytes]]) -> None:
    with replace_file(path) as staged:
        staged.allocate(size)
        staged.write([WriteRequest(offset, data) for offset, data in writes])


def save_then_allocate(path: Path, data: bytes, size: int) -> None:
    with replace_file(path) as staged:
        staged.write([WriteRequest(0, data)] if data else [])
        staged.allocate(size)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StorageError])
def test_an_error_in_the_block_leaves_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(error, match="mine"):
        save_and_raise(path, error("mine"))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.pt"]


def test_an_os_error_of_the_block_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "a"):
        (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(
    ("writes", "fault"),
    [
        ([(0, b"abc")], "bytes 3 to 10 were never written"),
        ([(0, b"abc"), (5, b"fghij")], "bytes 3 to 5 were never written"),
        ([(0, b"abcdef"), (4, b"efghij")], "bytes 4 to 6 were written twice"),
        ([], "bytes 0 to 10 were never written"),
    ],
)
def test_every_byte_is_written_once(tmp_path: Path, writes: Sequence[tuple[int, bytes]], fault: str) -> None:
    with pytest.raises(ArgumentError, match=fault):
        save_pieces(tmp_path / "a", 10, writes)
    assert names(tmp_path) == []


def test_writes_stay_inside(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a write up to byte 11, 10 bytes were allocated"):
        save_pieces(tmp_path / "a", 10, [(8, b"abc")])


@pytest.mark.parametrize(("data", "size"), [(b"a", 5), (b"", -1)])
def test_allocation_comes_once_and_first(tmp_path: Path, data: bytes, size: int) -> None:
    with pytest.raises(ArgumentError, match="must come once, before anything is written"):
        save_then_allocate(tmp_path / "a", data, size)


def test_permissions(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new", b"")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640  # by the umask
    os.chmod(tmp_path / "new", 0o666)
    write_bytes(tmp_path / "new", b"x")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666  # as it was
    os.chmod(tmp_path / "new", 0o600)
    with replace_file(tmp_path / "new"):  # secret from the first moment on
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_write_protected_file_stays(tmp_path: Path) -> None:
    write_bytes(tmp_path / "best.pt", b"keep")
    os.chmod(tmp_path / "best.pt", 0o444)
    with pytest.raises(StorageError, match=r"`.*best\.pt`: is write-protected \(mode 0444\); make it writable or"):
        write_bytes(tmp_path / "best.pt", b"lost")
    assert (tmp_path / "best.pt").read_bytes() == b"keep"


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "model").write_bytes(b"old")
    os.symlink("real/model", tmp_path / "link")
    os.symlink("real/later", tmp_path / "dangling")
    write_bytes(tmp_path / "link", b"new")
    write_bytes(tmp_path / "dangling", b"made")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model").read_bytes() == b"new"
    assert (tmp_path / "real" / "later").read_bytes() == b"made"
    assert names(tmp_path) == ["dangling", "link", "real"]


def test_a_second_name_keeps_the_old_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "b").read_bytes() == b"old"


def test_what_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(StorageError, match="is a folder; name a file inside it"):
        write_bytes(tmp_path, b"")
    with pytest.raises(StorageError, match="is a FIFO, socket or device, and not replaced by a file"):
        write_bytes(tmp_path / "fifo", b"")
    with pytest.raises(StorageError, match="is a FIFO, socket or device"):
        write_bytes("/dev/null", b"")
    with pytest.raises(StorageError, match="looking at it failed: Too many levels of symbolic links"):
        write_bytes(tmp_path / "loop", b"")
    for name in ("", "a/", "..", "a\0b"):
        with pytest.raises(ArgumentError, match="is not a file's name"):
            write_bytes(name, b"")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="failed: Not a directory"):
        write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(StorageError, match=r"a\\x1b\[2K"):
        write_bytes(tmp_path / "file" / "a\x1b[2K", b"")


def test_missing_folders_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes("a/b/c", b"x")
    write_bytes("d", b"y")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"
    assert (tmp_path / "d").read_bytes() == b"y"


def test_long_names(tmp_path: Path) -> None:
    name = "é" * 127  # 254 bytes: no room for a prefix
    write_bytes(tmp_path / name, b"x")
    with pytest.raises(ZeroDivisionError):
        save_and_raise(tmp_path / name, ZeroDivisionError())
    assert names(tmp_path) == [name]
    with pytest.raises(StorageError, match="File name too long"):
        write_bytes(tmp_path / ("n" * 256), b"")


class NoCleaning(Syscalls):
    """A writer that dies: the first rename never happens, nor does a clean-up."""

    def rename(self, source: str, target: str) -> None:
        raise OSError(errno.EIO, "died")

    def unlink(self, path: str) -> None:
        raise OSError(errno.EIO, "died")

    def rmdir(self, path: str) -> None:
        raise OSError(errno.EIO, "died")


def test_the_next_save_sweeps_what_a_dead_one_left(tmp_path: Path) -> None:
    for name in ("model.pt", "n" * 255):
        for _ in range(2):
            with pytest.raises(StorageError, match="died"):
                write_bytes(tmp_path / name, b"lost", syscalls=NoCleaning())
        assert len(names(tmp_path)) == 2
        write_bytes(tmp_path / name, b"new")
        assert names(tmp_path) == [name]
        os.unlink(tmp_path / name)


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a") as first:
        with replace_file(tmp_path / "a") as second:
            second.write([WriteRequest(0, b"second")])
            assert sweep(str(tmp_path)) == []
            assert len(names(tmp_path)) == 2
        first.write([WriteRequest(0, b"first")])
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    class SweptAtOnce(Syscalls):
        made = 0

        def open_new(self, path: str, mode: int) -> int:
            fd = super().open_new(path, mode)
            self.made += 1
            if self.made == 1:
                os.unlink(path)
            return fd

    syscalls = SweptAtOnce()
    write_bytes(tmp_path / "a", b"x", syscalls=syscalls)
    assert syscalls.made == 2
    assert (tmp_path / "a").read_bytes() == b"x"


def test_only_our_leftovers_of_this_name_are_swept(tmp_path: Path) -> None:
    digits = "0123456789abcdef"
    mine = f".a.{digits}.partial"
    others = [
        f".a.pt.{digits}.partial",
        f".b.{digits}.partial",
        ".a.0123.partial",
        "a.partial",
        ".a.partial",
        ".a",
        f"{mine}~",
    ]
    for name in [mine, *others]:
        (tmp_path / name).touch()
    (tmp_path / ".c.partial").mkdir()
    assert sweep(str(tmp_path), name="a") == [mine]
    assert names(tmp_path) == sorted([*others, ".c.partial"])
    assert sorted(sweep(str(tmp_path))) == [f".a.pt.{digits}.partial", f".b.{digits}.partial"]
    assert sweep(str(tmp_path), folders=True) == [".c.partial"]
    assert sweep(str(tmp_path / "none")) == []


def test_sweeping_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    os.symlink("precious", tmp_path / ".a.0123456789abcdef.partial")
    (tmp_path / ".s.partial").mkdir()
    os.symlink("../folder", tmp_path / ".s.partial" / "link")
    assert sweep(str(tmp_path), folders=True) == [".s.partial"]
    assert (tmp_path / "precious").read_bytes() == b"x"
    assert (tmp_path / "folder" / "inside").exists()


def test_what_can_not_be_swept_stays(tmp_path: Path) -> None:
    (tmp_path / ".a.0123456789abcdef.partial").touch()
    (tmp_path / ".b.partial").mkdir()
    assert sweep(str(tmp_path), folders=True, syscalls=NoCleaning()) == []
    assert len(names(tmp_path)) == 2


def test_many_threads_save_the_same_file(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(letter: bytes) -> None:
        try:
            for _ in range(20):
                write_bytes(tmp_path / "shared", letter * 1000, durable=False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set((tmp_path / "shared").read_bytes())) == 1
    assert names(tmp_path) == ["shared"]


def test_descriptors_are_closed(tmp_path: Path, open_files: Callable[[], int]) -> None:
    write_bytes(tmp_path / "a", b"x")
    with pytest.raises(StorageError):
        write_bytes(tmp_path / "a", b"x", syscalls=NoCleaning())
    with pytest.raises(ValueError, match="mine"), StagedFolder(tmp_path, "s") as folder, folder.file("f"):
        raise ValueError("mine")
    assert open_files() == 0


def test_a_failed_last_fsync_says_what_is_in_place(tmp_path: Path) -> None:
    class NoFolderFsync(Syscalls):
        def fsync_folder(self, path: str) -> None:
            raise OSError(errno.EIO, "bad disk")

    with pytest.raises(StorageError, match="the new file is in place, but a power cut may undo it"):
        write_bytes(tmp_path / "a", b"x", syscalls=NoFolderFsync())
    assert (tmp_path / "a").read_bytes() == b"x"


def test_fsync_is_not_tried_again(tmp_path: Path) -> None:
    calls = []

    class NoFsync(Syscalls):
        def fsync(self, fd: int) -> None:
            calls.append(fd)
            raise OSError(errno.EIO, "bad disk")

    with pytest.raises(StorageError, match="fsync failed: bad disk; what was there before is unchanged"):
        write_bytes(tmp_path / "a", b"x", syscalls=NoFsync())
    assert len(calls) == 1
    assert names(tmp_path) == []


# ---- a folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_staging_a_folder(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "shard").write_bytes(b"frozen")
    with StagedFolder(tmp_path / "run", "step-1", durable=durable) as folder:
        with folder.file("model", shard=True) as staged:
            assert staged.path == str(tmp_path / "run" / "step-1" / "model")
            staged.write([WriteRequest(0, b"weights")])
        folder.write_bytes("manifest", b"{}")
        assert folder.share(tmp_path / "shard", "shard")
        assert names(tmp_path / "run") == [".step-1.partial"]
        folder.commit()
    assert names(tmp_path / "run") == ["step-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "step-1").iterdir()} == {
        "model": b"weights",
        "manifest": b"{}",
        "shard": b"frozen",
    }
    assert os.path.samefile(tmp_path / "shard", tmp_path / "run" / "step-1" / "shard")
    assert stat.S_IMODE((tmp_path / "run" / "step-1" / "model").stat().st_mode) == 0o440


def test_what_is_not_committed_is_abandoned(tmp_path: Path) -> None:
    with StagedFolder(tmp_path, "step-1") as folder:
        folder.write_bytes("manifest", b"{}")
    assert names(tmp_path) == []
    with pytest.raises(ArgumentError, match="is abandoned already"):
        folder.commit()
    folder.abandon()


def test_a_committed_folder_is_closed(tmp_path: Path) -> None:
    with StagedFolder(tmp_path, "step-1") as folder:
        folder.commit()
        with pytest.raises(ArgumentError, match="is committed already"):
            folder.write_bytes("late", b"")
        folder.abandon()
    assert names(tmp_path) == ["step-1"]


def test_a_stale_partial_folder_goes_first(tmp_path: Path) -> None:
    (tmp_path / ".step-1.partial" / "deep").mkdir(parents=True)
    (tmp_path / ".step-1.partial" / "deep" / "old").touch()
    with StagedFolder(tmp_path, "step-1") as folder:
        folder.commit()
    assert names(tmp_path / "step-1") == []
    os.symlink(tmp_path / "step-1", tmp_path / ".step-2.partial")
    with StagedFolder(tmp_path, "step-2") as folder:
        folder.write_bytes("a", b"")
        folder.commit()
    assert names(tmp_path / "step-1") == []


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    with pytest.raises(StorageError, match=r"`.*step-1`: exists already; nothing was written"):
        StagedFolder(tmp_path, "step-1")
    with StagedFolder(tmp_path, "step-2") as folder:
        (tmp_path / "step-2").mkdir()  # empty: a plain rename would replace it
        with pytest.raises(StorageError, match="exists already"):
            folder.commit()
    assert names(tmp_path) == ["step-1", "step-2"]


def test_a_failed_file_spoils_the_folder(tmp_path: Path) -> None:
    with StagedFolder(tmp_path, "step-1") as folder:
        with pytest.raises(ValueError, match="mine"), folder.file("model"):
            raise ValueError("mine")
        with pytest.raises(StorageError, match="a file of it failed; it can't be committed"):
            folder.commit()
    assert names(tmp_path) == []
    with StagedFolder(tmp_path, "step-1") as folder:
        folder.write_bytes("model", b"")
        with pytest.raises(StorageError, match="creating it failed: File exists"):
            folder.write_bytes("model", b"")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0"])
def test_plain_names_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="is not a plain file name"):
        StagedFolder(tmp_path, name)
    with StagedFolder(tmp_path, "step-1") as folder:
        with pytest.raises(ArgumentError, match="is not a plain file name"):
            folder.write_bytes(name, b"")
        with pytest.raises(ArgumentError, match="is not a plain file name"):
            folder.share(tmp_path / "a", name)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_do_not_work_it_copies(tmp_path: Path, code: int) -> None:
    class NoLinks(Syscalls):
        def link(self, source: str, target: str) -> None:
            raise OSError(code, os.strerror(code))

    (tmp_path / "shard").write_bytes(b"frozen")
    os.chmod(tmp_path / "shard", 0o440)
    with StagedFolder(tmp_path, "step-1", syscalls=NoLinks()) as folder:
        assert not folder.share(tmp_path / "shard", "copy")
        folder.commit()
    copy = tmp_path / "step-1" / "copy"
    assert copy.read_bytes() == b"frozen"
    assert not os.path.samefile(copy, tmp_path / "shard")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o440


def test_linking_what_is_not_there(tmp_path: Path) -> None:
    folder = StagedFolder(tmp_path, "step-1")
    with pytest.raises(StorageError, match=r"linking `.*none` there failed: No such file or directory"):
        folder.share(tmp_path / "none", "shard")
    folder.abandon()
    assert names(tmp_path) == []


# ---- removing and moving --------------------------------------------------------------------------------------------


def test_removing_a_folder(tmp_path: Path) -> None:
    for name in ("step-1", ".step-1.deleting"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").touch()
    (tmp_path / "kept").mkdir()
    os.symlink("../kept", tmp_path / "step-1" / "link")
    remove_folder(tmp_path / "step-1")
    assert names(tmp_path) == ["kept"]
    with pytest.raises(NotFound, match="no such folder"):
        remove_folder(tmp_path / "step-1")


def test_a_removal_that_fails_says_where_it_stands(tmp_path: Path) -> None:
    class NoUnlink(Syscalls):
        def unlink(self, path: str) -> None:
            raise OSError(errno.EACCES, "no")

    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "file").touch()
    with pytest.raises(StorageError, match="renaming it before removal failed: died; nothing was removed"):
        remove_folder(tmp_path / "step-1", syscalls=NoCleaning())
    assert names(tmp_path) == ["step-1"]
    with pytest.raises(StorageError, match=r"removing failed: no; what is left is named \.step-1\.deleting"):
        remove_folder(tmp_path / "step-1", syscalls=NoUnlink())
    assert names(tmp_path) == [".step-1.deleting"]
    assert sweep(str(tmp_path), folders=True) == [".step-1.deleting"]


def test_removing_a_file(tmp_path: Path) -> None:
    (tmp_path / "pin").touch()
    remove_file(tmp_path / "pin")
    with pytest.raises(NotFound, match="no such file"):
        remove_file(tmp_path / "pin")
    with pytest.raises(StorageError, match=r"removing failed: .*; it is still there"):
        remove_file(tmp_path)


def test_moving(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "file").touch()
    move_folder(tmp_path / "step-1", tmp_path / "quarantine" / "step-1")
    assert names(tmp_path / "quarantine" / "step-1") == ["file"]
    with pytest.raises(NotFound, match="no such folder"):
        move_folder(tmp_path / "step-1", tmp_path / "x")
    (tmp_path / "step-1").mkdir()
    with pytest.raises(StorageError, match=r"exists already; `.*step-1` stays"):
        move_folder(tmp_path / "quarantine" / "step-1", tmp_path / "step-1")
    with pytest.raises(StorageError, match=r"moving it to `.*x` failed: died; it stays where it was"):
        move_folder(tmp_path / "step-1", tmp_path / "x", syscalls=NoCleaning())


def test_making_folders(tmp_path: Path) -> None:
    make_folders(tmp_path / "a" / "b")
    make_folders(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="creating the folder failed: File exists"):
        make_folders(tmp_path / "file")

    class TooLate(Syscalls):
        def mkdir(self, path: str) -> None:
            super().mkdir(path)
            super().mkdir(path)  # another process was first

    make_folders(tmp_path / "c", syscalls=TooLate())
    assert (tmp_path / "c").is_dir()
