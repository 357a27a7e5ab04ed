"""The container of one rank: written and flushed while the other ranks write theirs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.formats.base import StoredTensor
from holdfast.formats.safetensors_writing import write_tensors
from holdfast.runs.manifest import FileRecord
from holdfast.runs.placing import Stored
from holdfast.runs.sharded import Piece, RankPart, box_text, rank_file
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import place_of


class Part(msgspec.Struct, eq=False):
    """What a rank is to write.

    Attributes:
        key: of the tensor.
        leaf: the bytes, row-major.
        offsets: of the first element in the tensor, when this is a rectangle of it; None for all.
    """

    key: str
    leaf: StoredTensor
    offsets: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """In the container: the tensor's own, with the rectangle behind it."""
        if self.offsets is None:
            return self.key
        return f"{self.key}[{box_text(self.offsets, self.leaf.spec.shape)}]"


def write_rank_file(partial: str, rank: int, parts: Sequence[Part], *, durable: bool = True) -> RankPart:
    """Writes the container of a rank into the checkpoint that rank 0 has begun; nobody sees it before the commit.

    Args:
        partial: where the files of the checkpoint are, as rank 0 says.
        rank: whose container it is.
        parts: what goes in.
        durable: whether it is on the medium on return.

    Raises:
        StorageError: the disk or the store is full or failed, or is not the one that rank 0 sees.
    """
    file = rank_file(rank)
    if not parts:
        return RankPart(file, None)
    with place_of(partial).add(partial, file, durable=durable) as staged:
        placed = write_tensors(staged, [(part.name, part.leaf) for part in parts])
        head = min(one.offset for one in placed)
        header = staged.written()
        try:
            record = FileRecord(staged.size, digest_bytes(header.read(0, head)), head)
        finally:
            header.close()
    pieces = [
        Piece(part.key, file, part.name, part.leaf.spec.shape, part.offsets, Stored(one.offset, one.length, one.chunks))
        for part, one in zip(parts, placed, strict=True)
    ]
    return RankPart(file, record, tuple(pieces))
