from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import ArgumentError, CorruptFile
from holdfast.spec import CHUNK
from holdfast.storage.digest import chunk_digests
from holdfast.storage.requests import (
    Check,
    Damage,
    ReadRequest,
    WriteRequest,
    Written,
    read_requests,
    verify_ranges,
    write_requests,
)
from holdfast.storage.source import ByteSource, FileSource, MemorySource, StreamSource, SubSource, open_source
from holdfast.storage.syscalls import Syscalls

NOISE = random.Random(7).randbytes(3 * CHUNK + 12345)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("kind", ["bytes", "memory", "file", "stream", "part"])
def test_a_large_write_in_pieces(tmp_path: Path, fd: int, kind: str, workers: int) -> None:
    (tmp_path / "in").write_bytes(b"12345" + NOISE)
    source: bytes | ByteSource = NOISE
    if kind == "memory":
        source = MemorySource(NOISE)
    elif kind == "file":
        source = SubSource(open_source(tmp_path / "in"), 5, len(NOISE))
    elif kind == "stream":
        stream = (tmp_path / "in").open("rb")
        stream.seek(5)
        source = StreamSource(stream)
    elif kind == "part":
        source = SubSource(SubSource(MemorySource(b"12345" + NOISE), 2, len(NOISE) + 3), 3, len(NOISE))
    requests = [WriteRequest(0, b"ab"), WriteRequest(2, source), WriteRequest(len(NOISE) + 2, source, CHUNK, 100)]
    first, whole, part = write_requests(fd, requests, crc=True, workers=workers)
    assert content(fd) == b"ab" + NOISE + NOISE[CHUNK : CHUNK + 100]
    assert first == Written(chunk_digests(b"ab"), zlib.crc32(b"ab"))
    assert whole == Written(chunk_digests(NOISE), zlib.crc32(NOISE))
    assert part == Written(chunk_digests(NOISE[CHUNK : CHUNK + 100]), zlib.crc32(NOISE[CHUNK : CHUNK + 100]))
    if kind == "stream":
        stream.close()


def test_what_is_not_asked_for_is_not_computed(fd: int) -> None:
    assert write_requests(fd, [WriteRequest(0, b"ab")], digest=False) == [Written((), None)]
    assert write_requests(fd, [WriteRequest(0, b""), WriteRequest(0, b"c")], crc=True)[0] == Written((), 0)
    assert write_requests(fd, []) == []


class Counting(Syscalls):
    def __init__(self) -> None:
        self.writes = 0

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        self.writes += 1
        return super().pwritev(fd, buffers, offset)


def test_small_neighbours_share_a_call(fd: int) -> None:
    syscalls = Counting()
    requests = [WriteRequest(3 * at, b"%03d" % (at % 1000)) for at in range(10_000)]
    written = write_requests(fd, requests, syscalls=syscalls)
    assert content(fd) == b"".join(b"%03d" % (at % 1000) for at in range(10_000))
    assert written[1234].chunks == chunk_digests(b"234")
    assert syscalls.writes == 10  # 1024 buffers each


def test_gaps_stay_untouched(fd: int) -> None:
    os.pwrite(fd, b"." * 20, 0)
    write_requests(fd, [WriteRequest(1, b"ab"), WriteRequest(5, b"cd"), WriteRequest(3, b"e")])
    assert content(fd) == b".abe.cd............."


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=40), st.booleans()), max_size=30), st.booleans())
def test_any_layout_comes_back(tmp_path: Path, layout: list[tuple[int, bytes, bool]], shuffle: bool) -> None:
    expected = bytearray()
    requests = []
    for gap, data, from_source in layout:
        expected += bytes(gap)
        requests.append(WriteRequest(len(expected), StreamSource(io.BytesIO(data)) if from_source else data))
        expected += data
    if shuffle:
        requests.reverse()
    path = tmp_path / "layout"
    with path.open("wb") as file:
        os.truncate(file.fileno(), len(expected))
        written = write_requests(file.fileno(), requests, crc=True)
    assert path.read_bytes() == expected
    into = [bytearray(request.size) for request in requests]
    source = open_source(path)
    reads = [
        ReadRequest(source, request.offset, memoryview(buffer), done.chunks, done.crc32)
        for request, buffer, done in zip(requests, into, written, strict=True)
    ]
    assert read_requests(reads) == []
    for request, buffer in zip(requests, into, strict=True):
        assert buffer == expected[request.offset : request.offset + request.size]


