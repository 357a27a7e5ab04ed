from __future__ import annotations

import errno
import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, CorruptFile, NotFound, StorageError
from holdfast.storage.places import is_folder, is_there
from holdfast.storage.source import (
    ByteSource,
    FileSource,
    MemorySource,
    StreamSource,
    SubSource,
    byte_view,
    open_source,
    remainder,
    shown,
)

DATA = bytes(range(256)) * 4


@pytest.fixture(params=["file", "memory", "stream", "part", "part of a part"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ByteSource:
    """The same 1024 bytes behind every kind of source."""
    path = tmp_path / "data"
    path.write_bytes(b"head" + DATA + b"tail")
    if request.param == "file":
        path.write_bytes(DATA)
        return open_source(path)
    if request.param == "memory":
        return MemorySource(DATA)
    if request.param == "stream":
        stream = io.BytesIO(b"head" + DATA)
        stream.seek(4)
        return StreamSource(stream)
    if request.param == "part":
        return SubSource(open_source(path), 4, 1024)
    return SubSource(SubSource(open_source(path), 2, 1028), 2, 1024)


def test_reads(source: ByteSource) -> None:
    assert source.size == 1024
    assert source.read(0, 1024) == DATA
    assert source.read(1000, 24) == DATA[1000:]
    assert source.read(1024, 0) == b""
    buffer = bytearray(10)
    source.read_into(300, memoryview(buffer))
    assert buffer == DATA[300:310]
    source.close()
    source.close()


@pytest.mark.parametrize(("offset", "length"), [(0, 1025), (1024, 1), (-1, 1), (5, -1), (0, 10**18), (10**18, 1)])
def test_reads_outside_are_refused(source: ByteSource, offset: int, length: int) -> None:
    with pytest.raises(CorruptFile, match=r"bytes are wanted, the file ends at byte 1,024") as caught:
        source.read(offset, length)
    assert caught.value.offset == offset
    assert caught.value.file == source.name
    if 0 < length < 10**6:
        with pytest.raises(CorruptFile, match="bytes are wanted"):
            source.read_into(offset, memoryview(bytearray(length)))


def test_a_part_that_reaches_past_its_source() -> None:
    with pytest.raises(CorruptFile, match="at byte 1,000: 25 bytes are wanted, the file ends at byte 1,024"):
        SubSource(MemorySource(DATA), 1000, 25)


def test_a_file_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    source = open_source(path)
    os.truncate(path, 100)
    assert source.read(0, 100) == DATA[:100]
    with pytest.raises(CorruptFile, match="at byte 100: 50 bytes are wanted, the file ends at byte 100"):
        source.read(50, 100)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"`.*none`: no such file"):
        open_source(tmp_path / "none")


def test_what_is_not_a_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        listening.bind("socket")
    with pytest.raises(StorageError, match="is a folder, a regular file is wanted"):
        open_source(tmp_path)
    with pytest.raises(StorageError, match="is a FIFO, socket or device, a regular file is wanted"):
        open_source(tmp_path / "fifo")  # and does not wait for a writer
    with pytest.raises(StorageError, match="can't be opened"):
        open_source(tmp_path / "socket")
    with pytest.raises(StorageError, match="is a FIFO, socket or device"):
        open_source("/dev/zero")
    with pytest.raises(ArgumentError, match=r"`a\\x00b`: not a usable path"):
        open_source("a\0b")


def test_a_descriptor_is_borrowed(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    fd = os.open(tmp_path / "data", os.O_RDONLY)
    try:
        source = FileSource(fd)
        assert source.name == f"descriptor {fd}"
        source.close()
        assert os.fstat(fd).st_size == 1024
    finally:
        os.close(fd)


def test_descriptors_are_given_back(tmp_path: Path, open_files: Callable[[], int]) -> None:
    (tmp_path / "data").write_bytes(DATA)
    sources = [open_source(tmp_path / "data") for _ in range(10)]
    assert open_files() == 10
    sources[0].close()
    assert open_files() == 9
    with pytest.raises(ArgumentError, match="read after it was closed"):
        sources[0].read(0, 1)
    del sources
    for _ in range(10):
        with pytest.raises(StorageError):
            open_source(tmp_path)
    assert open_files() == 0


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    fd = os.open(tmp_path / "data", os.O_WRONLY)
    source = FileSource(fd, name="model.pt")
    os.close(fd)
    with pytest.raises(StorageError, match=r"`model\.pt`: can't be read at byte 7: Bad file descriptor"):
        source.read(7, 1)


def test_memory_is_not_copied() -> None:
    memory = bytearray(DATA)
    source = MemorySource(memory)
    memory[0] = 99
    assert source.read(0, 1) == b"c"
    assert source.view.obj is memory


def test_memory_that_is_not_contiguous() -> None:
    with pytest.raises(ArgumentError, match=r"memory with strides \(2,\) is not contiguous; copy it first"):
        MemorySource(memoryview(DATA)[::2])


def test_memory_of_any_shape() -> None:
    floats = memoryview(bytearray(48)).cast("d", (2, 3))
    assert byte_view(floats).nbytes == 48
    assert byte_view(memoryview(bytearray()).cast("d")).nbytes == 0
    source = MemorySource(floats)
    source.read_into(8, memoryview(bytearray(16)).cast("d"))
    assert source.size == 48


class OnlyRead:
    """A stream without readinto that gives few bytes at a time, as archives' members do."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)
        self.seek = self._inner.seek
        self.tell = self._inner.tell

    def read(self, count: int) -> bytes:
        return self._inner.read(min(count, 100))


def test_a_stream_that_gives_little_at_a_time() -> None:
    assert StreamSource(OnlyRead(DATA)).read(3, 1000) == DATA[3:1003]


def test_a_stream_that_is_cut_while_it_is_open() -> None:
    stream = io.BytesIO(DATA)
    source = StreamSource(stream, name="upload")
    stream.truncate(100)
    with pytest.raises(CorruptFile, match="`upload`: at byte 100: 50 bytes are wanted, the file ends at byte 100"):
        source.read(50, 100)


def test_a_stream_that_fails() -> None:
    stream = io.BytesIO(DATA)
    source = StreamSource(stream)

    def fail(_: object) -> int:
        raise OSError("cable pulled")

    source._stream = type("Broken", (), {"seek": stream.seek, "readinto": staticmethod(fail)})()
    with pytest.raises(StorageError, match="`stream`: can't be read at byte 5: cable pulled"):
        source.read(5, 1)


def test_streams_that_can_not_be_used() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, pytest.raises(ArgumentError, match="needs an open file object that can seek"):
        StreamSource(pipe)
    os.close(writing)
    with pytest.raises(ArgumentError, match="is opened as text; open it with mode 'rb'"):
        StreamSource(io.StringIO("text"))
    with pytest.raises(ArgumentError, match="needs an open file object"):
        StreamSource(3)
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(ArgumentError, match="closed file"):
        StreamSource(closed)


def test_names_are_escaped() -> None:
    assert shown("modèle 7.pt") == "modèle 7.pt"
    assert shown("a\x1b[2Kb\n\u202ec\udcff") == "a\\x1b[2Kb\\n\\u202ec\\udcff"


def test_remainder() -> None:
    views = [memoryview(b"abc"), memoryview(b""), memoryview(b"defg")]
    assert [bytes(view) for view in remainder(views, 0)] == [b"abc", b"", b"defg"]
    assert [bytes(view) for view in remainder(views, 2)] == [b"c", b"", b"defg"]
    assert [bytes(view) for view in remainder(views, 4)] == [b"efg"]
    assert remainder(views, 7) == []


def test_a_file_that_the_machine_can_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(DATA)

    def fail(fd: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail)
        with pytest.raises(StorageError, match="data`: can't be looked at: Stale file handle"):
            FileSource(tmp_path / "data")


def test_a_close_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(DATA)
    source = FileSource(tmp_path / "data")
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", fail)
        source.close()
    with pytest.raises(ArgumentError, match="read after it was closed"):
        source.read(0, 1)


def test_what_the_system_does_not_say_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert is_folder(tmp_path)
    assert is_there(tmp_path / "link")
    assert not is_folder(tmp_path / "link")
    for absent in (tmp_path / "gone", tmp_path / "gone" / "more", tmp_path / ("x" * 300), "nul\0"):
        assert not is_there(absent)
        assert not is_folder(absent)

    def fails(*_: object, **__: object) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "stat", fails)
    for ask in (is_there, is_folder):
        with pytest.raises(StorageError, match="`data`: can't be looked at: Input/output error"):
            ask("data")
