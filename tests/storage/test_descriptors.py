"""Files that are read while no more than so many of them are open."""

from __future__ import annotations

import errno
import os
import resource
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, StorageError
from holdfast.storage import descriptors
from holdfast.storage.source import FileSource


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """At most eight files are open."""
    monkeypatch.setattr(descriptors, "MOST", 8)
    monkeypatch.setattr(descriptors._POOL, "_open", type(descriptors._POOL._open)())
    return 8


def sources(folder: Path, count: int) -> list[FileSource]:
    for number in range(count):
        (folder / str(number)).write_bytes(bytes([number]) * 100)
    return [FileSource(folder / str(number)) for number in range(count)]


def test_many_files_are_read_with_few_descriptors(tmp_path: Path, few: int, open_files: Callable[[], int]) -> None:
    opened = sources(tmp_path, 50)
    for _ in range(2):
        for number, source in enumerate(opened):
            assert source.read(10, 5) == bytes([number]) * 5
            assert open_files() <= few
    for source in opened:
        source.close()
    assert open_files() == 0
    with pytest.raises(ArgumentError, match="read after it was closed"):
        opened[3].read(0, 1)


def test_few_files_stay_open_and_are_read_to_their_end(tmp_path: Path, few: int) -> None:
    opened = sources(tmp_path, few)
    for number in range(few):
        (tmp_path / str(number)).unlink()
    assert [source.read(99, 1)[0] for source in opened] == list(range(few))


@pytest.mark.usefixtures("few")
def test_what_was_used_longest_ago_is_closed(tmp_path: Path) -> None:
    opened = sources(tmp_path, 8)
    opened[0].read(0, 1)
    (tmp_path / "more").write_bytes(b"1")
    more = FileSource(tmp_path / "more")
    for number in range(8):
        (tmp_path / str(number)).unlink()
    assert opened[0].read(0, 1) == b"\0"
    with pytest.raises(StorageError, match="1`: can't be read at byte 7: No such file"):
        opened[1].read(7, 1)
    more.close()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("how", ["replaced", "written"])
def test_another_file_of_the_name_is_never_read_for_the_first_one(tmp_path: Path, how: str) -> None:
    opened = sources(tmp_path, 20)
    if how == "replaced":
        (tmp_path / "new").write_bytes(b"x" * 100)
        (tmp_path / "new").rename(tmp_path / "2")
    else:
        (tmp_path / "2").write_bytes(b"x" * 101)
    with pytest.raises(StorageError, match="2`: was replaced or written to after it was opened"):
        opened[2].read(0, 100)


@pytest.mark.usefixtures("few")
def test_a_path_means_the_same_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources(tmp_path, 20)
    monkeypatch.chdir(tmp_path)
    opened = [FileSource(str(number)) for number in range(20)]
    monkeypatch.chdir("/")
    assert [source.read(0, 1)[0] for source in opened] == list(range(20))


@pytest.mark.usefixtures("few")
def test_threads_never_read_a_file_that_another_one_closed(tmp_path: Path) -> None:
    opened, wrong = sources(tmp_path, 60), []

    def read(start: int) -> None:
        for turn in range(600):
            number = (start * 7 + turn * 11) % 60
            if opened[number].read(turn % 90, 10) != bytes([number]) * 10:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_that_is_closed_while_it_is_read_is_closed_behind_that(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    one = descriptors.Descriptor(tmp_path / "a", "a")
    with one as fd:
        one.close()
        assert os.pread(fd, 3, 0) == b"abc"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.fixture
def limit() -> Iterator[int]:
    """Room for twenty descriptors more than there are."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, before[1]))
    yield highest + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def take_all(taken: list[int]) -> None:
    while True:
        taken.append(os.open("/", os.O_RDONLY))


@pytest.mark.usefixtures("limit")
def test_where_others_took_all_descriptors_those_of_files_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "_limit", lambda: 1000)
    opened, taken = sources(tmp_path, 8), list[int]()
    with pytest.raises(OSError, match="Too many open files"):
        take_all(taken)
    (more,) = [FileSource(tmp_path / "3")]
    assert more.read(0, 1) == b"\3"
    assert opened[5].read(0, 1) == b"\5"
    for one in [*opened, more]:
        one.close()
    (tmp_path / "last").write_bytes(b"")
    taken += [os.open("/", os.O_RDONLY) for _ in range(8)]
    with pytest.raises(StorageError, match="last`: can't be opened: Too many open files"):
        FileSource(tmp_path / "last")
    for fd in taken:
        os.close(fd)


def test_a_file_that_could_not_be_told_from_another_stays_open(
    tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sources(tmp_path, few)

    def fail(fd: int) -> tuple[int, ...]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(descriptors, "_identity", fail)
    (tmp_path / "more").write_bytes(b"1")
    assert FileSource(tmp_path / "more").read(0, 1) == b"1"
    (tmp_path / "0").unlink()
    assert opened[0].read(0, 1) == b"\0"


def test_a_fork_amid_a_read_of_another_thread_reads_on(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    source = FileSource(tmp_path / "a")
    inside, out = threading.Event(), threading.Event()

    def hold() -> None:
        with descriptors._POOL.guard:
            inside.set()
            out.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, which is the point
        child = os.fork()
    if not child:
        os._exit(0 if source.read(0, 3) == b"abc" else 1)
    out.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
