"""rename, strip, extract and merge: over files of torch, of safetensors, of ours, and checkpoints of runs."""

from __future__ import annotations

import collections
import io
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import holdfast
from holdfast import surgery
from holdfast.errors import (
    AmbiguousPart,
    ArgumentError,
    CorruptFile,
    MismatchError,
    MissingPart,
    NotFound,
    UnsupportedValue,
)
from holdfast.formats import torchzip, writing
from holdfast.formats.base import Document
from holdfast.storage.staged import StagedFile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.encoder(x))
        return result


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net().encoder
        self.head = nn.Linear(8, 3)


class Other:
    """A class that no file may name."""


def trained() -> tuple[Net, torch.optim.Adam]:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


def equal(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def refused(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, match=re.escape(text))


@pytest.fixture(params=["torch", "holdfast", "safetensors", "run"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Net]:
    """One training's state as each kind of file."""
    net, optimizer = trained()
    state = {"model": net, "optimizer": optimizer, "epoch": 3}
    if request.param == "torch":
        plain = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
        torch.save(plain, tmp_path / "last.ckpt")
        return str(tmp_path / "last.ckpt"), net
    if request.param == "run":
        with holdfast.Run(tmp_path / "run", model=net, optimizer=optimizer) as run:
            run.save(step=1, metrics={"loss": 1.0})
        return f"{tmp_path / 'run'}@last", net
    file = tmp_path / ("last.pt" if request.param == "holdfast" else "last.safetensors")
    holdfast.save(state, file)
    return str(file), net


# ---- strip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_strip_leaves_the_weights_and_says_what_it_left_out(
    checkpoint: tuple[str, Net], suffix: str, tmp_path: Path
) -> None:
    src, net = checkpoint
    dst = tmp_path / f"weights{suffix}"
    report = surgery.strip(src, dst)
    read = torch.load(dst, weights_only=True) if suffix == ".pt" else safetensors.torch.load_file(dst)
    assert {key: read[key].tolist() for key in read} == {key: t.tolist() for key, t in net.state_dict().items()}
    assert "optimizer" in report.left_out
    assert "model" not in report.left_out
    moments = sum(2 * p.numel() * 4 for p in net.parameters())
    assert moments <= report.left_out["optimizer"] <= moments + 64 * len(list(net.parameters()))
    assert report.saved == sum(report.left_out.values())
    assert report.bytes == dst.stat().st_size
    assert report.tensors == len(net.state_dict())
    fresh = Net()
    assert holdfast.restore(dst, model=fresh).is_exact
    assert equal(fresh.state_dict(), net.state_dict())


def test_a_stripped_file_still_builds(tmp_path: Path) -> None:
    net = nn.Linear(4, 2)
    config = {"in_features": 4, "out_features": 2}
    holdfast.save({"model": net, "epoch": 1}, tmp_path / "last.pt", config=config, metadata={"license": "MIT"})
    surgery.strip(tmp_path / "last.pt", tmp_path / "net.pt")
    assert torch.equal(holdfast.build(tmp_path / "net.pt", factory=nn.Linear).weight, net.weight)
    with holdfast.open(tmp_path / "net.pt") as ckpt:
        assert ckpt.metadata == {"license": "MIT"}


def test_strip_takes_the_weights_out_of_a_lightning_file_that_holds_objects(tmp_path: Path) -> None:
    net = Net()
    torch.save({"state_dict": net.state_dict(), "callbacks": Other(), "epoch": 3}, tmp_path / "l.ckpt")
    report = surgery.strip(tmp_path / "l.ckpt", tmp_path / "net.pt")
    assert list(report.left_out) == ["callbacks", "epoch"]
    assert equal(torch.load(tmp_path / "net.pt"), net.state_dict())


def test_strip_stores_what_is_shared_once_and_views_without_the_rest(tmp_path: Path) -> None:
    large = torch.randn(100_000)
    weight = torch.randn(30, 10)
    torch.save({"state_dict": {"a": weight, "tied": weight, "view": large[10:20]}, "rest": large}, tmp_path / "a.pt")
    report = surgery.strip(tmp_path / "a.pt", tmp_path / "b.pt")
    read = torch.load(tmp_path / "b.pt")
    assert read["a"].data_ptr() == read["tied"].data_ptr()
    assert torch.equal(read["view"], large[10:20])
    assert report.bytes < 10_000
    assert report.left_out == {"rest": 0}  # its memory is that of the view, whose part of it is taken


def test_strip_of_several_models_wants_to_be_told_which(tmp_path: Path) -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    holdfast.save({"G": one, "D": other, "step": 1}, tmp_path / "gan.pt")
    with refused(AmbiguousPart, "gan.pt`: several parts could be the model: say which with at='G', at='D'"):
        surgery.strip(tmp_path / "gan.pt", tmp_path / "g.pt")
    report = surgery.strip(tmp_path / "gan.pt", tmp_path / "d.pt", at="D")
    assert torch.equal(torch.load(tmp_path / "d.pt")["weight"], other.weight)
    assert list(report.left_out) == ["G", "step"]


def test_strip_without_weights_says_what_there_is(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "values": [1.0]}, tmp_path / "a.pt")
    with refused(MissingPart, "a.pt`: no state_dict of a model is found; it has `epoch`, `values`. Say where one is"):
        surgery.strip(tmp_path / "a.pt", tmp_path / "b.pt")
    with refused(MismatchError, "a.pt`: `values` is no state_dict: a dict of tensors by name is wanted"):
        surgery.strip(tmp_path / "a.pt", tmp_path / "b.pt", at="values")
    torch.save({"model": {"epoch": 1}}, tmp_path / "c.pt")
    with refused(MismatchError, "c.pt`: `model` has no tensors; say where the weights are with at='...'"):
        surgery.strip(tmp_path / "c.pt", tmp_path / "b.pt", at="model")
    torch.save({}, tmp_path / "empty.pt")
    with refused(MismatchError, "empty.pt`: `(root)` has no tensors"):
        surgery.average([tmp_path / "empty.pt", tmp_path / "empty.pt"], tmp_path / "b.pt")
    torch.save(Net(), tmp_path / "whole.pt")
    with refused(MissingPart, "`holdfast rescue` takes the weights out of a pickled module"):
        surgery.strip(tmp_path / "whole.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


# ---- rename ---------------------------------------------------------------------------------------------------------


def test_rename_moves_weights_versions_and_the_names_of_the_optimizer(
    checkpoint: tuple[str, Net], tmp_path: Path
) -> None:
    src, net = checkpoint
    dst = tmp_path / "new.pt"
    report = surgery.rename(src, dst, rename={r"^encoder\.": "backbone."})
    state = net.state_dict()
    assert report.renamed == {key: key.replace("encoder", "backbone") for key in state if key.startswith("encoder.")}
    assert not report.left_out
    read = torch.load(dst, weights_only=True)
    assert list(read["model"]) == [key.replace("encoder", "backbone") for key in state]
    assert read["model"]._metadata["backbone.1"] == {"version": 2}
    assert read["model"]._metadata["backbone.2"] == {"version": 1}
    assert "encoder.1" not in read["model"]._metadata
    fresh = Renamed()
    optimizer = torch.optim.Adam(fresh.parameters())
    back = holdfast.restore(dst, model=fresh, optimizer=optimizer)
    assert back.is_exact
    assert torch.equal(fresh.backbone[0].weight, net.encoder[0].weight)
    assert optimizer.state_dict()["state"][0]["step"] == 1
    assert any("by position" in note for note in back.notes) == src.endswith(".ckpt")  # torch keeps no names


def test_the_names_that_torchs_own_optimizers_keep_follow_too(tmp_path: Path) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", rename={"encoder": "backbone"})
    names = torch.load(tmp_path / "b.pt")["optimizer"]["param_groups"][0]["param_names"]
    assert names == [name for name, _ in Renamed().named_parameters()]


def test_in_a_file_of_several_models_only_one_ones_names_change(tmp_path: Path) -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    parameters = [*one.parameters(), *other.parameters()]
    holdfast.save({"G": one, "D": other, "opt": torch.optim.SGD(parameters)}, tmp_path / "gan.pt")
    surgery.rename(tmp_path / "gan.pt", tmp_path / "new.pt", at="G", add_prefix="fc")
    read = torch.load(tmp_path / "new.pt")
    assert list(read["G"]) == ["fc.weight", "fc.bias"]
    assert list(read["D"]) == ["weight", "bias"]
    with holdfast.open(tmp_path / "new.pt") as ckpt:
        names = ckpt._container.document().objects["opt"]["param_names"]
    assert names == ["G.fc.weight", "G.fc.bias", "D.weight", "D.bias"]


def test_names_that_may_be_another_models_stay_and_are_said(tmp_path: Path) -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.named_parameters()).state_dict()
    torch.save({"G": one.state_dict(), "D": other.state_dict(), "opt_D": optimizer}, tmp_path / "gan.pt")
    report = surgery.rename(tmp_path / "gan.pt", tmp_path / "new.pt", at="G", add_prefix="fc")
    assert "the names in opt_D may be another model's and stay" in report.notes
    assert torch.load(tmp_path / "new.pt")["opt_D"] == optimizer


