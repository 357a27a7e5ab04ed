"""Writing past the page cache gives the same bytes and digests as writing through it, wherever the borders fall."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.errors import StorageError
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.requests import WriteRequest, write_requests
from holdfast.storage.syscalls import LOCAL, Syscalls
from holdfast.storage.workers import BLOCK, PAGE


class Counting(Syscalls):
    """Counts the bytes that went to each descriptor."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        count = super().pwritev(fd, buffers, offset)
        self.bytes[fd] = self.bytes.get(fd, 0) + count
        return count


class Read:
    """Bytes that are read, not looked at: no view of them is given away."""

    name = "read"

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + buffer.nbytes]

    def close(self) -> None: ...


def can_write_directly(folder: Path) -> bool:
    path = folder / "probe"
    path.write_bytes(b"")
    try:
        os.close(LOCAL.open_direct(str(path)))
    except OSError:
        return False
    return True


def requests_of(seed: int) -> tuple[list[WriteRequest], bytes]:
    """Pieces of all sizes, from memory and from sources, in some places with gaps between them; and what they make."""
    chance = random.Random(seed)
    sizes = [chance.choice([1, 7, 100, PAGE, PAGE - 1, PAGE + 1, BLOCK, 3 * BLOCK + 17, 9 << 20]) for _ in range(14)]
    at = chance.choice([0, 1, 64, PAGE, 5000])
    requests, whole = [], bytearray(at)
    for size in sizes:
        data = chance.randbytes(size)
        whole += data
        requests.append(WriteRequest(at, Read(data) if chance.random() < 0.5 else data))
        gap = chance.choice([0, 0, 0, 3, PAGE])
        whole += bytes(gap)
        at += size + gap
    return requests, bytes(whole).rstrip(b"\0")


@pytest.mark.parametrize("seed", range(6))
def test_the_same_bytes_and_digests(seed: int, tmp_path: Path) -> None:
    if not can_write_directly(tmp_path):
        pytest.skip("this disk has no O_DIRECT")
    requests, whole = requests_of(seed)
    results = []
    for direct in (False, True):
        path = tmp_path / f"file-{direct}"
        fd = LOCAL.open_new(str(path), 0o600)
        second = LOCAL.open_direct(str(path)) if direct else None
        calls = Counting()
        results.append(write_requests(fd, requests, crc=True, direct=second, syscalls=calls))
        os.close(fd)
        if second is not None:
            os.close(second)
            assert calls.bytes[second] > 0.5 * len(whole)
            assert calls.bytes[second] % PAGE == 0
            assert sum(calls.bytes.values()) == sum(request.size for request in requests)
        assert path.read_bytes().rstrip(b"\0") == whole
    assert results[0] == results[1]


class Odd(Counting):
    """A disk that takes no direct write, or only a part of each."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.direct: set[int] = set()

    def open_direct(self, path: str) -> int:
        if self.fault == "cannot open":
            raise OSError(errno.EINVAL, "no such thing here")
        fd = super().open_direct(path)
        self.direct.add(fd)
        self.path = path
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        if fd in self.direct:
            if self.fault == "wants other borders":
                raise OSError(errno.EINVAL, "Invalid argument")
            if self.fault == "fails":
                raise OSError(errno.EIO, "Input/output error")
            if self.fault == "short" and memoryview(buffers[0]).nbytes > PAGE:
                buffers = [memoryview(buffers[0])[:PAGE]]
            if self.fault == "odd" and memoryview(buffers[0]).nbytes > PAGE:
                with open(self.path, "r+b") as plain:
                    return os.pwrite(plain.fileno(), memoryview(buffers[0])[:1000], offset)
        return super().pwritev(fd, buffers, offset)


@pytest.mark.parametrize("fault", ["cannot open", "wants other borders", "short", "odd"])
def test_a_disk_that_does_it_otherwise_is_written_all_the_same(fault: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(9 << 20)
    with StagedFolder(tmp_path, "step", syscalls=Odd(fault)) as folder:
        with folder.file("model", shard=True) as staged:
            staged.allocate(len(data))
            staged.write([WriteRequest(0, data[:100]), WriteRequest(100, data[100:])])
        folder.commit()
    assert (tmp_path / "step" / "model").read_bytes() == data


def test_a_failing_direct_write_fails_the_save_and_closes_everything(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    folder = StagedFolder(tmp_path, "step", syscalls=Odd("fails"))
    with pytest.raises(StorageError, match="Input/output error"), folder.file("model", shard=True) as staged:
        staged.write([WriteRequest(0, bytes(9 << 20))])
    folder.abandon()
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
