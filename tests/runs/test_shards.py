"""What does not change is written once: linked, verified, and now and then copied afresh."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from holdfast.errors import StorageError
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
    return {"model": model, "optimizer": {"moment": tensor(40, fill=head + 1)}, "rng": {"state": tensor(50)}}


def commit(root: Path, step: int, content: Any, shards: Shards, groups: Any = GROUPS) -> Path:
    with StagedFolder(root, step_name(step)) as folder:
        write_checkpoint(folder, Document(content), facts(step), groups=groups, shards=shards)
        folder.commit()
    return root / step_name(step)


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir() if path.suffix == ".safetensors"}


def linked(left: Path, right: Path) -> set[str]:
    return {name for name, inode in inodes(left).items() if inodes(right).get(name) == inode}


def test_an_object_is_split_by_what_can_change(root: Path) -> None:
    folder = commit(root, 1, tree(), Shards(str(root)))
    names = ["model-buffers", "model-frozen", "model-trained", "optimizer", "rng"]
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
    folder = commit(root, 1, small, Shards(str(root)), {("model", "body"): "frozen", ("other", "body"): "frozen"})
    assert sorted(inodes(folder)) == ["model.safetensors", "other.safetensors"]
    assert not list(folder.glob("*.index.json"))


def test_what_did_not_change_is_linked_and_never_to_the_one_before(root: Path) -> None:
    shards = Shards(str(root))
    folders = [commit(root, step, tree(step), shards) for step in range(1, 6)]
    large = {"model-frozen.safetensors", "model-buffers.safetensors"}
    shared = [[linked(one, other) for other in folders] for one in folders]
    for left in range(5):
        for right in range(left):
            assert shared[left][right] == (large if (left - right) % 2 == 0 else set())
    with open_checkpoint(folders[4]) as back:
        assert read(back.document().tree["model"]["head"]) == read(tree(5)["model"]["head"])
        assert {name: record.links for name, record in back.manifest.files.items() if record.links} == dict.fromkeys(
            sorted(large), 2
        )
    assert verify(root).status == "OK"
    shutil.rmtree(folders[2])  # each folder is complete by itself
    assert verify(root).status == "OK"


def test_one_damaged_inode_leaves_a_good_checkpoint(root: Path) -> None:
    shards = Shards(str(root))
    for step in range(1, 9):
        folder = commit(root, step, tree(step), shards)
        flip(folder / "model-frozen.safetensors", 500_000)
        if step > 1:
            assert {item.status for item in verify(root).items} == {"OK", "CORRUPT"}
        flip(folder / "model-frozen.safetensors", 500_000)
        shards = Shards(str(root))
    assert verify(root).status == "OK"


def test_a_run_that_keeps_one_links_to_the_one_that_goes(root: Path) -> None:
    shards = Shards(str(root), single=True)
    first = commit(root, 1, tree(1), shards)
    second = commit(root, 2, tree(2), shards)
    assert linked(first, second) == {"model-frozen.safetensors", "model-buffers.safetensors"}


def test_other_names_shapes_and_dtypes_are_written(root: Path) -> None:
    shards = Shards(str(root), single=True)
    first = commit(root, 1, {"model": {"a": tensor(300_000), "b": tensor(8)}}, shards)
    for step, model in enumerate(
        (
            {"a": tensor(300_000), "c": tensor(8)},
            {"a": tensor(300_000)},
            {"a": tensor(300_000), "b": tensor(2, 4)},
            {"a": tensor(300_000), "b": tensor(8, dtype="int32")},
            {"a": tensor(300_000), "b": tensor(8, fill=2)},
        ),
        2,
    ):
        folder = commit(root, step, {"model": model}, shards)
        assert linked(first, folder) == set()
        shutil.rmtree(folder)


def test_every_tenth_is_a_fresh_copy(root: Path) -> None:
    shards = Shards(str(root))
    folders = [commit(root, step, tree(step), shards) for step in range(1, 4 * MOST_LINKS + 7)]
    frozen = [inodes(folder)["model-frozen.safetensors"] for folder in folders]
    assert {frozen.count(inode) for inode in frozen[:-4]} == {MOST_LINKS + 1}
    assert all(left != right for left, right in itertools.pairwise(frozen))


@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_file_is_not_handed_on(known: bool, root: Path) -> None:
    """A file that this process has not read, or that was touched since, is read before it is linked."""
    shards = Shards(str(root))
    first, second = (commit(root, step, tree(step), shards) for step in (1, 2))
    flip(first / "model-frozen.safetensors", 500_000)
    third = commit(root, 3, tree(3), shards if known else Shards(str(root)))
    assert linked(first, third) == {"model-buffers.safetensors"}
    assert linked(second, third) == set()
    assert verify(third).status == "OK"


@pytest.mark.parametrize("damage", ["manifest.json", "entries.json", "gone"])
def test_without_a_good_checkpoint_before_everything_is_written(damage: str, root: Path) -> None:
    shards = Shards(str(root), single=True)
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
    shards = Shards(str(root), single=True)
    first = commit(root, 1, tree(1), shards)
    second = commit(root, 2, tree(2), shards)
    assert linked(first, second) == set()
    assert verify(root).status == "OK"
    with open_checkpoint(second) as back:
        assert {record.links for record in back.manifest.files.values()} == {0}


def test_a_view_of_a_shared_memory_is_found_again(root: Path) -> None:
    def views() -> dict[str, Any]:
        whole = tensor(300_000)
        return {"model": {"whole": whole, "part": StoredTensor(tensor(10).spec, whole.segment, 40)}}

    shards = Shards(str(root), single=True)
    first, second = commit(root, 1, views(), shards), commit(root, 2, views(), shards)
    assert linked(first, second) == {"model.safetensors"}
    with open_checkpoint(second) as back:
        model = back.document().tree["model"]
        assert model["part"].segment is model["whole"].segment
    assert os.stat(first / "model.safetensors").st_nlink == 2


def test_a_save_that_does_not_fit_is_refused_before_its_first_byte(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(str(root), single=True)
    commit(root, 1, tree(1), shards)
    monkeypatch.setattr("holdfast.runs.room.free_bytes", lambda _: 1_000_000)
    monkeypatch.setattr("holdfast.storage.filesystem.free_bytes", lambda _: 1_000_000)
    commit(root, 2, tree(2), shards)  # what is linked needs no room
    with pytest.raises(StorageError, match=r"no room for this save: 1,200,\d{3} bytes are to be written, 1,000,000"):
        commit(root, 3, tree(3, body=5), shards)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000001", "step-00000002"]
