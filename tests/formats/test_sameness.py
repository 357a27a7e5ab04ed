from __future__ import annotations

import hashlib

import msgspec
import pytest
import xxhash

from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.sameness import content, same_bytes, same_content
from holdfast.spec import CHUNK, TensorSpec
from holdfast.storage.digest import chunk_digests
from holdfast.storage.source import FilledSource, MemorySource


class Unreadable(FilledSource):
    """Bytes that nobody may read."""

    name = "unreadable"

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise AssertionError("it was read")


def stored(data: bytes, shape: tuple[int, ...] | None = None, **fields: object) -> StoredTensor:
    spec = TensorSpec("uint8", shape or (len(data),), fields.pop("stride", None))  # type: ignore[arg-type]
    return StoredTensor(spec, Segment(MemorySource(data), 0, len(data), **fields))  # type: ignore[arg-type]


def recorded(data: bytes, chunks: tuple[str, ...] | None = None) -> StoredTensor:
    source = Unreadable(len(data))
    return StoredTensor(
        TensorSpec("uint8", (len(data),)),
        Segment(source, 0, len(data), chunks=chunk_digests(data) if chunks is None else chunks),
    )


def test_recorded_digests_are_enough() -> None:
    data = bytes(100)
    assert same_content(recorded(data), recorded(data))
    assert not same_content(recorded(data), recorded(b"\x01" + data[1:]))
    assert content(recorded(data)) == (xxhash.xxh3_128_hexdigest(data),)


def test_where_one_side_has_none_both_are_read() -> None:
    data = bytes(range(100))
    with_digest = stored(data, chunks=chunk_digests(data))
    assert same_content(with_digest, stored(data))
    assert not same_content(with_digest, stored(data[::-1]))
    assert content(with_digest) == content(stored(data))
    with pytest.raises(AssertionError, match="it was read"):
        same_content(recorded(data), stored(data))


def test_digests_of_another_form_are_no_answer() -> None:
    data = bytes(10)
    other = recorded(data, (f"sha256:{hashlib.sha256(data).hexdigest()}",))
    with pytest.raises(AssertionError, match="it was read"):
        same_content(other, recorded(data))


def test_digests_of_a_larger_segment_say_nothing_of_a_part() -> None:
    data = bytes(50) + bytes(range(50))
    whole = Segment(MemorySource(data), 0, 100, chunks=chunk_digests(data))
    first, second = (StoredTensor(TensorSpec("uint8", (50,)), whole, at) for at in (0, 50))
    assert not same_content(first, second)
    assert same_content(second, stored(data[50:]))


def test_one_place_is_the_same_without_reading() -> None:
    leaf = StoredTensor(TensorSpec("uint8", (5,)), Segment(Unreadable(5), 0, 5))
    assert same_content(leaf, msgspec.structs.replace(leaf))


STRIDED = [
    ((3, 2), (1, 3), b"abcdef", b"adbecf"),
    ((2, 3), (3, 1), b"abcdef", b"abcdef"),
    ((3, 2), (0, 1), b"ab", b"ababab"),
    ((2, 2), (1, 1), b"abc", b"abbc"),
]


@pytest.mark.parametrize(("shape", "stride", "lies", "elements"), STRIDED)
def test_other_strides_are_other_ways_to_lie(
    shape: tuple[int, ...], stride: tuple[int, ...], lies: bytes, elements: bytes
) -> None:
    strided = stored(lies, shape, stride=stride)
    assert same_content(strided, stored(elements, shape))
    assert content(strided) == content(stored(elements, shape))
    assert not same_content(strided, stored(elements[:-1] + b"x", shape))


def test_a_digest_for_each_chunk_also_where_none_is_recorded() -> None:
    data = bytes(CHUNK) + b"rest"
    assert content(stored(data)) == chunk_digests(data)
    assert content(stored(b"")) == ()
    assert same_content(stored(b""), stored(b""))


def test_bytes_from_one_place_to_another() -> None:
    left, right = MemorySource(b"xabcx"), MemorySource(b"yabcy")
    assert same_bytes(left, right, 1, 4)
    assert not same_bytes(left, right, 0, 4)
    assert same_bytes(left, right, 2, 2)
