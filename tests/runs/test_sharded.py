"""Entries of tensors in rectangles: what is written, and every lie about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.errors import ArgumentError, CorruptFile, StorageError
from holdfast.formats.base import Document
from holdfast.formats.rectangles import Assembled
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.entries import decode_entries, encode_entries
from holdfast.runs.layout import step_name
from holdfast.runs.manifest import FileRecord
from holdfast.runs.placing import Stored
from holdfast.runs.sharded import Piece, RankPart, Wanted, rank_file, sharded_entries, write_sharded
from holdfast.runs.verify import verify
from holdfast.spec import Entry, TensorSpec
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.digest import chunk_digests
from holdfast.storage.joined import file_in_partial
from holdfast.storage.requests import WriteRequest
from holdfast.storage.staged import partial_of
from tests.runs.hand_made import facts, flip

SPEC = TensorSpec("uint8", (4, 3))
WHOLE = bytes(range(12))


def piece(rank: int, at: int, rows: int, start: int = 0) -> Piece:
    data = WHOLE[at * 3 : (at + rows) * 3]
    stored = Stored(start, len(data), tuple(chunk_digests(data)))
    return Piece("w", rank_file(rank), f"w[{at}]", (rows, 3), (at, 0), stored)


def commit(root: Path) -> Path:
    """A checkpoint whose only tensor, and a second name for it, lie in two files."""
    folder = StagedFolder(root, step_name(1))
    parts = []
    for rank, (at, rows) in enumerate(((0, 3), (3, 1))):
        data = WHOLE[at * 3 : (at + rows) * 3]
        with file_in_partial(partial_of(str(root / step_name(1))), rank_file(rank)) as staged:
            staged.write([WriteRequest(0, data)])
        parts.append(
            RankPart(rank_file(rank), FileRecord(len(data), "xxh3-128:" + "0" * 32, 0), (piece(rank, at, rows),))
        )
    tree = {"model": {"w": Wanted("w", SPEC), "tied": Wanted("w", SPEC)}, "step": 1}
    write_sharded(folder, Document(tree), facts(1), parts)
    folder.commit()
    return root / step_name(1)


def test_the_whole_is_read_from_its_parts(root: Path) -> None:
    folder = commit(root)
    with open_checkpoint(folder) as checkpoint:
        found = {entry.path: leaf for entry, leaf in checkpoint.tensors()}
        leaf = found["model", "w"]
        assert isinstance(leaf.segment.source, Assembled)
        assert leaf.segment.source.read(0, 12) == WHOLE
        assert found["model", "tied"].segment is leaf.segment
        assert len(checkpoint.segments()) == 2
        assert found["model", "w", "3:4,0:3"].spec.shape == (1, 3)


def entries() -> list[Entry]:
    parts = [RankPart(rank_file(0), None, (piece(0, 0, 3),)), RankPart(rank_file(1), None, (piece(1, 3, 1),))]
    found, numbers = sharded_entries({"w": Wanted("w", SPEC)}, parts, "here")
    assert numbers == [0]
    return found


FILES = {rank_file(0): FileRecord(9, "xxh3-128:" + "0" * 32, 0), rank_file(1): FileRecord(3, "xxh3-128:" + "0" * 32, 0)}


def lie(**change: Any) -> Callable[[list[Entry]], None]:
    def apply(found: list[Entry]) -> None:
        found[0] = msgspec.structs.replace(found[0], **change)

    return apply


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lie(rectangles=((1, (0, 0)), (9, (3, 0)))), "names the entry 9 as a part"),
        (lie(rectangles=((1, (0, 0)), (-1, (3, 0)))), "names the entry -1 as a part"),
        (lie(rectangles=((1, (0, 0)), (0, (3, 0)))), "names the entry 0 as a part"),
        (lie(rectangles=((1, (0, 0)), (2, (4, 0)))), "is outside of"),
        (lie(rectangles=((1, (0, 0)), (2, (2, 0)))), "overlap"),
        (lie(rectangles=((1, (0, 0)),)), "its rectangles have 9 elements"),
        (lie(rectangles=((1, (0,)), (2, (3, 0)))), r"at \(0,\) is outside of"),
        (lie(file=rank_file(0)), "has bytes of its own"),
        (lie(spec=TensorSpec("uint8", (4, 3), (1, 4))), "and has a stride"),
        (lie(spec=TensorSpec("int8", (4, 3))), "which is none of int8"),
        (lie(spec=TensorSpec("uint8", (5, 3)), length=15), "its rectangles have 12 elements"),
        (lie(rectangles=()), "which the manifest does not list"),
    ],
)
def test_every_lie_about_rectangles_is_refused(change: Callable[[list[Entry]], None], said: str) -> None:
    found = entries()
    assert decode_entries(encode_entries(found), FILES, "entries.json")
    change(found)
    with pytest.raises(CorruptFile, match=said):
        decode_entries(encode_entries(found), FILES, "entries.json")


def test_what_no_rank_or_two_wrote_is_not_committed() -> None:
    with pytest.raises(ArgumentError, match="`w`: no rank wrote it: the ranks do not save the same state"):
        sharded_entries({"w": Wanted("w", SPEC)}, [], "here")
    whole = msgspec.structs.replace(piece(0, 0, 4), offsets=None)
    both = [RankPart(rank_file(0), None, (whole,)), RankPart(rank_file(1), None, (whole,))]
    with pytest.raises(ArgumentError, match="2 ranks have all of it"):
        sharded_entries({"w": Wanted("w", SPEC)}, both, "here")


def test_a_container_that_another_process_did_not_finish_is_not_committed(root: Path) -> None:
    with StagedFolder(root, step_name(1)) as folder:
        part = RankPart(rank_file(0), FileRecord(9, "xxh3-128:" + "0" * 32, 0), (piece(0, 0, 3),))
        with pytest.raises(StorageError, match="is not there, its rank says 9"):
            write_sharded(folder, Document({"w": Wanted("w", SPEC)}), facts(1), [part])


def test_a_rank_that_does_not_see_the_folder_says_so(root: Path) -> None:
    with (
        pytest.raises(
            StorageError, match="the folder that rank 0 has begun is not seen here; all ranks need one shared disk"
        ),
        file_in_partial(str(root / "c"), "f"),
    ):
        pass


def test_damage_in_a_part_is_located(root: Path) -> None:
    folder = commit(root)
    flip(folder / rank_file(1), 0)
    found = verify(str(folder)).findings
    assert "model.w.3:4,0:3" in [one.name for one in found], found
    with open_checkpoint(folder) as checkpoint, pytest.raises(CorruptFile, match="corrupt"):
        {entry.path: leaf for entry, leaf in checkpoint.tensors()}["model", "w"].segment.source.read(0, 12)