def test_bad_write_requests(fd: int, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    with pytest.raises(ArgumentError, match="a write at byte -1: offsets start at 0"):
        write_requests(fd, [WriteRequest(-1, b"a")])
    with pytest.raises(ArgumentError, match="3 bytes from byte 1 of memory that has 3"):
        write_requests(fd, [WriteRequest(0, b"abc", 1, 3)])
    with pytest.raises(CorruptFile, match="at byte 1: 3 bytes are wanted, the file ends at byte 3"):
        write_requests(fd, [WriteRequest(0, open_source(tmp_path / "in"), 1, 3)])
    assert content(fd) == b""


def test_a_source_that_is_cut_while_it_is_copied(fd: int, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(NOISE)
    source = open_source(tmp_path / "in")
    os.truncate(tmp_path / "in", CHUNK + 5)
    with pytest.raises(CorruptFile, match="the file ends at byte 8,388,613"):
        write_requests(fd, [WriteRequest(0, source)])


# ---- reading and verifying -------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> FileSource:
    (tmp_path / "in").write_bytes(NOISE)
    return open_source(tmp_path / "in")


def known(offset: int, length: int, *, crc: bool = False) -> dict[str, object]:
    data = NOISE[offset : offset + length]
    return {"chunks": chunk_digests(data), "crc32": zlib.crc32(data) if crc else None}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_reads_go_where_they_are_wanted(stored: FileSource, workers: int) -> None:
    memory = memoryview(bytearray(len(NOISE)))
    cuts = [0, 3, 10, 11, CHUNK - 1, 2 * CHUNK + 77, len(NOISE)]
    requests = [
        ReadRequest(stored, start, memory[start:end], **known(start, end - start, crc=True))  # type: ignore[arg-type]
        for start, end in itertools.pairwise(cuts)
    ]
    assert read_requests(requests, workers=workers) == []
    assert memory == NOISE


def test_memory_of_any_dtype_is_filled(stored: FileSource) -> None:
    memory = bytearray(48)
    read_requests([ReadRequest(stored, 8, memoryview(memory).cast("d", (2, 3)))])
    assert memory == NOISE[8:56]


def test_reads_report_damage_and_read_on(stored: FileSource) -> None:
    memory = memoryview(bytearray(30))
    right, wrong = chunk_digests(NOISE[:10])[0], "0" * 32
    requests = [
        ReadRequest(stored, 0, memory[:10], chunks=(right,), name="a"),
        ReadRequest(stored, 10, memory[10:20], chunks=(wrong,), name="b"),
        ReadRequest(stored, 20, memory[20:], chunks=(), name="c"),
    ]
    found = chunk_digests(NOISE[10:20])[0]
    assert read_requests(requests) == [
        Damage("b", stored.name, 10, 10, wrong, found),
        Damage("c", stored.name, 20, 10, "1 digests of 8 MiB each", "0 digests are recorded"),
    ]
    assert memory == NOISE[:30]


def test_reads_past_the_end_are_refused_before_anything_is_read(stored: FileSource) -> None:
    memory = memoryview(bytearray(20))
    requests = [ReadRequest(stored, 0, memory[:10]), ReadRequest(stored, len(NOISE) - 5, memory[10:])]
    with pytest.raises(CorruptFile, match=r"10 bytes are wanted, the file ends at byte"):
        read_requests(requests)
    assert memory == bytes(20)


@pytest.mark.parametrize("size", [100, 5 * 1024 * 1024])
def test_reads_of_a_file_that_was_cut(stored: FileSource, tmp_path: Path, size: int) -> None:
    os.truncate(tmp_path / "in", 50)
    with pytest.raises(CorruptFile, match="the file ends at byte 50"):
        read_requests([ReadRequest(stored, 0, memoryview(bytearray(size)))])


class _Reads(MemorySource):
    """Memory that remembers what was read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.seen: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.seen.append((offset, buffer.nbytes))
        super().read_into(offset, buffer)


def _read_of(source: ByteSource, offset: int, length: int, name: str = "") -> tuple[ReadRequest, bytearray]:
    into, data = bytearray(length), NOISE[offset : offset + length]
    return ReadRequest(source, offset, memoryview(into), chunk_digests(data), zlib.crc32(data), name), into


def test_small_reads_that_lie_close_together_share_a_call() -> None:
    source = _Reads(NOISE)
    near, far = 59_800 + 4096, 59_900 + 2 * 4096 + 1
    places = [*range(0, 60_000, 300), near, far]
    reads = [_read_of(source, place, 100) for place in places]
    assert read_requests([request for request, _ in reads], workers=1) == []
    assert [into for _, into in reads] == [NOISE[place : place + 100] for place in places]
    assert source.seen == [(0, near + 100), (far, 100)]


def test_shared_reads_stay_inside_their_block_and_go_backwards_too() -> None:
    source = _Reads(NOISE)
    places = [*range(0, 3 << 20, 50_000), 7, 7]
    reads = [_read_of(source, place, 50_000) for place in places]
    assert read_requests([request for request, _ in reads], workers=1) == []
    assert [into for _, into in reads] == [NOISE[place : place + 50_000] for place in places]
    assert len(source.seen) == -(-len(places[:-2]) // 20) + 2
    assert max(size for _, size in source.seen) <= 1 << 20


def test_damage_among_reads_that_share_a_call_has_its_name() -> None:
    reads = [_read_of(MemorySource(NOISE), place, 100, f"t{place}") for place in range(0, 3000, 300)]
    reads[3][0].chunks, reads[5][0].crc32 = ("0" * 32,), 1
    damage = read_requests([request for request, _ in reads])
    assert [(one.name, one.offset, one.expected) for one in damage] == [
        ("t900", 900, "0" * 32),
        ("t1500", 1500, "crc32 00000001"),
    ]


def test_verified_bytes(stored: FileSource) -> None:
    checks = [
        Check(stored, 0, len(NOISE), **known(0, len(NOISE), crc=True)),  # type: ignore[arg-type]
        Check(stored, 5, 10, **known(5, 10)),  # type: ignore[arg-type]
        Check(stored, 15, 10, crc32=zlib.crc32(NOISE[15:25])),
        Check(stored, 7, 0, chunks=(), crc32=0),
        Check(stored, 0, len(NOISE)),
    ]
    assert verify_ranges(checks) == []


@pytest.mark.parametrize("algorithm", ["", "xxh3-128:", "sha256:"])
def test_digests_with_and_without_a_prefix(stored: FileSource, algorithm: str) -> None:
    right = hashlib.sha256(NOISE[:9]).hexdigest() if algorithm == "sha256:" else chunk_digests(NOISE[:9])[0]
    assert verify_ranges([Check(stored, 0, 9, (algorithm + right,))]) == []
    [damage] = verify_ranges([Check(stored, 1, 9, (algorithm + right,))])
    assert damage.expected == algorithm + right
    assert damage.found.startswith(algorithm)


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 5, len(NOISE) - 1])
def test_one_flipped_bit_is_located(tmp_path: Path, at: int) -> None:
    bad = bytearray(NOISE)
    bad[at] ^= 16
    (tmp_path / "in").write_bytes(bad)
    source = open_source(tmp_path / "in")
    digests, crc = chunk_digests(NOISE), zlib.crc32(NOISE)
    chunk = at // CHUNK
    by_crc, by_digest = sorted(
        verify_ranges([Check(source, 0, len(NOISE), digests, crc, "fc.weight")]), key=lambda damage: -damage.length
    )
    length = min(CHUNK, len(NOISE) - chunk * CHUNK)
    found = chunk_digests(bad)[chunk]
    assert by_digest == Damage("fc.weight", source.name, chunk * CHUNK, length, digests[chunk], found)
    assert by_crc == Damage("fc.weight", source.name, 0, len(NOISE), f"crc32 {crc:08x}", f"crc32 {zlib.crc32(bad):08x}")


def test_small_damage_has_its_own_name(stored: FileSource) -> None:
    checks = [Check(stored, at, 10, **known(at, 10), name=str(at)) for at in range(0, 1000, 10)]  # type: ignore[arg-type]
    checks[37].chunks = ("f" * 32,)
    assert [damage.name for damage in verify_ranges(checks)] == ["370"]


def test_lies_about_the_place_are_damage(stored: FileSource) -> None:
    size = f"the file ends at byte {len(NOISE):,}"
    cases = [(0, 10**18), (10**18, 1), (-1, 5), (3, -5), (len(NOISE), 1)]
    found = verify_ranges([Check(stored, offset, length, ("0" * 32,), 5) for offset, length in cases])
    assert [(damage.offset, damage.length, damage.found) for damage in found] == [(*case, size) for case in cases]
    assert found[0].expected == "1,000,000,000,000,000,000 bytes"


def test_lies_about_the_digests_are_damage(stored: FileSource) -> None:
    found = verify_ranges([Check(stored, 0, CHUNK + 1, ("0" * 32,)), Check(stored, 0, 9, ("md5:00",))])
    assert [(damage.expected, damage.found) for damage in found] == [
        ("2 digests of 8 MiB each", "1 digests are recorded"),
        ("a digest of xxh3-128 or sha256", "digest 'md5:00': the algorithm is neither xxh3-128 nor sha256"),
    ]


def test_a_file_that_is_cut_while_it_is_verified(stored: FileSource, tmp_path: Path) -> None:
    checks = [
        Check(stored, 0, 10, **known(0, 10), name="whole"),  # type: ignore[arg-type]
        Check(stored, 10, 10, **known(10, 10), name="cut"),  # type: ignore[arg-type]
        Check(stored, 20, CHUNK + 5, **known(20, CHUNK + 5), name="gone"),  # type: ignore[arg-type]
    ]
    os.truncate(tmp_path / "in", 15)
    found = verify_ranges(checks)
    assert [(damage.name, damage.offset, damage.length) for damage in found] == [
        ("cut", 10, 10),
        ("gone", 20, CHUNK),
        ("gone", 20 + CHUNK, 5),
    ]
    assert {damage.found for damage in found} == {"the file was cut while it was read"}


def test_verification_needs_little_memory(stored: FileSource) -> None:
    checks = [Check(stored, 0, len(NOISE), **known(0, len(NOISE)))]  # type: ignore[arg-type]
    verify_ranges(checks)
    tracemalloc.start()
    verify_ranges(checks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
