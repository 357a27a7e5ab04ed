"""Every source format to every destination format, read back with the libraries that own the formats."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import holdfast
from holdfast.formats.writing import FORMATS
from tests.formats.dcp_material import folder


class Net(nn.Module):
    """Tied weights, buffers, several dtypes, an order of dimensions of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.small = nn.Parameter(torch.randn(3).half(), requires_grad=False)
        self.register_buffer("phase", torch.randn(2, 2, dtype=torch.complex64))
        self.register_buffer("turned", torch.randn(3, 4).t())
        self.register_buffer("none", torch.empty(0, 2))
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x).mean(1)))


@pytest.fixture
def net(seeded: int) -> Net:
    return Net()


State = dict[str, torch.Tensor]


def as_pt(net: nn.Module, path: Path) -> Path:
    holdfast.save(net.state_dict(), path / "a.pt")
    return path / "a.pt"


def as_torch(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path / "a.pth")
    return path / "a.pth"


def as_stream(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path / "a.old", _use_new_zipfile_serialization=False)
    return path / "a.old"


def as_safetensors(net: nn.Module, path: Path) -> Path:
    holdfast.save(net.state_dict(), path / "a.safetensors")
    return path / "a.safetensors"


def as_plain_safetensors(net: nn.Module, path: Path) -> Path:
    state = {name: value.clone().contiguous() for name, value in net.state_dict().items()}
    safetensors.torch.save_file(state, path / "a.safetensors", {"format": "pt"})
    return path / "a.safetensors"


