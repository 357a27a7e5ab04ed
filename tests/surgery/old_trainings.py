"""Trainings as tutorials write them, and the folders of checkpoints that they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

BATCHES = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(x))
        return result


class Training(NamedTuple):
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler

    def state(self, **values: Any) -> dict[str, Any]:
        """A checkpoint under the keys of most tutorials."""
        return {
            "model_state_dict": self.net.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            **values,
        }

    def epoch(self, number: int) -> None:
        """One epoch over the same batches in the same order."""
        for x in batches(number):
            self.optimizer.zero_grad()
            self.net(x).square().mean().backward()
            self.optimizer.step()
        self.scheduler.step()

    def values(self) -> list[Any]:
        """Everything that a next step depends on, for comparison."""
        moments = [item for state in self.optimizer.state_dict()["state"].values() for item in state.values()]
        found = [*self.net.state_dict().values(), *moments]
        plain = [item.tolist() if isinstance(item, torch.Tensor) else item for item in found]
        return [*plain, self.optimizer.param_groups[0]["lr"], self.scheduler.state_dict()]


def batches(epoch: int) -> list[torch.Tensor]:
    """The data of an epoch."""
    generator = torch.Generator().manual_seed(epoch)
    return [torch.randn(6, 4, generator=generator) for _ in range(BATCHES)]


def training(kind: str = "Adam") -> Training:
    """A training from the same beginning each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.05)
    return Training(net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5))


def train(
    folder: Path, epochs: int, save: Callable[[Training, int], tuple[str, Any] | None], kind: str = "Adam"
) -> Training:
    """Trains, and writes after each epoch what ``save`` gives for it: a name and an object."""
    folder.mkdir(exist_ok=True)
    done = training(kind)
    for epoch in range(epochs):
        done.epoch(epoch)
        found = save(done, epoch)
        if found is not None:
            torch.save(found[1], folder / found[0])
    return done
