from __future__ import annotations

import hashlib
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptFile
from holdfast.spec import CHUNK
from holdfast.storage.digest import ALGORITHM, check_digest, chunk_digests, crc32, crc32_combine, digest_bytes


def test_the_algorithm_is_the_published_one() -> None:
    """The XXH3-128 of no bytes and the CRC-32 check value, from their specifications."""
    assert digest_bytes(b"") == "xxh3-128:99aa06d3014798d86001c324468d497f"
    assert crc32(b"123456789") == 0xCBF43926


def test_one_digest_for_each_chunk() -> None:
    data = bytes(CHUNK) + b"x"
    digests = chunk_digests(data)
    assert digests == (digest_bytes(bytes(CHUNK)).split(":")[1], digest_bytes(b"x").split(":")[1])
    assert chunk_digests(memoryview(data).cast("B")[:CHUNK]) == digests[:1]
    assert chunk_digests(b"") == ()
    assert chunk_digests(memoryview(bytearray(16)).cast("d")) == chunk_digests(bytes(16))


def test_digests_are_checked() -> None:
    check_digest(b"data", digest_bytes(b"data"), file="a")
    check_digest(b"data", f"sha256:{hashlib.sha256(b'data').hexdigest()}", file="a")
    with pytest.raises(CorruptFile, match=rf"`a`: its digest is {ALGORITHM}:\w+, {ALGORITHM}:\w+ is recorded: corrupt"):
        check_digest(b"data", digest_bytes(b"date"), file="a")
    with pytest.raises(CorruptFile, match=r"digest 'md5:00': the algorithm is neither xxh3-128 nor sha256"):
        check_digest(b"data", "md5:00", file="a")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crcs_join(first: bytes, second: bytes) -> None:
    assert crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.binary(max_size=100), st.binary(max_size=100), st.integers(0, 100))
def test_crcs_go_on(first: bytes, second: bytes, start: int) -> None:
    assert crc32(second, crc32(first)) == zlib.crc32(first + second)
    assert crc32(first, start) == zlib.crc32(first, start)


def test_crcs_of_long_pieces_join() -> None:
    zeros = zlib.crc32(bytes(CHUNK))
    joined = zlib.crc32(b"start")
    for _ in range(3):
        joined = crc32_combine(joined, zeros, CHUNK)
    assert joined == zlib.crc32(b"start" + bytes(3 * CHUNK))


def test_the_crc_is_the_same_without_isal() -> None:
    program = (
        "import sys; sys.modules['isal'] = None\n"
        "from holdfast.storage import digest\n"
        "assert digest._crc32.__module__ == 'zlib', digest._crc32\n"
        "print(digest.crc32(b'123456789'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0xCBF43926
