"""TorchScript back to modules: only when it is trusted by name."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, DeviceUnavailable, RefusedFile


@pytest.fixture(params=["script", "trace"])
def scripted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, nn.Module]:
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.BatchNorm1d(2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(net) if request.param == "script" else torch.jit.trace(net, torch.ones(2, 3))
        made.save(str(tmp_path / "net.ts"))
    return tmp_path / "net.ts", net


@pytest.mark.parametrize("trusted", [(), {"torch.export"}, {"torch.nn.Sequential"}, {"torch.jit"}])
def test_torchscript_is_not_run_unasked(scripted: tuple[Path, nn.Module], trusted: Any) -> None:
    with pytest.raises(RefusedFile) as refused:
        holdfast.build(scripted[0], trusted=trusted)
    said = str(refused.value)
    assert said.startswith(f"`{scripted[0]}`: is a TorchScript program, which is code that can't be audited")
    assert "trusted={'torch.jit.ScriptModule'}" in said
    assert "load, open and inspect read its weights and run nothing" in said


@pytest.mark.parametrize("name", ["torch.jit.ScriptModule", "torch.jit.RecursiveScriptModule"])
def test_torchscript_that_is_trusted(scripted: tuple[Path, nn.Module], name: str) -> None:
    path, net = scripted
    x = torch.randn(4, 3)
    for f in (path, io.BytesIO(path.read_bytes())):
        module = holdfast.build(f, trusted={name})
        assert not module.training
        assert torch.equal(module(x), net(x))
    assert holdfast.build(path, "cpu", trusted={name}, mode="train").training
    with pytest.raises(DeviceUnavailable, match="map_location asks for cuda:99"):
        holdfast.build(path, "cuda:99", trusted={name})


def test_a_frozen_torchscript(tmp_path: Path) -> None:
    net = nn.Linear(3, 2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(net)).save(str(tmp_path / "net.ts"))
    module = holdfast.build(tmp_path / "net.ts", trusted={"torch.jit.ScriptModule"})
    assert torch.equal(module(torch.ones(1, 3)), net(torch.ones(1, 3)))


def test_weights_of_torchscript_into_a_class(scripted: tuple[Path, nn.Module]) -> None:
    path, net = scripted
    built = holdfast.build(path, factory=lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.BatchNorm1d(2)))
    x = torch.randn(4, 3)
    assert torch.equal(built(x), net(x))


def test_a_torchscript_that_torch_cant_load(scripted: tuple[Path, nn.Module]) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(scripted[0]) as old, zipfile.ZipFile(data, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"class (" if name.endswith(".py") else old.read(name))
    data.seek(0)
    with pytest.raises(CorruptFile, match=r"torch .* can't load this TorchScript program"):
        holdfast.build(data, trusted={"torch.jit.ScriptModule"})
