"""One document as a folder of shards: what is in it, who reads it, what is refused, and that it is all or nothing."""

from __future__ import annotations

import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as theirs
import torch
import torch.distributed.checkpoint as dcp

import holdfast
from holdfast.errors import (
    ArgumentError,
    CorruptFile,
    HoldfastError,
    StorageError,
    UnknownFormat,
    UnsupportedValue,
)
from holdfast.formats import index
from holdfast.formats.index import encode_index
from holdfast.formats.packing import Packed
from holdfast.formats.sharding import INDEX, Cut, divided
from holdfast.storage.source import MemorySource
from holdfast.storage.syscalls import Syscalls


def tensors(count: int = 6) -> dict[str, torch.Tensor]:
    return {f"layer.{n}.weight": torch.arange(4.0 + n).reshape(1, -1) + n for n in range(count)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    theirs.save_file(tensors(), tmp_path / "model.safetensors", {"format": "pt", "who": "me"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("shards", "files"), [(1, 1), (4, 4), (6, 6), ("3", 3), ("50B", 5), ("1B", 6), ("1GB", 1)])
def test_plain_readers_find_every_tensor(file: Path, tmp_path: Path, shards: int | str, files: int) -> None:
    report = holdfast.convert(file, tmp_path / "out", shards=shards)
    assert (report.format, report.shards, report.tensors) == ("sharded", files, 6)
    names = [f"model-{n:05d}-of-{files:05d}.safetensors" for n in range(1, files + 1)]
    assert sorted(os.listdir(tmp_path / "out")) == [*names, INDEX]
    assert report.bytes == sum(os.path.getsize(tmp_path / "out" / name) for name in [*names, INDEX])
    found = json.loads((tmp_path / "out" / INDEX).read_text())
    assert found["metadata"]["total_size"] == sum(t.nbytes for t in tensors().values())
    assert found["metadata"]["who"] == "me"
    for name, tensor in tensors().items():
        assert torch.equal(theirs.load_file(tmp_path / "out" / found["weight_map"][name])[name], tensor)
    assert list(found["weight_map"]) == list(tensors())


def odd() -> dict[str, Any]:
    """What a flat dict of tensors can't say."""
    net, tied = torch.nn.Linear(3, 2), torch.ones(4)
    return {
        "model": net.state_dict(), "epoch": 3, "args": {"lr": float("nan"), "betas": (0.9, 0.99)},
        "tied": [tied, tied], "view": tied[1:3], "half": torch.ones(2, 3, dtype=torch.bfloat16).t(),
        "wide": torch.complex(torch.ones(2), torch.ones(2)).to(torch.complex128), "none": torch.zeros(0, 3),
    }  # fmt: skip


def test_the_tree_its_values_and_what_is_shared_come_back(tmp_path: Path) -> None:
    holdfast.save(odd(), tmp_path / "a.pt", metadata={"note": "first"})
    report = holdfast.convert(tmp_path / "a.pt", tmp_path / "out", shards=2)
    assert report.shared == [["tied.0", "tied.1", "view"]]
    tree = holdfast.load(tmp_path / "out")
    assert str(tree) == str(holdfast.load(tmp_path / "a.pt"))
    assert tree["tied"][0].data_ptr() == tree["tied"][1].data_ptr()
    with holdfast.open(tmp_path / "out") as ckpt:
        assert ckpt.metadata == {"note": "first"}
    assert holdfast.verify(tmp_path / "out").status == "OK"
    holdfast.convert(tmp_path / "out", tmp_path / "b.pt")
    assert str(holdfast.load(tmp_path / "b.pt")) == str(tree)
    net = torch.nn.Linear(3, 2)
    assert holdfast.restore(tmp_path / "out", model=net).is_exact
    assert torch.equal(net.weight, tree["model"]["weight"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_folder_of_torch_and_a_run_become_shards(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    dcp.save({"model": net.state_dict()}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    with holdfast.Run(tmp_path / "run", model=net) as run:
        run.save(step=1)
    for source in ("theirs", "run"):
        report = holdfast.convert(tmp_path / source, tmp_path / "out", shards=2, drop=["rng*"] * (source == "run"))
        assert report.tensors == 2
        assert torch.equal(holdfast.load(tmp_path / "out")["model"]["weight"], net.weight)


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config)
    net.save_pretrained(tmp_path / "hub")
    holdfast.convert(tmp_path / "hub" / "model.safetensors", tmp_path / "out", shards=5)
    config.save_pretrained(tmp_path / "out")
    other, said = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    with pytest.raises(StorageError, match=r"is a folder with other things in it, such as config\.json"):
        holdfast.convert(tmp_path / "hub" / "model.safetensors", tmp_path / "out", shards=2)
    assert (tmp_path / "out" / "config.json").exists()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [0, -1, "0", "many", "0GB", "5 GB", 1.5, True, "", "4\n"], ids=repr)
def test_a_number_of_shards_that_is_none(file: Path, tmp_path: Path, shards: Any) -> None:
    with pytest.raises(ArgumentError, match="a number of files above 0 is wanted, or the most bytes of one: 4, or 5GB"):
        holdfast.convert(file, tmp_path / "out", shards=shards)
    assert os.listdir(tmp_path) == [file.name]


def test_more_shards_than_tensors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="7 shards of 6 tensors: each has one at least, and none is cut"):
        holdfast.convert(file, tmp_path / "out", shards=7)
    holdfast.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(ArgumentError, match="shards of 0 tensors"):
        holdfast.convert(tmp_path / "none.pt", tmp_path / "out", shards="5GB")
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_a_folder_of_shards(file: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a file; shards need a folder"):
        holdfast.convert(file, file, shards=2)
    with pytest.raises(ArgumentError, match="shards are safetensors files; leave format='pt' out"):
        holdfast.convert(file, tmp_path / "out", shards=2, format="pt")
    with pytest.raises(ArgumentError, match="shards are written into a folder; give its path, not a BytesIO"):
        holdfast.convert(file, io.BytesIO(), shards=2)
    with pytest.raises(ArgumentError, match="shards are written into a folder of a disk"):
        holdfast.convert(file, "memory://bucket/out", shards=2)
    for key in ("total_size", "holdfast"):
        holdfast.save({"w": torch.ones(2)}, tmp_path / "a.pt", metadata={key: "x"})
        with pytest.raises(UnsupportedValue, match=f"metadata key '{key}' is one that an index of shards needs"):
            holdfast.convert(tmp_path / "a.pt", tmp_path / "out", shards=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_can_not_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Syscalls, "mkdir", refused)
    with pytest.raises(StorageError, match="Permission denied"):
        holdfast.convert(file, tmp_path / "out", shards=2)
    assert not (tmp_path / "out").exists()


def test_an_index_that_no_reader_takes_is_not_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.formats.sharding.INDEX_LIMIT", 100)
    with pytest.raises(UnsupportedValue, match=r"names and plain values take .* bytes, an index has 100 at most"):
        holdfast.convert(file, tmp_path / "out", shards=2)
    assert os.listdir(tmp_path) == [file.name]


# ---- all or nothing --------------------------------------------------------------------------------------------------


def test_an_earlier_conversion_is_exchanged_in_one_step(file: Path, tmp_path: Path) -> None:
    holdfast.convert(file, tmp_path / "out", shards=4)
    holdfast.convert(tmp_path / "out", tmp_path / "out", shards=2)  # out of itself
    assert len(os.listdir(tmp_path / "out")) == 3
    assert set(os.listdir(tmp_path)) == {file.name, "out"}
    (tmp_path / "link").symlink_to(tmp_path / "out")
    holdfast.convert(file, tmp_path / "link", shards=3)
    assert (tmp_path / "link").is_symlink()
    assert len(os.listdir(tmp_path / "out")) == 4


@pytest.mark.parametrize("call", ["pwritev", "fsync", "exchange", "open_new"])
def test_a_failure_leaves_what_was_there(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    holdfast.convert(file, tmp_path / "out", shards=4)

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Syscalls, call, failing)
    with pytest.raises(StorageError, match="No space left"):
        holdfast.convert(file, tmp_path / "out", shards=2)
    monkeypatch.undo()
    assert len(os.listdir(tmp_path / "out")) == 5
    assert holdfast.verify(tmp_path / "out").status == "OK"
    assert set(os.listdir(tmp_path)) == {file.name, "out"}


def test_what_is_put_there_meanwhile_is_not_removed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdfast.convert(file, tmp_path / "out", shards=2)
    real = index.encode_index

    def late(*given: Any) -> bytes:
        (tmp_path / "out" / "config.json").write_text("{}")
        return real(*given)

    monkeypatch.setattr("holdfast.formats.sharding.encode_index", late)
    with pytest.raises(StorageError, match=r"other things in it, such as config\.json"):
        holdfast.convert(file, tmp_path / "out", shards=3)
    assert len(os.listdir(tmp_path / "out")) == 4


def test_shards_that_differ_from_the_source_are_not_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = index.encode_index

    def flipped(*given: Any) -> bytes:
        (shard,) = tmp_path.glob(".out.partial/model-00001-*")
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        return real(*given)

    monkeypatch.setattr("holdfast.formats.sharding.encode_index", flipped)
    with pytest.raises(CorruptFile, match="read again, `layer"):
        holdfast.convert(file, tmp_path / "out", shards=3)
    assert os.listdir(tmp_path) == [file.name]


# ---- how it is cut, and how much memory it takes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "cut", "wanted"),
    [
        ([1, 1, 1, 1], Cut(count=2), [2, 2]),
        ([9, 1, 1, 1], Cut(count=2), [1, 3]),
        ([1, 1, 1, 9], Cut(count=2), [3, 1]),
        ([1, 1, 9, 1], Cut(count=3), [2, 1, 1]),
        ([0, 0, 0], Cut(count=3), [1, 1, 1]),
        ([0, 0, 5], Cut(count=1), [3]),
        ([3, 3, 3], Cut(size=6), [2, 1]),
        ([9, 1, 1, 9], Cut(size=2), [1, 2, 1]),
    ],
)
def test_shards_are_even_or_below_their_size(lengths: list[int], cut: Cut, wanted: list[int]) -> None:
    memory = MemorySource(bytes(10))
    entries = [Packed(str(n), "uint8", (length,), memory, 0, length) for n, length in enumerate(lengths)]
    found = list(divided(entries, cut, "f"))
    assert [len(one) for one in found] == wanted
    assert [entry for one in found for entry in one] == entries


def test_memory_stays_small(tmp_path: Path) -> None:
    big = {str(n): torch.full((8_000_000,), float(n)) for n in range(8)}
    theirs.save_file(big, tmp_path / "model.safetensors")
    del big
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    holdfast.convert(tmp_path / "model.safetensors", tmp_path / "out", shards=3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # of 256 MB


# ---- an index from anywhere ------------------------------------------------------------------------------------------


@pytest.fixture
def shards(file: Path, tmp_path: Path) -> Path:
    holdfast.convert(file, tmp_path / "out", shards=2)
    return tmp_path / "out" / INDEX


def test_every_bit_of_an_index_is_covered(shards: Path) -> None:
    data = shards.read_bytes()
    for at in range(len(data)):
        for bit in (1, 64):
            damaged = bytearray(data)
            damaged[at] ^= bit
            shards.chmod(0o644)
            shards.write_bytes(damaged)
            try:
                tree = holdfast.load(shards)
            except HoldfastError:
                continue
            assert at < 24, f"byte {at}: nothing was noticed"  # without its key it is anyone's index, and says so
            assert holdfast.verify(shards).status == "OK"
            assert len(tree) == 6


def rewritten(shards: Path, record: Any) -> None:
    shards.chmod(0o644)
    shards.write_text(json.dumps({**json.loads(shards.read_text()), "metadata": {"holdfast": record}}))


def test_an_index_that_lies(shards: Path) -> None:
    record = json.loads(shards.read_text())["metadata"]["holdfast"]
    rewritten(shards, record)
    with pytest.raises(CorruptFile, match=r"`: the index has digest .*, the record in it says .*: damaged"):
        holdfast.load(shards)
    rewritten(shards, {**record, "version": 9})
    with pytest.raises(UnknownFormat, match="its record has version 9"):
        holdfast.load(shards)
    for odd_one in ("x", 3, [], {}):
        rewritten(shards, odd_one)
        with pytest.raises(CorruptFile, match="is no index of shards"):
            holdfast.load(shards)
    weights = json.loads(shards.read_text())["weight_map"]
    for tree in (
        {"w": {"$tensor": "nowhere"}},
        {"w": {"$tensor": ["layer.0.weight", "float32", [99], None, 0, False, None]}},
    ):
        shards.write_bytes(encode_index(tree, {}, {}, weights))
        with pytest.raises(CorruptFile, match="its record"):
            holdfast.load(shards)
