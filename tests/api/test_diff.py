"""``holdfast.diff`` over real files of every kind, checkpoints, modules and trees."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import NotFound
from holdfast.serialization.differences import numbers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.submodule = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> None:
    monkeypatch.chdir(tmp_path)


FILES: dict[str, Callable[[nn.Module], object]] = {
    "ours.pt": lambda net: holdfast.save(net, "ours.pt"),
    "ours.safetensors": lambda net: holdfast.save(net, "ours.safetensors"),
    "arrays.npz": lambda net: holdfast.save(net, "arrays.npz"),
    "legacy.pt": lambda net: holdfast.save(net, "legacy.pt", format="torch-legacy"),
    "torch.pth": lambda net: torch.save(net.state_dict(), "torch.pth"),
    "old.pth": lambda net: torch.save(net.state_dict(), "old.pth", _use_new_zipfile_serialization=False),
    "parallel.pth": lambda net: torch.save(nn.DataParallel(net).state_dict(), "parallel.pth"),
    "whole.pth": lambda net: torch.save(net, "whole.pth"),
    "scripted.pt": lambda net: torch.jit.save(torch.jit.trace(net.head, torch.ones(4)), "scripted.pt"),  # type: ignore[no-untyped-call]
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("file", sorted(set(FILES) - {"scripted.pt"}))
def test_one_model_in_any_two_formats_is_the_same(file: str) -> None:
    net = Net()
    FILES[file](net)
    assert holdfast.diff(file, net).same == list(net.state_dict()) or file == "parallel.pth"
    found = holdfast.diff(net, file)
    assert found.same == list(net.state_dict())
    assert found.identical, str(found)
    with torch.no_grad():
        net.head.bias[1] += 0.5
    found = holdfast.diff(file, net)
    (change,) = found.changed
    assert change.name.endswith("head.bias")
    assert change.numbers is not None
    assert (change.numbers.differing, change.numbers.largest) == (1, pytest.approx(0.5))
    assert len(found.same) == 3


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_weights_of_a_program(tmp_path: Path) -> None:
    net = Net()
    FILES["scripted.pt"](net)
    assert holdfast.diff(net.head, "scripted.pt").same == ["weight", "bias"]


def test_checkpoints_of_a_run_also_by_metrics_arguments_and_position() -> None:
    net = Net()
    with holdfast.Run("runs/a", model=net, args=argparse.Namespace(lr=0.1, name="x")) as run:
        run.save(step=1, epoch=0, metrics={"loss": 2.0})
        with torch.no_grad():
            net.head.weight.mul_(2)
        run.save(step=2, epoch=1, metrics={"loss": float("nan")})
    found = holdfast.diff("runs/a@step=1", "runs/a")
    (change,) = found.changed
    assert change.name == "model.head.weight"
    assert change.numbers is not None
    assert change.numbers.relative == pytest.approx(1)
    assert change.numbers.cosine == pytest.approx(1)
    values = {one.name: (one.left, one.right) for one in found.values}
    assert values["position.step"] == ("1", "2")
    assert values["metrics.loss"] == ("2.0", "nan")
    assert not any(name.startswith("args") for name in values)
    assert holdfast.diff("runs/a@step=2", "runs/a@last").identical
    again = holdfast.convert("runs/a", "again.pt")
    assert again.tensors
    found = holdfast.diff("runs/a", "again.pt")
    assert found.identical, str(found)
    assert "only A records metrics" in found.notes


def test_a_sharded_model_and_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = transformers.BertModel(config)
    model.save_pretrained("sharded", max_shard_size="100KB")
    model.save_pretrained("single")
    found = holdfast.diff("sharded", "single/model.safetensors")
    assert found.identical, str(found)
    assert len(found.same) == len(model.state_dict())


def test_renamed_recast_reshaped_and_what_one_side_lacks() -> None:
    w = torch.randn(3, 3)
    left = {"old": w, "half": w, "rows": w, "gone": torch.ones(2), "twice": torch.zeros(5), "also": torch.zeros(5)}
    right = {"new": w.clone(), "half": w.bfloat16(), "rows": w[:2], "more": torch.ones(3), "zeros": torch.zeros(5)}
    torch.save(left, "a.pt")
    holdfast.save(right, "b.safetensors")
    found = holdfast.diff("a.pt", "b.safetensors")
    assert [(one.name, one.other) for one in found.renamed] == [("old", "new"), ("twice", "zeros")]
    (half,) = found.recast
    assert half.numbers is not None
    assert half.numbers.cast
    assert [(one.name, one.left.shape, one.right.shape) for one in found.reshaped] == [("rows", (3, 3), (2, 3))]
    assert [one.name for one in found.removed] == ["gone", "also"]
    assert [one.name for one in found.added] == ["more"]
    lines = str(found).splitlines()
    assert any(line.split()[:2] == ["old", "new"] for line in lines)
    assert any(line.endswith("equal after the cast") for line in lines)


KINDS: dict[str, Callable[[int], Any]] = {
    "sparse": lambda n: (n * torch.eye(3)).to_sparse(),
    "csr": lambda n: (n * torch.eye(3)).to_sparse_csr(),
    "quantized": lambda n: torch.quantize_per_tensor(n * torch.ones(3), 0.1, 0, torch.qint8),
    "0-d": lambda n: torch.tensor(float(n)),
    "empty": lambda n: torch.empty(0, n),
    "bfloat16": lambda n: n * torch.ones(3).bfloat16(),
    "float8": lambda n: (n * torch.ones(3)).to(torch.float8_e4m3fn),
    "complex": lambda n: torch.ones(3) * n * 1j,
    "conjugated": lambda n: (torch.ones(3) * n * 1j).conj(),
    "strided": lambda n: (n * torch.arange(6.0)).view(2, 3).t(),
    "expanded": lambda n: (n * torch.ones(1, 3)).expand(4, 3),
    "array": lambda n: n * np.ones(3),
    "parameter": lambda n: nn.Parameter(n * torch.ones(3)),
    "meta": lambda n: torch.empty(n, device="meta"),
}
QUIET = pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor:UserWarning", "ignore:Sparse CSR tensor support:UserWarning"
)


@QUIET
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_tensor(kind: str) -> None:
    left, right = KINDS[kind](1), KINDS[kind](2)
    holdfast.save({"t": left}, "a.pt")
    holdfast.save({"t": right}, "b.pt")
    assert holdfast.diff("a.pt", {"t": left}).identical
    assert holdfast.diff({"t": left}, "a.pt").identical
    found = holdfast.diff("a.pt", "b.pt")
    assert not found.identical
    changed = [one for one in found.unlike if one.name.startswith("t")]
    assert changed or found.values, str(found)
    if kind != "meta" and kind != "empty":
        assert any(one.numbers and one.numbers.norm > 0 for one in changed), str(found)


@QUIET
def test_a_quantized_tensor_of_torch_and_ours_are_the_same() -> None:
    tensor = KINDS["quantized"](1)
    torch.save({"t": tensor}, "torch.pt")
    holdfast.save({"t": tensor}, "ours.pt")
    assert holdfast.diff("torch.pt", "ours.pt").identical


def test_plain_values_to_the_last_item_and_bit() -> None:
    values = {"list": list(range(1000)), "zero": 0.0, "nan": float("nan"), "one": 1, "keys": {0: "a", "0": "b"}}
    holdfast.save(values, "a.pt")
    assert holdfast.diff("a.pt", values).identical
    other = {**values, "list": [*range(999), 0], "zero": -0.0, "one": True, "keys": {0: "a", "0": "c"}}
    found = holdfast.diff("a.pt", other)
    assert [one.name for one in found.values] == ["list", "zero", "one", "keys.0'2"]


def test_only_what_matches() -> None:
    net, other = Net(), Net()
    found = holdfast.diff(net, {"model": other, "epoch": 3}, keys="model.head.*")
    assert [one.name for one in found.changed] == ["head.weight", "head.bias"]
    assert not found.same
    assert not found.values
    assert found.aligned == {"head.weight": "model.head.weight", "head.bias": "model.head.bias"}


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match=r"gone\.pt`: no such file"):
        holdfast.diff(Net(), "gone.pt")


def test_two_stored_tensors_can_be_measured_by_themselves() -> None:
    """For who draws them one by one."""
    holdfast.save({"w": torch.zeros(2, 2)}, "a.pt")
    holdfast.save({"w": torch.ones(2, 2)}, "b.pt")
    from holdfast.runs.comparing import opened

    with opened("a.pt") as left, opened("b.pt") as right:
        found = numbers(left.stored["w"], right.stored["w"])
    assert found is not None
    assert found.norm == 2.0
