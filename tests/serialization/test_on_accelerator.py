"""Real devices, where this machine has one: what the stand-in for streams can't show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.serialization.devices import present_devices
from holdfast.serialization.side_stream import pinned_memory
from holdfast.spec import CHUNK

DEVICES = present_devices()[1:]
pytestmark = pytest.mark.skipif(not DEVICES, reason="no accelerator here")


def training(seed: int, devices: list[str]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with a layer on each device, larger than the ring in all, and an optimizer that has made a step."""
    torch.manual_seed(seed)
    net = nn.ModuleList(nn.Linear(2048, CHUNK // 2048).to(device) for device in devices)
    optimizer = torch.optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return net, optimizer


def state(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [value for values in optimizer.state_dict()["state"].values() for value in values.values()]
    return [tensor.detach().cpu().clone() for tensor in (*net.state_dict().values(), *moments)]


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
def test_a_training_is_restored(name: str, tmp_path: Path) -> None:
    net, optimizer = training(1, DEVICES)
    holdfast.save({"model": net, "optimizer": optimizer}, tmp_path / name)
    live, live_optimizer = training(2, DEVICES)
    holdfast.restore(tmp_path / name, model=live, optimizer=live_optimizer)
    assert all(map(torch.equal, state(live, live_optimizer), state(net, optimizer)))


@pytest.mark.parametrize("device", DEVICES)
def test_a_file_is_loaded_there_with_no_second_copy(device: str, tmp_path: Path) -> None:
    weight = torch.randn(9 * CHUNK // 4)
    holdfast.save({"a": weight, "tied": weight, "b": torch.ones(3)}, tmp_path / "f.pt")
    api: Any = torch.get_device_module(torch.device(device))
    before = api.memory_allocated(device)
    api.reset_peak_memory_stats(device)
    loaded = holdfast.load(tmp_path / "f.pt", device)
    assert api.max_memory_allocated(device) - before <= weight.nbytes + (4 << 20)
    assert torch.equal(loaded["a"].cpu(), weight)
    assert loaded["tied"].data_ptr() == loaded["a"].data_ptr()
    assert {str(tensor.device) for tensor in loaded.values()} == {device}


def test_memory_of_the_ring_is_pinned() -> None:
    assert torch.frombuffer(pinned_memory(4096), dtype=torch.uint8).is_pinned()


def test_a_background_save_is_of_its_moment(tmp_path: Path) -> None:
    net, optimizer = training(1, DEVICES[:1])
    with holdfast.Run(tmp_path / "run", model=net, optimizer=optimizer, background=True) as run:
        wanted = state(net, optimizer)
        saved = run.save(step=1)
        optimizer.step()
        saved.wait()
    live, live_optimizer = training(2, DEVICES[:1])
    holdfast.restore(saved.path, model=live, optimizer=live_optimizer)
    assert all(map(torch.equal, state(live, live_optimizer), wanted))
