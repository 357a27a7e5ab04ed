"""Several files as one container, opened inside their folder only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as theirs
import torch

from holdfast.errors import CorruptFile, HoldfastError, NotFound, RefusedFile, StorageError, UnknownFormat
from holdfast.formats import index
from holdfast.formats.detect import open_path
from holdfast.spec import TensorSpec

NAME = "model.safetensors.index.json"


def shard(path: Path, **tensors: list[float]) -> None:
    theirs.save_file({name.replace("_", "."): torch.tensor(value) for name, value in tensors.items()}, path)


def write_index(folder: Path, weight_map: Any, **metadata: Any) -> Path:
    path = folder / NAME
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    shard(folder / "model-00001-of-00002.safetensors", a_w=[1.0, 2.0], a_b=[3.0])
    shard(folder / "model-00002-of-00002.safetensors", z_w=[4.0], not_listed=[5.0])
    weights = {"z.w": "model-00002-of-00002.safetensors"} | dict.fromkeys(
        ["a.w", "a.b"], "model-00001-of-00002.safetensors"
    )
    write_index(folder, weights, total_size=16, who="me")
    return folder


def refused(folder: Path, error: type[HoldfastError], reason: str) -> None:
    with pytest.raises(error) as caught:
        open_path(folder / NAME)
    assert type(caught.value) is error
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"`{folder / NAME}`: ")
    assert caught.value.file == str(folder / NAME)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("by_folder", [True, False])
def test_shards_are_one_dict_in_the_order_of_the_index(model: Path, by_folder: bool) -> None:
    with open_path(model if by_folder else model / NAME) as container:
        assert container.format == "sharded"
        assert container.file == str(model / NAME)
        document = container.document()
        assert list(document.tree) == ["z.w", "a.w", "a.b"]
        assert document.metadata == {"total_size": "16", "who": "me"}
        leaf = document.tree["a.w"]
        assert leaf.spec == TensorSpec("float32", (2,))
        assert torch.frombuffer(
            bytearray(leaf.segment.source.read(leaf.segment.offset, 8)), dtype=torch.float32
        ).tolist() == [1, 2]
        assert sorted(part.name for part in container.segments()) == ["a.b", "a.w", "not.listed", "z.w"]


def test_torch_shards_work_too(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "pytorch_model-2.bin")
    weights = {"w": "pytorch_model-1.bin", "bias": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}))
    with open_path(tmp_path) as container:
        assert {name: leaf.spec.shape for name, leaf in container.document().tree.items()} == {"w": (2,), "bias": (1,)}


def test_a_relative_path_and_a_folder_inside_are_fine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "more").mkdir()
    shard(model / "more" / "x.safetensors", x=[1.0])
    write_index(model, {"x": "more/x.safetensors"})
    monkeypatch.chdir(model)
    with open_path(NAME) as container:
        assert list(container.document().tree) == ["x"]


def test_a_missing_shard_is_named(model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").unlink()
    refused(
        model,
        NotFound,
        "2 of its tensors are in `model-00001-of-00002.safetensors`, which is not there; fetch the missing",
    )


def test_a_tensor_that_its_shard_has_not_is_named(model: Path) -> None:
    write_index(model, {"gone\x1b": "model-00001-of-00002.safetensors"})
    refused(model, CorruptFile, "lists `gone\\x1b` in `model-00001-of-00002.safetensors`, which has no such tensor")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "./a",
        "a//b",
        "",
        "C:\\a",
        "..\\a",
        "a\0b",
        "a/",
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused(model: Path, name: str) -> None:
    shard(model.parent / "secret.safetensors", s=[1.0])
    write_index(model, {"s": name})
    refused(model, RefusedFile, "; shards must be plain names inside its folder")


def test_links_out_of_the_folder_are_refused(model: Path) -> None:
    secret = model.parent / "secret.safetensors"
    shard(secret, s=[1.0])
    (model / "inside.safetensors").symlink_to(secret)
    write_index(model, {"s": "inside.safetensors"})
    refused(model, RefusedFile, f"its shard `inside.safetensors` is a link to `{secret}`, outside of its folder")
    (model / "linked").symlink_to(model.parent)
    write_index(model, {"s": "linked/secret.safetensors"})
    refused(model, RefusedFile, "outside of its folder")
    (model / "same.safetensors").symlink_to("model-00001-of-00002.safetensors")
    write_index(model, {"a.w": "same.safetensors"})
    with open_path(model) as container:
        assert list(container.document().tree) == ["a.w"]


def test_the_layout_of_the_hub_cache_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shard(blobs / "d1", w=[1.0])
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/d1")
    write_index(snapshot, {"w": "model-1.safetensors"}).rename(blobs / "d2")
    (snapshot / NAME).symlink_to("../../blobs/d2")
    with open_path(snapshot) as container:
        assert list(container.document().tree) == ["w"]
    shard(tmp_path / "models--x" / "other", w=[1.0])
    (snapshot / "model-1.safetensors").unlink()
    (snapshot / "model-1.safetensors").symlink_to("../../other")
    refused(snapshot, RefusedFile, "outside of its folder")


def test_a_fifo_is_not_waited_for(model: Path) -> None:
    os.mkfifo(model / "pipe.safetensors")
    write_index(model, {"s": "pipe.safetensors"})
    with pytest.raises(StorageError, match=r"pipe.safetensors`: is a FIFO, socket or device"):
        open_path(model)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no index of shards: Input data was truncated"),
        ("[]", "is no index of shards: Expected `object`, got `array`"),
        ("{}", "missing required field `weight_map`"),
        ('{"weight_map": {"a": 1}}', "Expected `str`, got `int`"),
        ('{"weight_map": {}, "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "is no index of shards"),
    ],
)
def test_a_damaged_index_is_refused(model: Path, text: str, reason: str) -> None:
    (model / NAME).write_text(text)
    refused(model, CorruptFile, reason)


def test_an_index_past_the_limit_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "INDEX_LIMIT", 10)
    refused(model, RefusedFile, "an index of 190 bytes, the limit is 10")


def test_a_damaged_shard_closes_the_others(model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").write_bytes(b"<html>")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UnknownFormat, match=r"model-00001-of-00002.safetensors`: is a web page"):
        open_path(model)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_with_one_container_is_that_container(tmp_path: Path) -> None:
    shard(tmp_path / "diffusion.safetensors", w=[1.0])
    with open_path(tmp_path) as container:
        assert container.format == "safetensors"
    shard(tmp_path / "second\x1b.safetensors", w=[1.0])
    with pytest.raises(
        UnknownFormat, match=r"a folder with 2 \*.safetensors files \(diffusion.safetensors, second\\x1b"
    ) as caught:
        open_path(tmp_path)
    assert str(caught.value).endswith("and nothing that says which belong together; name one of them")
    shard(tmp_path / "model.safetensors", v=[1.0])
    with open_path(tmp_path) as container:
        assert list(container.document().tree) == ["v"]


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"a folder without weights: no model.safetensors.index.json"):
        open_path(tmp_path)
