"""What does not change is written once: linked, verified, and now and then copied afresh."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from holdfast.formats.base import Document, StoredTensor
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.layout import step_name
from holdfast.runs.shards import MOST_LINKS, Shards
from holdfast.runs.verify import verify
from holdfast.runs.writing import write_checkpoint
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.syscalls import Syscalls
from tests.runs.hand_made import facts, flip, read, tensor

GROUPS = {("model", "body"): "frozen", ("model", "mean"): "buffers", ("model", "mask"): "buffers"}


def tree(head: int = 1, body: int = 1) -> dict[str, Any]:
    """A frozen part of 1.2 MB, a trained head, a small buffer and a large one."""
    model = {
        "body": tensor(300_000, fill=body), "head": tensor(40, fill=head), "mean": tensor(3), "mask": tensor(270_000),
    }  # fmt: skip
    return {"model": model, "optimizer": {"moment": tensor(40, fill=head + 1)}}


def commit(root: Path, step: int, content: Any, shards: Shards | None, groups: Any = GROUPS) -> Path:
    with StagedFolder(root, step_name(step)) as folder:
        write_checkpoint(folder, Document(content), facts(step), groups=groups, shards=shards)
        folder.commit()
    if shards is not None:
        shards.newest = str(root / step_name(step))
    return root / step_name(step)


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir() if path.suffix == ".safetensors"}


def linked(left: Path, right: Path) -> set[str]:
    return {name for name, inode in inodes(left).items() if inodes(right).get(name) == inode}


def test_an_object_is_split_by_what_can_change(root: Path) -> None:
    folder = commit(root, 1, tree(), Shards())
    names = ["model-buffers", "model-frozen", "model-trained", "optimizer"]
    assert sorted(inodes(folder)) == [f"{name}.safetensors" for name in names]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "body": "model-frozen.safetensors",
        "head": "model-trained.safetensors",
        "mask": "model-buffers.safetensors",
        "mean": "model-buffers.safetensors",
    }
    plain = {name: value for file in set(index["weight_map"].values()) for name, value in load(folder, file).items()}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in plain.values())
    assert set(plain) == {"body", "head", "mask", "mean"}
    assert {stat.S_IMODE(path.stat().st_mode) & 0o222 for path in folder.glob("*.safetensors")} == {0}
    with open_checkpoint(folder) as back:
        model = back.document().tree["model"]
        assert [read(model[name]) for name in model] == [read(leaf) for leaf in tree()["model"].values()]


def load(folder: Path, file: str) -> dict[str, Any]:
    found: dict[str, Any] = safetensors.numpy.load_file(folder / file)
    return found


def test_small_groups_and_objects_of_one_group_stay_one_file(root: Path) -> None:
    small = {"model": {"body": tensor(30), "head": tensor(40)}, "other": {"body": tensor(300_000)}}
    folder = commit(root, 1, small, Shards(), {("model", "body"): "frozen", ("other", "body"): "frozen"})
    assert sorted(inodes(folder)) == ["model.safetensors", "other.safetensors"]
    assert not list(folder.glob("*.index.json"))


def test_what_did_not_change_is_linked(root: Path) -> None:
    shards = Shards()
    first = commit(root, 1, tree(1), shards)
    second = commit(root, 2, tree(2), shards)
    assert linked(first, second) == {"model-frozen.safetensors", "model-buffers.safetensors"}
    with open_checkpoint(second) as back:
        assert read(back.document().tree["model"]["head"]) == read(tree(2)["model"]["head"])
        assert {name: record.links for name, record in back.manifest.files.items() if record.links} == {
            "model-frozen.safetensors": 1,
            "model-buffers.safetensors": 1,
        }
    third = commit(root, 3, tree(2, body=9), shards)
    assert linked(second, third) == {"model-buffers.safetensors", "model-trained.safetensors", "optimizer.safetensors"}
    assert verify(root).status == "OK"
    shutil.rmtree(first)  # each folder is complete by itself
    assert verify(root).status == "OK"


def test_other_names_shapes_and_dtypes_are_written(root: Path) -> None:
    shards = Shards()
    first = commit(root, 1, {"model": {"a": tensor(8), "b": tensor(8)}}, shards)
    for step, model in enumerate(
        (
            {"a": tensor(8), "c": tensor(8)},
            {"a": tensor(8)},
            {"a": tensor(2, 4), "b": tensor(8)},
            {"a": tensor(8, dtype="int32"), "b": tensor(8)},
        ),
        2,
    ):
        shards.newest = str(first)
        assert linked(first, commit(root, step, {"model": model}, shards)) == set()


def test_every_tenth_is_a_fresh_copy(root: Path) -> None:
    shards = Shards()
    folders = [commit(root, step, tree(step), shards) for step in range(1, 2 * MOST_LINKS + 4)]
    frozen = [inodes(folder)["model-frozen.safetensors"] for folder in folders]
    assert [frozen.count(inode) for inode in dict.fromkeys(frozen)] == [10, 10, 1]


def test_a_damaged_inode_is_not_handed_on(root: Path) -> None:
    """This process has not read the file: before it links it, it does."""
    first = commit(root, 1, tree(1), Shards())
    flip(first / "model-frozen.safetensors", 500_000)
    second = commit(root, 2, tree(2), Shards(str(first)))
    assert "model-frozen.safetensors" not in linked(first, second)
    assert "model-buffers.safetensors" in linked(first, second)
    assert verify(second).status == "OK"


def test_a_file_that_was_touched_is_read_again(root: Path) -> None:
    shards = Shards()
    first = commit(root, 1, tree(1), shards)
    flip(first / "model-frozen.safetensors", 500_000)
    second = commit(root, 2, tree(2), shards)
    assert "model-frozen.safetensors" not in linked(first, second)
    assert verify(second).status == "OK"


@pytest.mark.parametrize("damage", ["manifest.json", "entries.json", "gone"])
def test_without_a_good_checkpoint_before_everything_is_written(damage: str, root: Path) -> None:
    shards = Shards()
    first = commit(root, 1, tree(1), shards)
    if damage == "gone":
        shutil.rmtree(first)
    else:
        flip(first / damage, 100)
    second = commit(root, 2, tree(2), shards)
    assert verify(second).status == "OK"


def test_where_links_are_not_possible_it_copies(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Syscalls, "link", refuse)
    shards = Shards()
    first = commit(root, 1, tree(1), shards)
    second = commit(root, 2, tree(2), shards)
    assert linked(first, second) == set()
    assert verify(root).status == "OK"
    with open_checkpoint(second) as back:
        assert {record.links for record in back.manifest.files.values()} == {0}


def test_a_view_of_a_shared_memory_is_found_again(root: Path) -> None:
    def views() -> dict[str, Any]:
        whole = tensor(600)
        return {"model": {"whole": whole, "part": StoredTensor(tensor(10).spec, whole.segment, 40)}}

    shards = Shards()
    first, second = commit(root, 1, views(), shards), commit(root, 2, views(), shards)
    assert linked(first, second) == {"model.safetensors"}
    with open_checkpoint(second) as back:
        model = back.document().tree["model"]
        assert model["part"].segment is model["whole"].segment
    assert os.stat(first / "model.safetensors").st_nlink == 2
