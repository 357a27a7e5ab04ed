"""holdfast rescue, and what inspect shows of whole modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.transfer.gone import throwaway

Holdfast = Callable[..., Any]

pytestmark = pytest.mark.filterwarnings("ignore:`torch")


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    with throwaway() as models:
        net = models.Block(2)
        torch.save({"model": net, "epoch": 3}, tmp_path / "whole.pt")
    return tmp_path / "whole.pt", net.state_dict()


def test_weights_into_a_file_that_others_read(holdfast: Holdfast, whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    found = holdfast("rescue", whole[0], "-o", out)
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith(f"{out}: {len(whole[1])} tensors, ")
    read = load_file(out)
    assert all(torch.equal(read[name], tensor) for name, tensor in whole[1].items())
    assert holdfast("rescue", whole[0], "-o", tmp_path / "w.pt", "--at", "model.conv").code == 0
    assert list(torch.load(tmp_path / "w.pt", weights_only=True)) == ["weight"]


def test_the_skeleton_is_python(holdfast: Holdfast, whole: Any, tmp_path: Path) -> None:
    found = holdfast("rescue", whole[0], "--skeleton", "-o", tmp_path / "w.pt")
    assert found.code == 0
    assert found.out.startswith("# ")
    names: dict[str, Any] = {}
    exec(found.out, names)
    names["model"].load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), strict=True)


def test_json(holdfast: Holdfast, whole: Any, tmp_path: Path) -> None:
    report = json.loads(holdfast("rescue", whole[0], "--json", "--skeleton", "-o", tmp_path / "w.pt").out)
    assert report["tensors"] == len(whole[1])
    assert report["bytes"] == (tmp_path / "w.pt").stat().st_size
    assert "class Block(nn.Module)" in report["skeleton"]


def test_errors_and_their_codes(holdfast: Holdfast, whole: Any, tmp_path: Path) -> None:
    found = holdfast("rescue", whole[0])
    assert found.code == 3
    assert "-o OUT" in found.err
    torch.save({"w": torch.ones(1)}, tmp_path / "plain.pt")
    found = holdfast("rescue", tmp_path / "plain.pt", "-o", tmp_path / "out.pt")
    assert found.code == 4
    assert "holds no whole module" in found.err
    assert holdfast("rescue", whole[0], "--skeleton", "--at", "x").code == 4
    assert not (tmp_path / "out.pt").exists()


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_parts_and_names_of_the_state_dict(holdfast: Holdfast, whole: Any) -> None:
    out = holdfast("inspect", whole[0]).out
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert ["model", "throwaway_models.Block"] in lines
    assert ["model.conv", "nn.Conv2d(2, 2, kernel_size=(3, 3), padding=(1, 1), bias=False)"] in lines
    assert ["model.norm", "nn.BatchNorm2d(2)"] in lines
    report = json.loads(holdfast("inspect", whole[0], "--json").out)
    assert [one["name"] for one in report["tensors"]] == [f"model.{name}" for name in whole[1]]
    assert ["model.act", "nn.ReLU(inplace=True)"] in report["modules"]
    assert "throwaway_models.Block" in report["opaque"]


def test_inspect_opaque_shows_what_the_pickle_has(holdfast: Holdfast, whole: Any) -> None:
    report = json.loads(holdfast("inspect", whole[0], "--opaque", "--json").out)
    assert "model.state._modules.conv.state._parameters.weight" in [one["name"] for one in report["tensors"]]
    assert report["values"]["model.state._modules.conv.state.padding_mode"] == "'zeros'"
    assert "model.state.scale" in holdfast("inspect", whole[0], "--opaque", "--state").out


def test_long_models_are_cut(holdfast: Holdfast, tmp_path: Path) -> None:
    torch.save(nn.Sequential(*[nn.Linear(1, 1) for _ in range(60)]), tmp_path / "long.pt")
    assert "... 21 more: --state" in holdfast("inspect", tmp_path / "long.pt").out
    assert "... " not in holdfast("inspect", tmp_path / "long.pt", "--state").out
    shown = json.loads(holdfast("inspect", tmp_path / "long.pt", "--keys", "7*", "--json").out)["modules"]
    assert shown == [["7", "nn.Linear(1, 1)"]]
