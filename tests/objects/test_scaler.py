"""A gradient scaler on an accelerator is captured without a wait for the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.objects import capture


def used_scaler(scale: float = 8.0) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_factor=3.0, growth_interval=7)
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler


@pytest.mark.parametrize("near", [True, False])
def test_its_state_is_the_same_either_way(near: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaler, other = used_scaler(), used_scaler(2.0)
    wanted = scaler.state_dict()
    monkeypatch.setattr(capture, "_is_near", lambda _: near)
    with monkeypatch.context() as patch:
        if not near:
            patch.setattr(torch.Tensor, "item", lambda _: pytest.fail("waits for the device"))
        state = capture.adapt(scaler, "scaler", {}).capture()
        assert isinstance(state["scale"], float if near else torch.Tensor)
        holdfast.save({"scaler": scaler}, tmp_path / "scaler.pt")
    holdfast.restore(tmp_path / "scaler.pt", scaler=other)
    assert other.state_dict() == wanted
    plain = torch.amp.GradScaler("cpu")  # and torch alone takes it
    plain.load_state_dict(torch.load(tmp_path / "scaler.pt")["scaler"])
    assert plain.state_dict() == wanted


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_that_was_never_used(enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_is_near", lambda _: False)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=enabled)
    assert capture.adapt(scaler, "scaler", {}).capture() == scaler.state_dict()
