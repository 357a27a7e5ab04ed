"""Distributed checkpoints that lie or carry code: nothing runs, and every lie is the right error."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import holdfast
from holdfast.cli.main import main
from holdfast.errors import CorruptFile, FormatError, RefusedFile, UnknownFormat, UntrustedType
from holdfast.formats import dcp as ours
from holdfast.formats.detect import open_path
from holdfast.state.values import MAX_DEPTH
from tests.formats.dcp_material import folder, saved

W = {"w": torch.arange(6.0).reshape(2, 3)}


class Planted:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def everything(path: Path, out: Path) -> None:
    """Every way to look at a file; errors are fine, running code is not."""
    for look in (
        lambda: holdfast.load(path),
        lambda: holdfast.load(path, opaque=True),
        lambda: holdfast.restore(path, model=torch.nn.Linear(3, 2)),
        lambda: holdfast.verify(path),
        lambda: holdfast.open(path).close(),
        lambda: holdfast.convert(path, out / "o.safetensors"),
        lambda: holdfast.summary(path),
    ):
        with contextlib.suppress(holdfast.HoldfastError):
            look()
    for verb in ("inspect", "verify"):
        with pytest.raises(SystemExit):
            main([verb, str(path)])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("place", ["root", "planner_data", "storage_meta", "a key", "a value"])
def test_code_in_the_metadata_never_runs(tmp_path: Path, place: str) -> None:
    planted = Planted(tmp_path / "mark")

    def plant(metadata: Metadata) -> Any:
        if place == "root":
            return [planted, metadata]
        if place == "planner_data":
            metadata.planner_data["x"] = planted
        if place == "storage_meta":
            metadata.storage_meta = planted
        if place == "a key":
            metadata.storage_data = {planted: 1, **metadata.storage_data}
        if place == "a value":
            metadata.state_dict_metadata["w"].properties = planted
        return metadata

    path = folder(tmp_path / "ckpt", W, change=plant)
    everything(path, tmp_path)
    assert not (tmp_path / "mark").exists()
    with contextlib.suppress(Exception, CheckpointException):  # whatever torch says afterwards
        dcp.load({"w": torch.zeros(2, 3)}, checkpoint_id=path)
    assert (tmp_path / "mark").exists()  # the attack is a real one


def test_code_in_an_item_never_runs(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {**W, "x": Planted(tmp_path / "mark")})
    everything(path, tmp_path)
    with pytest.raises(UntrustedType, match=r"posix.mkdir"):
        holdfast.load(path)
    assert not (tmp_path / "mark").exists()
    torch.load(_item(path, "x"), weights_only=False)
    assert (tmp_path / "mark").exists()  # the attack is a real one


def _item(path: Path, name: str) -> Any:
    info = pickle.loads((path / ".metadata").read_bytes()).storage_data[MetadataIndex(name)]
    data = (path / info.relative_path).read_bytes()
    return io.BytesIO(data[info.offset : info.offset + info.length])


def entry(metadata: Metadata) -> TensorStorageMetadata:
    found = metadata.state_dict_metadata["w"]
    assert isinstance(found, TensorStorageMetadata)
    return found


def place(metadata: Metadata, **fields: Any) -> Metadata:
    index = next(iter(metadata.storage_data))
    metadata.storage_data[index] = replace(metadata.storage_data[index], **fields)
    return metadata


def with_entry(**fields: Any) -> Callable[[Metadata], Any]:
    def change(metadata: Metadata) -> Any:
        for name, value in fields.items():
            setattr(entry(metadata), name, value)
        return metadata

    return change


def with_fields(**fields: Any) -> Callable[[Metadata], Any]:
    return lambda metadata: replace(metadata, **fields)


def chunk(offsets: Any, sizes: Any) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets, sizes)


LIES: dict[str, tuple[Callable[[Metadata], Any], type[FormatError], str]] = {
    "a dict": (lambda _: {}, CorruptFile, "'dict' stands where Metadata is meant"),
    "another class": (lambda _: MetadataIndex("w"), CorruptFile, "MetadataIndex' stands where Metadata is meant"),
    "no entries": (with_fields(state_dict_metadata=[1]), CorruptFile, "state_dict_metadata is no dict of names"),
    "an entry of text": (
        with_fields(state_dict_metadata={"w": "x"}), CorruptFile, "'str' stands where TensorStorageMetadata is meant",
    ),
    "no properties": (with_entry(properties=None), CorruptFile, "the properties of 'w' are no dtype, layout and req"),
    "no chunks": (with_entry(chunks=None), CorruptFile, "the chunks of 'w' are no list"),
    "a chunk of text": (with_entry(chunks=["x"]), CorruptFile, "'str' stands where ChunkStorageMetadata is meant"),
    "sizes of text": (with_entry(chunks=[chunk("x", "y")]), CorruptFile, "offsets is None, no tuple of integers"),
    "negative sizes": (with_entry(size=torch.Size([-2, -3])), CorruptFile, "a size is [-2, -3], no tuple of"),
    "another size": (with_entry(size=torch.Size([2, 4])), CorruptFile, "its rectangles have 6 elements, (2, 4) has 8"),
    "an absurd size": (with_entry(size=torch.Size([2**40, 2**40])), CorruptFile, "its rectangles have 6 elements"),
    "another chunk": (
        with_entry(chunks=[chunk(torch.Size([0, 0]), torch.Size([1, 6]))]),
        CorruptFile,
        "the rectangle at (0, 0) is (2, 3) float32, .metadata says (1, 6) float32",
    ),
    "a chunk nobody stores": (
        with_entry(chunks=[chunk(torch.Size([1, 0]), torch.Size([1, 3]))]),
        CorruptFile,
        "nothing says where its part at (1, 0) is stored",
    ),
    "no places": (with_fields(storage_data=None), CorruptFile, "storage_data does not say where anything is"),
    "places of text": (with_fields(storage_data={"w": 1}), CorruptFile, "storage_data does not say where anything"),
    "a place of text": (
        with_fields(storage_data={MetadataIndex("w", [0, 0]): "x"}), CorruptFile, "'str' stands where _StorageInfo",
    ),
    "a place without a name": (
        lambda m: replace(m, storage_data={MetadataIndex(None, [0, 0]): next(iter(m.storage_data.values()))}),  # type: ignore[arg-type]
        CorruptFile,
        "storage_data names None at (0, 0) twice, or without a name",
    ),
    "a negative offset": (lambda m: place(m, offset=-1), CorruptFile, "the place of 'w' is none: file"),
    "a file that is a number": (lambda m: place(m, relative_path=3), CorruptFile, "the place of 'w' is none: file 3"),
    "a path out of the folder": (
        lambda m: place(m, relative_path="../secret"), RefusedFile, "shards must be plain names inside its folder",
    ),
    "an absolute path": (lambda m: place(m, relative_path="/etc/passwd"), RefusedFile, "shards must be plain names"),
    "past the end": (lambda m: place(m, length=10**9), CorruptFile, "should end at byte 1,000,000,000, the file ends"),
    "an offset past the end": (lambda m: place(m, offset=2**62), CorruptFile, "should end at byte 4,611,686,0"),
    "nothing": (
        lambda m: place(m, length=0), UnknownFormat, "`w` is no file of torch.save, which is not read; load it with",
    ),
    "transformed": (
        lambda m: place(m, transform_descriptors=["zstd"]), UnknownFormat, "`w` went through ['zstd'], which is not",
    ),
    "a path that is no tuple": (with_fields(planner_data={"w": "w"}), CorruptFile, "the path of 'w' is no tuple of"),
    "an empty path": (with_fields(planner_data={"w": ()}), CorruptFile, "the path of 'w' is no tuple of names"),
    "a negative index": (with_fields(planner_data={"w": ("a", -1)}), CorruptFile, "the path of 'w' is no tuple of"),
    "a root that is a list": (with_fields(planner_data={"w": (0,)}), CorruptFile, "the path of `0` contradicts"),
    "a list with an absurd hole": (
        with_fields(planner_data={"w": ("a", 10**15)}), CorruptFile, "a list with the indices [1000000000000000]",
    ),
    "a deep path": (
        with_fields(planner_data={"w": ("a",) * (MAX_DEPTH + 1)}), RefusedFile, f"deeper than {MAX_DEPTH} levels",
    ),
    "paths that are no dict": (with_fields(planner_data=[1]), CorruptFile, "planner_data is no dict of names"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(tmp_path: Path, lie: str) -> None:
    change, error, reason = LIES[lie]
    path = folder(tmp_path / "ckpt", W, change=change)
    with pytest.raises(FormatError) as caught:
        open_path(path)
    assert type(caught.value) is error, caught.value
    message = str(caught.value)
    assert reason in message
    assert message.startswith(f"`{path}/")
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ({"a": ("x",), "b": ("x",)}, "the path of `b` contradicts another"),
        ({"a": ("x", "y"), "b": ("x",)}, "the path of `b` contradicts another"),
        ({"a": ("x",), "b": ("x", "y")}, "the path of `b` contradicts another"),
        ({"a": ("x", 0), "b": ("x", "y")}, r"a list with the indices \[0, 'y'\]"),
    ],
)
def test_paths_that_contradict_each_other(tmp_path: Path, paths: dict[str, Any], reason: str) -> None:
    path = folder(tmp_path / "ckpt", {"a": {"y": 1}, "b": 2}, change=with_fields(planner_data=paths))
    with pytest.raises(CorruptFile, match=reason):
        open_path(path)


def test_lists_may_have_the_holes_that_torch_leaves(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {"a": 1, "b": 2}, change=with_fields(planner_data={"a": ("x", 2), "b": ("x", 0)}))
    assert holdfast.load(path) == {"x": [2, None, 1]}


def test_a_place_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    def change(metadata: Metadata) -> Any:
        (info,) = metadata.storage_data.values()
        twin = MetadataIndex("w", [1, 1], 0)
        metadata.storage_data[twin] = info
        object.__setattr__(twin, "offset", torch.Size([0, 0]))
        return metadata

    path = folder(tmp_path / "ckpt", W, change=change)
    with pytest.raises(CorruptFile, match=r"storage_data names 'w' at \(0, 0\) twice"):
        open_path(path)


def test_an_item_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {"w": [1, 2]}, change=_as_tensor)
    with pytest.raises(CorruptFile, match=r"the rectangle at \(\) is no plain tensor, .metadata says \(\) float32"):
        open_path(path)


def _as_tensor(metadata: Metadata) -> Metadata:
    (info,) = metadata.storage_data.values()
    one = ChunkStorageMetadata(torch.Size([]), torch.Size([]))
    properties = TensorProperties(dtype=torch.float32)
    metadata.state_dict_metadata["w"] = TensorStorageMetadata(properties, torch.Size([]), [one])
    metadata.storage_data = {MetadataIndex("w", [], 0): info}
    return metadata


def test_a_file_of_a_rank_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", W)
    (path / "__0_0.distcp").rename(tmp_path / "elsewhere")
    (path / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedFile, match=r"is a link to `.*elsewhere`, outside of its folder"):
        open_path(path)


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "\x1b[2J\u202e"
    path = folder(tmp_path / "ckpt", {evil: W["w"]}, change=lambda m: place(m, offset=1))
    with pytest.raises(FormatError) as caught:
        open_path(path)
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert "`\\x1b[2J\\u202e`" in str(caught.value)


def test_metadata_that_is_cut_or_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "ckpt", W)
    data = (path / ".metadata").read_bytes()
    for length in range(0, len(data) - 1, 7):
        (path / ".metadata").write_bytes(data[:length])
        with pytest.raises(FormatError):
            open_path(path)
    (path / ".metadata").write_bytes(data)
    monkeypatch.setattr(ours, "METADATA_LIMIT", 100)
    with pytest.raises(RefusedFile, match=rf"\.metadata`: has {len(data):,} bytes, the limit is 100"):
        open_path(path)


def test_metadata_that_holds_a_tensor_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", W)
    (path / "x.pt").write_bytes(saved({"w": torch.ones(2)}))
    with zipfile.ZipFile(path / "x.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        (path / ".metadata").write_bytes(archive.read(name))
    with pytest.raises(CorruptFile, match="it holds tensors, which belong into the other files"):
        open_path(path)


def test_files_changed_at_random_are_read_or_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "ckpt", {**W, "step": 3, "list.0": torch.ones(1)})
    data = (path / ".metadata").read_bytes()
    chance = random.Random(1)
    for _ in range(500):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        (path / ".metadata").write_bytes(changed)
        with contextlib.suppress(holdfast.HoldfastError):
            open_path(path).close()
