"""What stands beside model and optimizer: a gradient scaler, averaged models, schedules of both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import holdfast


class Training:
    """A training with a scaler and an average of its own; ``step`` is what a resume must repeat bit for bit."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = SWALR(self.optimizer, swa_lr=0.01, anneal_epochs=5)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def parts(self) -> dict[str, Any]:
        return dict(vars(self))

    def step(self, number: int) -> None:
        items = torch.full((4, 3), float(number)) + torch.arange(12.0).reshape(4, 3)
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(items).square().mean()).backward()
        if number == 2:
            self.model[0].weight.grad[0, 0] = float("inf")  # a step that the scaler skips
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.model)
        self.scheduler.step()

    def everything(self) -> list[Any]:
        return [part.state_dict() for part in vars(self).values()]


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("written_by", ["holdfast", "torch"])
def test_a_resumed_training_goes_on_as_if_nothing_happened(suffix: str, written_by: str, tmp_path: Path) -> None:
    whole = Training(0)
    for number in range(3):
        whole.step(number)
    file = tmp_path / f"t.{suffix}"
    if written_by == "holdfast":
        holdfast.save(whole.parts(), file)
    elif suffix == "pt":
        torch.save({f"{name}_state_dict": part.state_dict() for name, part in whole.parts().items()}, file)
    else:
        pytest.skip("torch has no safetensors writer")
    resumed = Training(1)
    report = holdfast.restore(file, **resumed.parts())
    assert report.missing == []
    assert equal(resumed.everything(), whole.everything())
    for number in range(3, 7):
        whole.step(number)
        resumed.step(number)
    assert equal(resumed.everything(), whole.everything())


def test_the_average_becomes_a_plain_model(tmp_path: Path) -> None:
    training = Training(0)
    training.step(0)
    holdfast.save({"model": training.average}, tmp_path / "average.pt")
    plain = Training(1).model
    holdfast.restore(tmp_path / "average.pt", model=plain)
    assert equal(dict(plain.state_dict()), dict(training.average.module.state_dict()))