def test_prefixes_go_and_come(tmp_path: Path) -> None:
    net = Net()
    torch.save(nn.DataParallel(net).state_dict(), tmp_path / "dp.pth")
    report = surgery.rename(tmp_path / "dp.pth", tmp_path / "net.safetensors", strip_prefix="module")
    assert set(report.renamed) == {f"module.{key}" for key in net.state_dict()}
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    surgery.rename(tmp_path / "net.safetensors", tmp_path / "again.pth", add_prefix="module")
    read = torch.load(tmp_path / "again.pth")
    nn.DataParallel(Net()).load_state_dict(read)
    assert read._metadata["module.encoder.1"] == {"version": 2}
    assert torch.load(tmp_path / "dp.pth")._metadata["module"] == read._metadata["module"]


def test_dropped_keys_are_left_out_and_counted(tmp_path: Path) -> None:
    net, optimizer = trained()
    holdfast.save({"model": net, "optimizer": optimizer}, tmp_path / "a.pt")
    report = surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", drop=["head.*"])
    assert report.left_out == {"head.weight": 3 * 8 * 4, "head.bias": 3 * 4}
    assert report.saved == 3 * 8 * 4 + 3 * 4
    assert "the state of dropped parameters is still in optimizer" in report.notes
    model = torch.load(tmp_path / "b.pt")["model"]
    assert list(model) == [key for key in net.state_dict() if not key.startswith("head")]
    assert "head" not in model._metadata


