"""Weights out of whole pickled modules whose classes are gone."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.api import rescue_file
from holdfast.errors import ArgumentError, CorruptFile, MismatchError, MissingPart, RefusedFile, UntrustedType
from holdfast.formats.writing import write_document
from holdfast.transfer.save import document_of
from tests.transfer.gone import throwaway

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch"),  # weight_norm, and torch.jit inside torch.compile
    pytest.mark.filterwarnings("ignore:Couldn't retrieve source code"),
]


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def whole(tmp_path: Path, seeded: int) -> tuple[Path, dict[str, Any]]:
    """A file with a whole module of a class that is gone, in a checkpoint; and the state_dict that it had."""
    with throwaway() as models:
        net = models.Net()
        torch.save({"model": net, "epoch": 3}, tmp_path / "whole.pt")
    return tmp_path / "whole.pt", net.state_dict()


def test_the_class_is_gone(whole: tuple[Path, Any]) -> None:
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        torch.load(whole[0], weights_only=False)


def test_the_state_dict_comes_out(whole: tuple[Path, dict[str, Any]]) -> None:
    state = holdfast.rescue(whole[0])
    assert same(state, whole[1])
    assert state["out.weight"].data_ptr() == state["embed.weight"].data_ptr()
    assert not any(isinstance(tensor, nn.Parameter) or tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("stream", [True, False])
def test_out_of_streams_and_file_objects(stream: bool, seeded: int) -> None:
    buffer = io.BytesIO()
    with throwaway() as models:
        net = models.Net()
        torch.save(net, buffer, _use_new_zipfile_serialization=not stream)
    buffer.seek(0)
    assert same(holdfast.rescue(buffer), net.state_dict())


def test_a_part_or_one_of_several(tmp_path: Path, seeded: int) -> None:
    with throwaway() as models:
        nets = {"G": models.Net(), "parts": [models.Block(3)]}
        torch.save(nets, tmp_path / "gan.pt")
    both = holdfast.rescue(tmp_path / "gan.pt")
    assert list(both) == ["G", "parts.0"]
    assert same(both["parts.0"], nets["parts"][0].state_dict())
    assert same(holdfast.rescue(tmp_path / "gan.pt", at="parts.0"), nets["parts"][0].state_dict())
    assert same(holdfast.rescue(tmp_path / "gan.pt", at="G.blocks.1"), nets["G"].blocks[1].state_dict())
    with pytest.raises(MissingPart, match=r"has no module at `D`; there are `G`, `parts\.0` and their parts"):
        holdfast.rescue(tmp_path / "gan.pt", at="D")


def test_the_root_and_its_parts(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1)))
    torch.save(net, tmp_path / "net.pt")
    assert same(holdfast.rescue(tmp_path / "net.pt", at="(root)"), net.state_dict())
    assert same(holdfast.rescue(tmp_path / "net.pt", at="1.0"), net[1][0].state_dict())


def test_wrappers_leave_no_trace(tmp_path: Path) -> None:
    inner = nn.Linear(2, 3)
    wrappers = [nn.DataParallel(inner), nn.Sequential(nn.DataParallel(inner)), torch.compile(inner)]
    for index, wrapped in enumerate(wrappers):
        torch.save(wrapped, tmp_path / f"{index}.pt")
        prefix = "0." if index == 1 else ""
        wanted = {f"{prefix}{name}": tensor for name, tensor in inner.state_dict().items()}
        assert same(holdfast.rescue(tmp_path / f"{index}.pt"), wanted)


def test_a_traced_graph(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    torch.save(torch.fx.symbolic_trace(net), tmp_path / "fx.pt")
    assert same(holdfast.rescue(tmp_path / "fx.pt"), net.state_dict())


def test_a_module_that_knows_its_parent(tmp_path: Path) -> None:
    with throwaway() as models:
        net = models.Block(2)
        net.itself = [net]
        net.conv.parent = (net,)
        torch.save(net, tmp_path / "cycle.pt")
    assert same(holdfast.rescue(tmp_path / "cycle.pt"), net.state_dict())


def test_a_file_without_modules(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "state.pt")
    with pytest.raises(MissingPart, match=r"state.pt`: holds no whole module to rescue; .* holdfast.load"):
        holdfast.rescue(tmp_path / "state.pt")


def test_packed_parameters_are_refused_by_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), {nn.Linear})
        torch.save({"model": quantized, "epoch": 1}, tmp_path / "q.pt")
    message = "`1._packed_params._packed_params`: packed parameters of a quantized layer"
    for call in (
        holdfast.rescue,
        lambda f: holdfast.restore(f, model=nn.Linear(2, 2)),
        holdfast.build,
        lambda f: rescue_file(f, tmp_path / "out.pt"),
    ):
        with pytest.raises(RefusedFile, match=message) as caught:
            call(tmp_path / "q.pt")
        assert "holds what no state_dict can be made of without running its classes" in str(caught.value)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_into_a_file(whole: tuple[Path, dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    saved = rescue_file(whole[0], tmp_path / f"out.{suffix}")
    assert saved.tensors == len(whole[1])
    assert holdfast.verify(tmp_path / f"out.{suffix}").status == "OK"
    found = holdfast.load(tmp_path / f"out.{suffix}")
    assert set(found) == set(whole[1])
    assert all(torch.equal(found[name], whole[1][name]) for name in found)


def test_a_damaged_source_is_not_written(whole: tuple[Path, Any], tmp_path: Path) -> None:
    data = bytearray(whole[0].read_bytes())
    at = data.index(whole[1]["embed.weight"].numpy().tobytes())
    data[at] ^= 1
    whole[0].write_bytes(data)
    with pytest.raises(CorruptFile):
        rescue_file(whole[0], tmp_path / "out.pt")
    with pytest.raises(CorruptFile):
        holdfast.rescue(whole[0])
    assert not (tmp_path / "out.pt").exists()


def test_real_whole_modules_equal_torch(material: Path) -> None:
    compared = 0
    for file in sorted((material / "torch_history").iterdir()):
        if "legacy_conv2d" not in file.name and "data__linear.pt" not in file.name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                wanted = torch.load(file, weights_only=False).state_dict()
            except (AttributeError, ModuleNotFoundError):
                continue
        assert same(holdfast.rescue(file), wanted)
        compared += 1
    assert compared


# ---- restore and load ------------------------------------------------------------------------------------------------


def test_restore_takes_the_weights_and_says_so(whole: tuple[Path, dict[str, Any]]) -> None:
    with throwaway() as models:
        net = models.Net()
    report = holdfast.restore(whole[0], model=net, mode="eval")
    assert same(net.state_dict(), whole[1])
    assert report.values == {"epoch": 3}
    assert "the file holds a whole pickled throwaway_models.Net at `model`" in "\n".join(report.notes)


def test_restore_of_a_bare_module_into_a_wrapped_one(tmp_path: Path) -> None:
    old, new = nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))
    torch.save(old, tmp_path / "old.pt")
    holdfast.restore(tmp_path / "old.pt", model=new)
    assert torch.equal(new.module.weight, old.weight)


def test_restoring_another_part_does_not_need_the_module(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
        torch.save({"model": quantized, "optimizer": optimizer.state_dict()}, tmp_path / "q.pt")
    fresh = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    holdfast.restore(tmp_path / "q.pt", optimizer=fresh)
    assert fresh.param_groups[0]["lr"] == 0.5


def test_load_refuses_and_names_classes_and_ways_on(whole: tuple[Path, Any]) -> None:
    with pytest.raises(UntrustedType, match=r"throwaway_models\.(Net|Block).*holdfast\.rescue\(f\).*holdfast\.restore"):
        holdfast.load(whole[0])
    tree = holdfast.load(whole[0], opaque=True)
    assert tree["epoch"] == 3
    assert tree["model"].type_name == "throwaway_models.Net"


def test_load_without_modules_does_not_speak_of_rescue(tmp_path: Path) -> None:
    with throwaway("class Config:\n    pass") as models:
        torch.save({"config": models.Config()}, tmp_path / "c.pt")
    with pytest.raises(UntrustedType, match=r"throwaway_models\.Config\. Ways on: holdfast\.restore"):
        holdfast.load(tmp_path / "c.pt")


# ---- build -----------------------------------------------------------------------------------------------------------


def layers() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 8),
        nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.2), nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh()),
    )  # fmt: skip
    net.add_module("tied", nn.Linear(8, 8, bias=False))
    net.tied.weight = net[9][0].weight
    return net


@pytest.mark.parametrize("write", [torch.save, holdfast.save], ids=["torch.save", "holdfast.save"])
@pytest.mark.parametrize("inside", [True, False])
def test_layers_of_torch_need_no_factory(write: Any, inside: bool, tmp_path: Path, seeded: int) -> None:
    net = layers().eval()
    net[5].weight.requires_grad_(False)
    write({"model": net, "epoch": 1} if inside else net, tmp_path / "net.pt")
    built = holdfast.build(tmp_path / "net.pt")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(built(x), net(x))
    assert repr(built) == repr(net)
    assert built.tied.weight is built[9][0].weight
    assert not built.training
    assert holdfast.build(tmp_path / "net.pt", mode="train").training
    if write is torch.save:
        assert not built[5].weight.requires_grad
    assert built[9][0].weight.requires_grad


def test_layers_out_of_a_run(tmp_path: Path, seeded: int) -> None:
    net = layers().eval()
    with holdfast.Run(tmp_path / "run", model=net) as run:
        for epoch in run.epochs(1):
            run.end(epoch)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(holdfast.build(tmp_path / "run@last")(x), net(x))


def test_what_build_does_not_make(tmp_path: Path) -> None:
    with throwaway() as models:
        torch.save(nn.Sequential(nn.ReLU(), models.Block(2)), tmp_path / "own.pt")
        holdfast.save(nn.Sequential(models.Block(2)), tmp_path / "ours.pt")
    with pytest.raises(ArgumentError, match=r"alone, and the file holds `1`: throwaway_models\.Block"):
        holdfast.build(tmp_path / "own.pt")
    with pytest.raises(ArgumentError, match="the file says it is a ") as caught:
        holdfast.build(tmp_path / "ours.pt")
    assert (
        "build needs to be told which code it may use: factory=Net (the class or a function), or its name in trusted=. "
        "Without one it makes models of torch.nn's own layers alone, and the file says"
    ) in str(caught.value)
    holdfast.save({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}, tmp_path / "pair.pt")
    with pytest.raises(ArgumentError, match="alone, and 2 modules are recorded in it"):
        holdfast.build(tmp_path / "pair.pt")
    sparse = nn.Sequential(nn.Linear(2, 2))
    sparse[0].weight = nn.Parameter(torch.eye(2).to_sparse())
    torch.save(sparse, tmp_path / "sparse.pt")
    with pytest.raises(ArgumentError, match=r"and `0.weight` is no plain tensor"):
        holdfast.build(tmp_path / "sparse.pt")
    document, _ = document_of(nn.Sequential(nn.Linear(2, 2)), row_major=False)
    document.objects[""]["structure"]["children"][0][1]["layer"] = "OfTomorrow"
    write_document(document, tmp_path / "new.pt", "pt")
    with pytest.raises(ArgumentError, match="its record names layers that are not known here"):
        holdfast.build(tmp_path / "new.pt")
    torch.save(nn.utils.weight_norm(nn.Linear(2, 2)), tmp_path / "hooks.pt")
    with pytest.raises(ArgumentError, match=r"Linear with hooks \(_forward_pre_hooks\)"):
        holdfast.build(tmp_path / "hooks.pt")
    torch.save([nn.Linear(2, 2), nn.Linear(2, 2)], tmp_path / "two.pt")
    with pytest.raises(ArgumentError, match=r"holds 2 modules \(`0`, `1`\); construct them and use holdfast.restore"):
        holdfast.build(tmp_path / "two.pt")


@pytest.mark.parametrize(
    ("net", "name", "value", "error", "message"),
    [
        (
            nn.Linear(2, 3),
            "in_features",
            7,
            MismatchError,
            r"`0.weight`: the layers as the file describes them have .* 7",
        ),
        (nn.Linear(2, 3), "in_features", "x", CorruptFile, "torch can't construct the layers with the arguments that"),
        (nn.LSTM(2, 2), "num_layers", 10**9, CorruptFile, "a LSTM of 1000000000 layers, and 4 tensors in the file"),
        (
            nn.Conv2d(1, 1, 2),
            "output_padding",
            (1, 1),
            MismatchError,
            r"is \(1, 1\) in the file, and \(0, 0\) in the Conv2d",
        ),
        (
            nn.ReLU(),
            "forward",
            torch.sin,
            ArgumentError,
            r"and the file holds `0`: torch\.nn\.modules\.activation\.ReLU",
        ),
    ],
    ids=range(5),
)
def test_layers_that_lie(net: nn.Module, name: str, value: Any, error: Any, message: str, tmp_path: Path) -> None:
    torch.save(nn.Sequential(net), tmp_path / "good.pt")
    holdfast.build(tmp_path / "good.pt")
    setattr(net, name, value)
    torch.save(nn.Sequential(net), tmp_path / "bad.pt")
    with pytest.raises(error, match=message):
        holdfast.build(tmp_path / "bad.pt")


def test_tensors_that_no_layer_makes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[1].register_buffer("weight", torch.ones(1))
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(MismatchError, match=r"`1.weight`: .* have none of this name, its tensors shape \(1,\)"):
        holdfast.build(tmp_path / "net.pt")