def as_shards(net: nn.Module, path: Path) -> Path:
    state = [(name, value.clone().contiguous()) for name, value in net.state_dict().items()]
    parts = {"one.safetensors": dict(state[:4]), "two.safetensors": dict(state[4:])}
    for file, part in parts.items():
        safetensors.torch.save_file(part, path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def as_npz(net: nn.Module, path: Path) -> Path:
    np.savez_compressed(path / "a.npz", **{name: value.numpy() for name, value in net.state_dict().items()})
    return path / "a.npz"


def as_distributed(net: nn.Module, path: Path) -> Path:
    state = net.state_dict()
    halves = {"embed.weight": [((0, 0), (5, 2)), ((0, 2), (5, 2))]}
    flat = {name: (name,) for name in state}

    def named(metadata: Any) -> Any:
        metadata.planner_data = flat
        return metadata

    return folder(path / "ckpt", state, halves, change=named)


def as_run(net: nn.Module, path: Path) -> Path:
    with holdfast.Run(path / "run", model=net, rng=False) as run:
        run.save(step=1)
    return path / "run"


SOURCES: dict[str, Callable[[nn.Module, Path], Path]] = {
    "pt": as_pt,
    "torch zip": as_torch,
    "torch stream": as_stream,
    "safetensors": as_safetensors,
    "plain safetensors": as_plain_safetensors,
    "shards": as_shards,
    "npz": as_npz,
    "dcp": as_distributed,
    "run": as_run,
}


def from_torch(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def from_safetensors(path: Path) -> dict[str, Any]:
    return safetensors.torch.load_file(path)


def from_numpy(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return {name: torch.from_numpy(found[name]) for name in found}


DESTINATIONS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "pt": ("b.pt", from_torch),
    "torch-legacy": ("b.pt", from_torch),
    "safetensors": ("b.safetensors", from_safetensors),
    "npz": ("b.npz", from_numpy),
}


def test_every_destination_is_here() -> None:
    assert set(DESTINATIONS) == set(FORMATS)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    sides = [side.detach().contiguous().reshape(-1).view(torch.uint8) for side in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and sides[0].equal(sides[1])


@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_pair(net: Net, tmp_path: Path, source: str, destination: str) -> None:
    file, read = DESTINATIONS[destination]
    path = SOURCES[source](net, tmp_path)
    drop = [] if source != "run" or destination in ("pt", "safetensors") else _values_of(path)
    report = holdfast.convert(path, tmp_path / file, format=destination, drop=drop)
    assert report.format == destination
    found = read(tmp_path / file)
    if source == "run":
        found = found.get("model", {name.removeprefix("model."): value for name, value in found.items()})
    wanted = net.state_dict()
    tied = {one.split(".", source == "run")[-1] for group in report.shared for one in group}
    left_out = set(wanted) - set(found)
    assert left_out == ({"head.weight"} if tied and destination == "safetensors" else set())
    for name in found:
        assert same_bits(found[name], wanted[name]), name
    keeps_sharing = source in ("pt", "torch zip", "torch stream", "safetensors", "run")
    assert tied == ({"embed.weight", "head.weight"} if keeps_sharing else set())
    if keeps_sharing and destination in ("pt", "torch-legacy"):
        assert found["embed.weight"].data_ptr() == found["head.weight"].data_ptr()
    back = holdfast.load(tmp_path / file)
    names = set(back.get("model", back)) if source == "run" else set(back)
    assert {name.removeprefix("model.") for name in names} >= set(found)
    assert holdfast.verify(tmp_path / file).status == ("NOT VERIFIABLE" if destination == "torch-legacy" else "OK")


def _values_of(path: Path) -> list[str]:
    """What a run keeps beside tensors, so that formats without place for it can be tried."""
    with holdfast.open(path) as checkpoint:
        assert all(name.startswith("model.") for name in checkpoint.keys())  # noqa: SIM118
    return [key for key in holdfast.load(path) if key != "model"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_whole_training_state_goes_around_and_comes_back(net: Net, tmp_path: Path) -> None:
    opt = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    opt.step()
    tree = {"model": net, "opt": opt, "epoch": 3, "path": Path("a/b"), "nan": float("nan"), 7: {True: (1, {2})}}
    tree |= {
        "sparse": torch.eye(3).to_sparse(),
        "bf": torch.randn(3).bfloat16(),
        "c": torch.randn(2).to(torch.complex128),
    }
    tree |= {
        "q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "np": np.arange(3),
        "text": np.array("x"),
    }
    holdfast.save(tree, tmp_path / "a.pt", metadata={"who": "me"})
    for source, destination in (("a.pt", "b.safetensors"), ("b.safetensors", "c.pt"), ("c.pt", "d.safetensors")):
        holdfast.convert(tmp_path / source, tmp_path / destination)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()
    first, last = holdfast.load(tmp_path / "a.pt"), holdfast.load(tmp_path / "c.pt")
    assert list(last) == list(first)
    assert last["path"] == Path("a/b")
    assert last[7] == {True: (1, {2})}
    assert last["text"] == np.array("x")
    assert same_bits(last["c"], first["c"])
    assert last["opt"]["param_groups"] == first["opt"]["param_groups"]
    with holdfast.open(tmp_path / "c.pt") as checkpoint:
        assert checkpoint.metadata == {"who": "me"}


def test_what_torch_saved_with_a_view_of_a_large_tensor_becomes_small(tmp_path: Path) -> None:
    large = torch.arange(1_000_000.0)
    torch.save({"a": large[10:20], "b": large[15:30]}, tmp_path / "a.pt")
    report = holdfast.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert report.notes == ["3,999,920 bytes of the source belong to no tensor and were left behind"]
    assert (tmp_path / "b.pt").stat().st_size < 5000
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["a"].equal(large[10:20])
    found["a"][5] = -1
    assert found["b"][0] == -1


def test_a_torchscript_archive_gives_its_weights(net: Net, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "a.pt")  # type: ignore[attr-defined]
    report = holdfast.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert report.tensors == 2
    assert sorted(safetensors.torch.load_file(tmp_path / "b.safetensors")) == ["bias", "weight"]


MEASURED = """
import resource, sys
from holdfast.formats.convert import convert_container
from holdfast.runs.opening import open_any
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
with open_any(sys.argv[1]) as container:
    convert_container(container, sys.argv[2])
assert "torch" not in sys.modules
print((peak() - before) // 1024)
"""


@pytest.mark.long
@pytest.mark.parametrize(("source", "destination"), [("a.pt", "b.safetensors"), ("a.safetensors", "b.npz")])
def test_a_large_file_takes_little_memory(tmp_path: Path, source: str, destination: str) -> None:
    state = {f"layer{index}.weight": torch.randn(64 << 20) for index in range(4)}
    holdfast.save(state, tmp_path / source)
    assert (tmp_path / source).stat().st_size > 1 << 30
    arguments = [str(tmp_path / source), str(tmp_path / destination)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 256