def test_a_recorded_structure_does_not_outlive_its_names(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    holdfast.save(net, tmp_path / "a.pt")
    report = surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", rename={"^0": "first"})
    assert any("build with factory=" in note for note in report.notes)
    with holdfast.open(tmp_path / "b.pt") as ckpt:
        assert "structure" not in ckpt._container.document().objects[""]


def test_an_ordered_dict_stays_one(tmp_path: Path) -> None:
    torch.save(collections.OrderedDict(b=torch.ones(1), a=torch.zeros(2)), tmp_path / "a.pt")
    surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", rename={"^b$": "c"})
    read = torch.load(tmp_path / "b.pt")
    assert type(read) is collections.OrderedDict
    assert list(read) == ["c", "a"]


def test_parts_deep_inside_are_renamed_and_what_nests_deeper_is_kept(tmp_path: Path) -> None:
    deep: Any = {"end": torch.ones(1)}
    for _ in range(80):
        deep = [deep]
    inner = collections.defaultdict(dict, net={"w": torch.ones(2)})
    torch.save({"a": ({"b": inner},), "deep": deep}, tmp_path / "a.pt")
    surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", at="a.0.b.net", add_prefix="fc")
    read = torch.load(tmp_path / "b.pt")
    assert list(read["a"][0]["b"]["net"]) == ["fc.w"]
    for _ in range(80):
        read["deep"] = read["deep"][0]
    assert torch.equal(read["deep"]["end"], torch.ones(1))


def test_a_beginning_of_names_is_no_part_to_rename_or_strip(tmp_path: Path) -> None:
    torch.save({"model": Net().state_dict()}, tmp_path / "a.pt")
    with refused(MissingPart, "a.pt`: has no part `model.encoder`; there are `encoder.0.weight`"):
        surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", at="model.encoder", add_prefix="x")
    with refused(MissingPart, "a.pt`: has no part `model.encoder`"):
        surgery.strip(tmp_path / "a.pt", tmp_path / "b.pt", at="model.encoder")


@pytest.mark.parametrize("verb", ["rename", "strip", "merge"])
def test_hostile_nesting_is_an_error_of_ours_or_no_error(verb: str, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    torch.save({"model": {"w": torch.ones(1)}, "deep": deep}, tmp_path / "a.pt")
    try:
        if verb == "rename":
            surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", add_prefix="x")
        elif verb == "strip":
            surgery.strip(tmp_path / "a.pt", tmp_path / "b.pt")
        else:
            surgery.merge([tmp_path / "a.pt"], tmp_path / "b.pt")
    except holdfast.HoldfastError:
        assert not (tmp_path / "b.pt").exists()
        assert verb != "strip"
    else:
        assert verb == "strip"


def test_rename_refuses_what_changes_nothing_or_too_much(tmp_path: Path) -> None:
    src, dst = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"fc1.weight": torch.ones(1), "fc2.weight": torch.zeros(1)}, src)
    with refused(ArgumentError, "rename needs a rule: rename, strip_prefix, add_prefix or drop"):
        surgery.rename(src, dst)
    with refused(MismatchError, "a.pt`: no name changes under these rules; the names are `fc1.weight`, `fc2.weight`"):
        surgery.rename(src, dst, strip_prefix="module")
    with refused(MismatchError, "a.pt`: `fc1.weight` and `fc2.weight` both become `fc.weight`; make the rules tell"):
        surgery.rename(src, dst, rename={r"fc\d": "fc"})
    with refused(MismatchError, "a.pt`: all 2 names would be dropped"):
        surgery.rename(src, dst, drop=["*"])
    with refused(ArgumentError, "rename '(' -> 'x'"):
        surgery.rename(src, dst, rename={"(": "x"})
    with refused(ArgumentError, "write drop=['fc*']"):
        surgery.rename(src, dst, drop="fc*")
    assert not dst.exists()


