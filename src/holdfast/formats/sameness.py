"""Whether two stored tensors hold the same elements, to the last bit: by recorded digests, else by reading."""

from __future__ import annotations

import xxhash

from holdfast.formats.base import StoredTensor
from holdfast.formats.packing import tensor_bytes
from holdfast.spec import CHUNK
from holdfast.storage import meter
from holdfast.storage.source import ByteSource

_BLOCK = 1 << 20


def same_content(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two tensors of one shape and dtype have the same elements.

    Where both files record digests of them, these are compared and nothing is read.
    """
    if left.segment is right.segment and (left.offset, left.spec) == (right.offset, right.spec):
        return True
    recorded = _recorded(left), _recorded(right)
    if None not in recorded:
        return recorded[0] == recorded[1]
    alike = left.spec == right.spec and left.spec.extent == left.spec.numel
    ours, theirs = (tensor_bytes(leaf, as_it_lies=alike) for leaf in (left, right))
    return same_bytes(ours, theirs, 0, ours.size)


def same_bytes(left: ByteSource, right: ByteSource, begin: int, end: int) -> bool:
    """Whether two sources hold the same from one byte to another; reads a small block of each at a time."""
    for at in range(begin, end, _BLOCK):
        blocks = bytearray(min(_BLOCK, end - at)), bytearray(min(_BLOCK, end - at))
        left.read_into(at, memoryview(blocks[0]))
        right.read_into(at, memoryview(blocks[1]))
        meter.pass_by(len(blocks[0]))
        if blocks[0] != blocks[1]:
            return False
    return True


def content(leaf: StoredTensor) -> tuple[str, ...]:
    """What tells the elements of a tensor from others: the digest of each 8 MiB, recorded or made now."""
    known = _recorded(leaf)
    if known is not None:
        return known
    source = tensor_bytes(leaf)
    return tuple(_digest(source, at, min(at + CHUNK, source.size)) for at in range(0, source.size, CHUNK))


def _digest(source: ByteSource, begin: int, end: int) -> str:
    hasher = xxhash.xxh3_128()
    for at in range(begin, end, _BLOCK):
        hasher.update(source.read(at, min(_BLOCK, end - at)))
    return hasher.hexdigest()


def _recorded(leaf: StoredTensor) -> tuple[str, ...] | None:
    """The digests of a tensor whose segment is its elements in order, where the file has them in our own form."""
    segment, spec = leaf.segment, leaf.spec
    whole = leaf.offset == 0 and spec.is_contiguous and spec.nbytes == segment.length and not segment.swapped
    if not whole or segment.chunks is None or any(":" in chunk for chunk in segment.chunks):
        return None
    return segment.chunks
