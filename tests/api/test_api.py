"""What users call, as they call it."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, ConfigMissing, CorruptFile, NotFound, StorageError, UnsupportedValue
from holdfast.storage.syscalls import Syscalls


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


# -- save


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.pt", "pt"),
        ("a.pth.tar", "pt"),
        ("a.bin", "pt"),
        ("a", "pt"),
        ("a.ckpt", "pt"),
        ("a.safetensors", "safetensors"),
    ],
)
def test_the_suffix_decides_the_format(name: str, form: str, tmp_path: Path) -> None:
    saved = holdfast.save(net(), tmp_path / "new" / "deep" / name)
    assert (saved.format, saved.file) == (form, str(tmp_path / "new" / "deep" / name))
    assert saved.tensors == 4
    assert saved.bytes == (tmp_path / "new" / "deep" / name).stat().st_size
    assert saved.seconds > 0
    loaded = holdfast.load(tmp_path / "new" / "deep" / name)
    assert torch.equal(loaded["0.weight"], net()[0].weight)


def test_format_wins_over_the_suffix_and_reading_goes_by_content(tmp_path: Path) -> None:
    saved = holdfast.save(net(), tmp_path / "a.pt", format="safetensors")
    assert saved.format == "safetensors"
    assert holdfast.open(tmp_path / "a.pt").format == "safetensors"


def test_a_str_path(tmp_path: Path) -> None:
    holdfast.save({"a": 1}, str(tmp_path / "a.pt"))
    assert holdfast.load(str(tmp_path / "a.pt")) == {"a": 1}


@pytest.mark.parametrize(
    ("f", "how", "message"),
    [
        (5, {}, r"can't save to a int: give a path or a file object opened with mode 'wb'"),
        ("a.pt", {"format": "onnx"}, r"format 'onnx' is unknown; there are: pt, safetensors"),
        ("ftp://host/a.pt", {}, r"`ftp://host/a.pt`: ftp:// is no object store known here; there are: s3://"),
        ("a.pt", {"metadata": {"a": 1}}, r"metadata maps strings to strings; 'a' is 1"),
        ("a.pt", {"config": {"a": 1}}, r"config= belongs to one module, 2 are saved; save them apart"),
    ],
)
def test_calls_that_are_wrong(f: Any, how: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        holdfast.save({"a": net(), "b": net()}, f, **how)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_what_was_there_survives_a_value_that_cant_be_stored(name: str, tmp_path: Path) -> None:
    holdfast.save({"a": torch.ones(3)}, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UnsupportedValue, match=r"`b`: a value of type builtin_function_or_method can't be stored"):
        holdfast.save({"a": torch.zeros(3), "b": print}, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("call", ["allocate", "pwritev", "fsync", "rename"])
def test_what_was_there_survives_a_full_disk(
    call: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdfast.save({"a": torch.ones(3)}, tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Syscalls, call, full)
        with pytest.raises(StorageError, match=r"No space left on device"):
            holdfast.save({"a": torch.zeros(3)}, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]
    holdfast.save({"a": torch.zeros(3)}, tmp_path / name)
    assert torch.equal(holdfast.load(tmp_path / name)["a"], torch.zeros(3))


def test_a_folder_is_no_destination(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is a folder"):
        holdfast.save({"a": 1}, tmp_path)


class WriteOnly:
    """As a socket or a compressor: write() and nothing else, a little at a time."""

    def __init__(self, most: int = 1000) -> None:
        self.data, self.most = b"", most

    def write(self, block: Any) -> int:
        part = bytes(block[: self.most])
        self.data += part
        return len(part)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_file_object_that_only_writes(form: Any) -> None:
    stream = WriteOnly()
    saved = holdfast.save(net(), stream, format=form)  # type: ignore[arg-type]
    assert saved.file == "<WriteOnly>"
    assert saved.bytes == len(stream.data)
    assert torch.equal(holdfast.load(io.BytesIO(stream.data))["0.weight"], net()[0].weight)


class Failing:
    def __init__(self, error: Any) -> None:
        self.error = error

    def write(self, block: Any) -> int:
        if isinstance(self.error, int):
            return self.error
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"`<Failing>`: can't be written: .*No space left"),
        (0, r"`<Failing>`: takes no more bytes, before all [\d,]+ were written"),
    ],
)
def test_a_file_object_that_fails(error: Any, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        holdfast.save({"a": 1}, Failing(error))  # type: ignore[arg-type]


def test_a_file_object_that_takes_no_bytes(tmp_path: Path) -> None:
    with (
        (tmp_path / "a.pt").open("w") as text,
        pytest.raises(ArgumentError, match=r"give a file object opened with mode 'wb'"),
    ):
        holdfast.save({"a": 1}, text)  # type: ignore[arg-type]
    stream = io.BytesIO()
    stream.close()
    with pytest.raises(ArgumentError, match=r"`<BytesIO>`: can't be written to: .*closed file"):
        holdfast.save({"a": 1}, stream)


def test_objects_anywhere_in_the_tree(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    holdfast.save([{"deep": (model, None)}, optimizer], tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(loaded[0]["deep"][0]) == list(model.state_dict())
    assert loaded[1] == optimizer.state_dict()


def test_metadata_of_modules_and_of_the_user(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        holdfast.save(nn.BatchNorm1d(2), tmp_path / name, metadata={"who": "me", "ü\n": "😀"})
        with holdfast.open(tmp_path / name) as file:
            assert file.metadata == {"who": "me", "ü\n": "😀"}
        assert holdfast.load(tmp_path / name)._metadata[""] == {"version": 2}


# -- load


def test_load_says_what_is_missing_or_broken(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(NotFound, match=r"no such file or folder; near: .*best.pt"):
        holdfast.load(tmp_path / "bst.pt")
    holdfast.save(net(), tmp_path / "cut.pt")
    data = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFile, match=r"cut.pt"):
        holdfast.load(tmp_path / "cut.pt")


# -- open


def test_open_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        holdfast.save({"model": net(), "big": torch.ones(1000), "n": 1}, tmp_path / name)
        with holdfast.open(tmp_path / name) as file:
            assert file.keys() == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias", "big"]
            assert (len(file), list(file)) == (5, file.keys())
            assert "big" in file
            assert "n" not in file
            spec = file["model.0.weight"].spec
            assert (spec.dtype, spec.shape) == ("float32", (4, 3))
            assert repr(file["big"]) == "LazyTensor(big: (1000,) float32)"
            data = bytearray((tmp_path / name).read_bytes())
            at = data.index(torch.ones(100).numpy().tobytes())
            data[at] ^= 1
            with (tmp_path / name).open("r+b") as again:
                again.write(data)
            assert torch.equal(file["model.0.weight"].read(), net()[0].weight)
            assert file["model.0.weight"].read("meta").is_meta
            with pytest.raises(CorruptFile, match=r"corrupt"):
                file["big"].read()
            with pytest.raises(NotFound, match=r"has no tensor `0.weight`; there are `model.0.weight`$") as caught:
                file["0.weight"]
            assert caught.value.path == "0.weight"
            with pytest.raises(NotFound, match=r"has no tensor `x`; there are `model.0.weight`, `model.0.bias`"):
                file["x"]


# -- build


class Sized(nn.Module):
    def __init__(self, width: int, *, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


class FromConfig(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(*config["sizes"])


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_build_from_a_config(name: str, tmp_path: Path) -> None:
    saved = Sized(3, depth=2)
    holdfast.save(saved, tmp_path / name, config={"width": 3, "depth": 2})
    built = holdfast.build(tmp_path / name, factory=Sized)
    assert torch.equal(built.layers[1].weight, saved.layers[1].weight)
    assert not built.training
    assert holdfast.build(tmp_path / name, "cpu", factory=Sized, mode="train").training
    one = FromConfig({"sizes": (2, 3)})
    holdfast.save({"model": one, "epoch": 1}, tmp_path / name, config={"sizes": (2, 3), "odd": {1: torch.float16}})
    assert torch.equal(holdfast.build(tmp_path / name, factory=FromConfig).fc.weight, one.fc.weight)


def test_build_without_a_config(tmp_path: Path) -> None:
    holdfast.save(net(1), tmp_path / "a.pt")
    assert torch.equal(holdfast.build(tmp_path / "a.pt", factory=net)[0].weight, net(1)[0].weight)
    torch.save({"state_dict": net(1).state_dict(), "epoch": 3}, tmp_path / "t.pt")
    assert torch.equal(holdfast.build(tmp_path / "t.pt", factory=lambda: net(5))[0].weight, net(1)[0].weight)


def test_build_says_what_it_lacks(tmp_path: Path) -> None:
    torch.save(Sized(3).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConfigMissing, match=r"Sized\(width.* needs arguments .*holdfast.save\(model, ..., config=\{"):
        holdfast.build(tmp_path / "a.pt", factory=Sized)
    holdfast.save(Sized(3), tmp_path / "b.pt", config={"size": 3, "x": 1})
    with pytest.raises(ArgumentError, match=r"takes neither the keywords of the recorded config \{'size': 3, 'x': 1\}"):
        holdfast.build(tmp_path / "b.pt", factory=lambda *, depth: net(depth))
    with pytest.raises(ArgumentError, match=r"returned a dict, a torch module is wanted"):
        holdfast.build(tmp_path / "a.pt", factory=dict)
    with pytest.raises(ArgumentError, match=r"build's map_location takes a device, its name or 'auto'"):
        holdfast.build(tmp_path / "b.pt", {"cpu": "cpu"}, factory=lambda size, x: Sized(size))


# -- convert


@pytest.mark.parametrize(("first", "second"), [("a.pt", "b.safetensors"), ("a.safetensors", "b.pt")])
def test_convert_keeps_everything(first: str, second: str, tmp_path: Path) -> None:
    base = torch.arange(100.0)
    tree = {
        "model": net(),
        "views": [base[:60], base[40:]],
        "strided": torch.arange(6.0).reshape(2, 3).t(),
        "parameter": nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "values": {"a": (1, {2}), 3: None},
        "empty": torch.empty(0, 3),
    }
    holdfast.save(tree, tmp_path / first, metadata={"k": "v"})
    saved = holdfast.convert(tmp_path / first, tmp_path / second)
    assert saved.tensors >= 9
    loaded = holdfast.load(tmp_path / second)
    assert list(loaded) == list(tree)
    assert loaded["values"] == tree["values"]
    loaded["views"][0][50] = -1.0
    assert loaded["views"][1][10] == -1.0
    assert loaded["strided"].stride() == (1, 3)
    assert isinstance(loaded["parameter"], nn.Parameter)
    assert torch.equal(loaded["sparse"].to_dense(), torch.eye(3))
    with holdfast.open(tmp_path / second) as file:
        assert file.metadata == {"k": "v"}
    assert holdfast.verify(tmp_path / second).status == "OK"
    live = net(4)
    holdfast.restore(tmp_path / second, model=live)
    assert torch.equal(live[0].weight, net()[0].weight)


def test_a_damaged_source_is_not_converted(tmp_path: Path) -> None:
    holdfast.save({"a": torch.full((50,), 3.0)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(torch.full((50,), 3.0).numpy().tobytes()) + 9] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CorruptFile, match=r"corrupt"):
        holdfast.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert os.listdir(tmp_path) == ["a.pt"]


# -- summary and snapshot


def test_a_snapshot_shares_nothing_and_keeps_ties() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    before = model["a"].weight.detach().clone()
    best = holdfast.snapshot({"model": model, "epochs": [1]})
    with torch.no_grad():
        model["a"].weight.zero_()
    assert torch.equal(best["model"]["a.weight"], before)
    assert best["model"]["a.weight"].data_ptr() == best["model"]["b.weight"].data_ptr()
    holdfast.restore(best, model=model)
    assert torch.equal(model["b"].weight, before)
    assert best["epochs"] == [1]


def test_a_snapshot_of_an_optimizer_restores_it() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    best = holdfast.snapshot({"model": model, "optimizer": optimizer})
    wanted = optimizer.state[model[0].weight]["exp_avg"].clone()
    optimizer.step()
    assert not torch.equal(optimizer.state[model[0].weight]["exp_avg"], wanted)
    holdfast.restore(best, model=model, optimizer=optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], wanted)


def test_summary_of_a_module_an_optimizer_a_tree_and_a_file(tmp_path: Path) -> None:
    model = net()
    whole = holdfast.summary(model)
    assert [row.name for row in whole.tensors] == list(model.state_dict())
    assert whole.structure == repr(model)
    assert whole.bytes == sum(value.nbytes for value in model.state_dict().values())
    assert "  0.weight  (4, 3)             float32   cpu" in str(whole)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert "group 0: lr=0.5, momentum=0.9" in str(holdfast.summary(optimizer))
    holdfast.save({"model": model, "optimizer": optimizer, "epoch": 3}, tmp_path / "a.pt")
    file = holdfast.summary(tmp_path / "a.pt")
    assert "optimizer.state.0.weight.momentum_buffer" in [row.name for row in file.tensors]
    assert file.values["epoch"] == 3
    assert file.groups["optimizer"][0]["params"] == list(model.state_dict())
    assert file.values.keys() == {"epoch"}
    beside = holdfast.summary({"net": model, "opt": optimizer})
    assert f"net: {model!r}" == beside.structure
    assert "opt group 0: lr=0.5, momentum=0.9" in str(beside)
    assert beside.groups["opt"][0]["params"] == list(model.state_dict())
    tied = torch.ones(2)
    rows = holdfast.summary({"a": tied, "b": tied, "\x1b[2J": torch.ones(1)}).tensors
    assert [row.shares_with for row in rows] == [None, "a", None]
    assert "\x1b" not in str(holdfast.summary({"\x1b[2J": torch.ones(1), "v": "\x1b[2J"}))


def test_summary_of_an_optimizer_alone_knows_the_names_that_torch_keeps() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.5, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = holdfast.summary(optimizer)
    assert found.tensors[0].name == "state.0.weight.momentum_buffer"
    assert found.groups[""][0]["params"] == list(model.state_dict())
    assert "\ngroup 0: lr=0.5" in str(found)
    assert found.values == {}


@pytest.mark.parametrize("groups", [3, [3], [{}], [{"params": "ab"}], [{"params": [[]]}], {"params": [0]}])
def test_summary_of_what_only_looks_like_an_optimizer(groups: Any) -> None:
    tree = {"state": {}, "param_groups": groups}
    for found in (holdfast.summary(tree).values, holdfast.summary({"opt": tree}).values["opt"]):
        assert found["param_groups"] == groups
    assert holdfast.summary(tree).groups == {}


def test_all_damaged_places_are_counted(tmp_path: Path) -> None:
    holdfast.save({"a": torch.full((64,), 3.0), "b": torch.full((64,), 5.0)}, tmp_path / "w.pt")
    data = bytearray((tmp_path / "w.pt").read_bytes())
    for value in (3.0, 5.0):
        data[data.index(torch.full((64,), value).numpy().tobytes())] ^= 1
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(CorruptFile, match=r"`a`.* corrupt; other damaged places: 1\. Nothing was loaded"):
        holdfast.load(tmp_path / "w.pt")