def test_a_file_with_foreign_objects_can_not_be_written_again(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "hook": Other()}, tmp_path / "a.pt")
    with refused(UnsupportedValue, "hook"):
        surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", add_prefix="net")
    assert not (tmp_path / "b.pt").exists()


# ---- extract --------------------------------------------------------------------------------------------------------


def test_extract_takes_an_object_a_tensor_a_value_and_a_modules_weights(
    checkpoint: tuple[str, Net], tmp_path: Path
) -> None:
    src, net = checkpoint
    surgery.extract(src, tmp_path / "m.safetensors", "model")
    assert set(safetensors.torch.load_file(tmp_path / "m.safetensors")) == set(net.state_dict())
    surgery.extract(src, tmp_path / "w.pt", "model.head.weight")
    assert torch.equal(torch.load(tmp_path / "w.pt"), net.head.weight)
    surgery.extract(src, tmp_path / "group.pt", "optimizer.param_groups.0.lr")
    assert torch.load(tmp_path / "group.pt") == 0.001
    report = surgery.extract(src, tmp_path / "encoder.pt", "model.encoder")
    encoder = torch.load(tmp_path / "encoder.pt")
    assert equal(encoder, net.encoder.state_dict())
    assert report.tensors == len(encoder)
    assert (encoder._metadata["1"], encoder._metadata[""]) == ({"version": 2}, {"version": 1})


def test_an_extracted_optimizer_keeps_its_names(tmp_path: Path) -> None:
    net, optimizer = trained()
    holdfast.save({"model": net, "optimizer": optimizer}, tmp_path / "a.pt")
    surgery.extract(tmp_path / "a.pt", tmp_path / "opt.pt", "optimizer")
    fresh = torch.optim.Adam(net.parameters())
    report = holdfast.restore(tmp_path / "opt.pt", model=None, optimizer=fresh)
    assert report.is_exact
    with holdfast.open(tmp_path / "opt.pt") as ckpt:
        assert ckpt._container.document().objects[""]["param_names"][0] == "encoder.0.weight"


def test_extract_refuses_what_is_not_there_or_twice_there(tmp_path: Path) -> None:
    src, dst = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": {"b": 1, "c": 2}, "a.b": 3}, src)
    with refused(MissingPart, "a.pt`: has no part `a.x`; there are `b`, `c`"):
        surgery.extract(src, dst, "a.x")
    with refused(MissingPart, "a.pt`: has no part `nothing`; there are `a`, `a.b`"):
        surgery.extract(src, dst, "nothing")
    with refused(AmbiguousPart, "a.pt`: has 2 parts called `a.b`"):
        surgery.extract(src, dst, "a.b")
    with refused(ArgumentError, "extract takes the dotted path of a part, such as 'model'; not ''"):
        surgery.extract(src, dst, "")
    assert not dst.exists()


# ---- merge ----------------------------------------------------------------------------------------------------------


def test_merge_by_name_makes_a_checkpoint_that_restores(tmp_path: Path) -> None:
    net, optimizer = trained()
    holdfast.save(net, tmp_path / "net.safetensors")
    holdfast.save({"optimizer": optimizer, "model": net}, tmp_path / "whole.pt")
    surgery.extract(tmp_path / "whole.pt", tmp_path / "opt.pt", "optimizer")
    report = surgery.merge(
        {"model": tmp_path / "net.safetensors", "optimizer": tmp_path / "opt.pt"}, tmp_path / "all.pt"
    )
    assert report.sources == [str(tmp_path / "net.safetensors"), str(tmp_path / "opt.pt")]
    fresh = Net()
    moments = torch.optim.Adam(fresh.parameters())
    back = holdfast.restore(tmp_path / "all.pt", model=fresh, optimizer=moments)
    assert back.is_exact
    assert not any("by position" in note for note in back.notes)
    assert equal(fresh.state_dict(), net.state_dict())


def test_merge_of_a_list_puts_the_shards_of_a_state_dict_together(tmp_path: Path) -> None:
    net = Net()
    state = net.state_dict()
    first = collections.OrderedDict((key, state[key]) for key in list(state)[:4])
    first._metadata = state._metadata  # type: ignore[attr-defined]
    torch.save(first, tmp_path / "1.bin")
    safetensors.torch.save_file({key: state[key] for key in list(state)[4:]}, tmp_path / "2.safetensors")
    surgery.merge([tmp_path / "1.bin", tmp_path / "2.safetensors"], tmp_path / "all.pt")
    read = torch.load(tmp_path / "all.pt")
    assert read._metadata == state._metadata
    fresh = Net()
    fresh.load_state_dict(read)
    assert equal(fresh.state_dict(), state)


def test_merge_refuses_conflicts_and_what_is_no_list_of_files(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "b.pt")
    torch.save(torch.zeros(1), tmp_path / "c.pt")
    a, b, c, dst = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt", tmp_path / "d.pt"
    with refused(MismatchError, f"`w` is in `{a}` and `{b}`. Give each file a name, merge({{'a': ..., 'b': ...}})"):
        surgery.merge([a, b], dst)
    with refused(MismatchError, "c.pt`: is no dict with names for keys; give it a name to merge it as a whole"):
        surgery.merge([a, c], dst)
    for wrong in ([], {}, str(a), None):
        with refused(ArgumentError, "merge takes files by name, {'model': 'net.pt'}, or a list of files; and at least"):
            surgery.merge(wrong, dst)  # type: ignore[arg-type]
    with refused(ArgumentError, "{1: ...} are not all names".replace("{1: ...}", "[1]")):
        surgery.merge({1: a}, dst)  # type: ignore[dict-item]
    holdfast.save({"x": torch.ones(1)}, tmp_path / "m1.pt", metadata={"by": "one"})
    holdfast.save({"y": torch.ones(1)}, tmp_path / "m2.pt", metadata={"by": "two"})
    with refused(MismatchError, "m2.pt`: metadata `by` is 'two', an earlier file has 'one'; save one of them without"):
        surgery.merge([tmp_path / "m1.pt", tmp_path / "m2.pt"], dst)
    with pytest.raises(NotFound):
        surgery.merge([a, tmp_path / "missing.pt"], dst)
    assert not dst.exists()


# ---- what all have in common ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("linked", [False, True])
def test_a_source_is_never_overwritten(checkpoint: tuple[str, Net], linked: bool, tmp_path: Path) -> None:
    src, _ = checkpoint
    with holdfast.open(src) as ckpt:
        segment = ckpt._container.segments()[0]
    own = Path(segment.source.name)
    before = own.read_bytes()
    dst = own
    if linked:
        dst = tmp_path / "link"
        dst.symlink_to(own)
    with refused(ArgumentError, "is a source itself, or lies in one; write to another file"):
        surgery.strip(src, dst)
    assert own.read_bytes() == before


def test_nothing_is_written_into_a_checkpoint_of_a_run(tmp_path: Path) -> None:
    net, optimizer = trained()
    with holdfast.Run(tmp_path / "run", model=net, optimizer=optimizer) as run:
        run.save(step=1)
    (step,) = (tmp_path / "run").glob("step-*")
    with refused(ArgumentError, "is a source itself, or lies in one"):
        surgery.strip(f"{tmp_path / 'run'}@last", step / "weights.pt")


def test_streams_are_read_and_written(tmp_path: Path) -> None:
    src, dst = io.BytesIO(), io.BytesIO()
    torch.save({"module.w": torch.ones(2)}, src)
    src.seek(0)
    report = surgery.rename(src, dst, strip_prefix="module")
    assert report.file == "<BytesIO>"
    dst.seek(0)
    assert torch.equal(torch.load(dst)["w"], torch.ones(2))
    src.seek(0)
    with refused(ArgumentError, "`<BytesIO>`: is a source itself"):
        surgery.rename(src, src, strip_prefix="module")


def test_a_damaged_source_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    net, optimizer = trained()
    holdfast.save({"model": net, "optimizer": optimizer}, tmp_path / "a.safetensors")
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    place = data.index(net.head.weight.detach().numpy().tobytes())
    data[place] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    (tmp_path / "b.pt").write_bytes(b"old")
    with refused(CorruptFile, "head.weight"):
        surgery.strip(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.pt"]
    surgery.extract(tmp_path / "a.safetensors", tmp_path / "c.pt", "model.encoder")  # what is whole can be had


def test_what_is_written_wrongly_is_noticed_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful:
        NAME, SUFFIXES, open, sniff = torchzip.NAME, torchzip.SUFFIXES, torchzip.open, torchzip.sniff

        @staticmethod
        def write(staged: StagedFile, document: Document, *, top: str = "archive") -> Any:
            return torchzip.write(staged, Document({**document.tree, "w": document.tree["v"]}), top=top)

    torch.save({"w": torch.ones(3), "v": torch.zeros(3)}, tmp_path / "a.pt")
    monkeypatch.setitem(writing.FORMATS, "pt", Forgetful)  # type: ignore[arg-type]
    with refused(CorruptFile, "b.pt`: read again, `w` differs from the source"):
        surgery.merge([tmp_path / "a.pt"], tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_reports_are_tables_and_dicts(tmp_path: Path) -> None:
    state = {f"layers.{index}.\x1b[2J": torch.ones(1) for index in range(20)}
    torch.save({"model": state, "optimizer": torch.ones(1_000)}, tmp_path / "a.pt")
    report = surgery.rename(tmp_path / "a.pt", tmp_path / "b.pt", rename={"^layers": "blocks"})
    text = str(report)
    assert text.startswith(f"{tmp_path / 'b.pt'}: pt, 21 tensors, ")
    assert "renamed (20):" in text
    assert "... and 8 more" in text
    assert "\x1b" not in text
    report = surgery.strip(tmp_path / "a.pt", tmp_path / "c.pt")
    assert "left out, 4,000 bytes (1):\n  optimizer  4,000 bytes" in str(report)
    assert report.to_dict()["saved"] == 4000
    assert report.to_dict()["left_out"] == {"optimizer": 4000}


def test_the_module_has_these_names() -> None:
    names = {"AdoptReport", "Rewritten", "adopt", "average", "extract", "merge", "rename", "strip"}
    assert set(surgery.__all__) == names
    with pytest.raises(AttributeError, match="renme"):
        _ = surgery.renme  # type: ignore[attr-defined]
