"""A small training in Ignite that draws random numbers, steps a scheduler and evaluates."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast.integrations.ignite import attach

SIZE, BATCH, EPOCHS = 22, 4, 3
BATCHES = -(-SIZE // BATCH)


class Small:
    """Model, optimizer, scheduler and the engines over them."""

    def __init__(self) -> None:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.trainer = Engine(self.step)
        self.evaluator = Engine(self.validate)
        Average().attach(self.evaluator, "loss")
        self.seen: list[int] = []
        self.bad = 0
        rows = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(5))
        self.loader = DataLoader(TensorDataset(rows, torch.arange(SIZE)), batch_size=BATCH, shuffle=True)
        self.objects = {"model": self.net, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def fails_at(self, iteration: int) -> Small:
        """Finds something wrong in the data of an iteration."""
        self.bad = iteration
        return self

    def step(self, engine: Engine, batch: list[torch.Tensor]) -> float:
        if engine.state.iteration == self.bad:
            raise ValueError("bad data")
        self.seen += batch[1].tolist()
        self.net.train()
        self.optimizer.zero_grad()
        loss = (self.net(batch[0]) - 1).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def validate(self, engine: Engine, batch: list[torch.Tensor]) -> float:
        self.net.eval()
        with torch.no_grad():
            return float((self.net(batch[0]) - 1).square().mean()) + 1e-3 * random.random()

    def end_of_epoch(self) -> None:
        self.evaluator.run(self.loader)
        self.scheduler.step()

    def stop(self, batch: int, number: int = signal.SIGKILL) -> Small:
        """Sends this process a signal behind a batch."""
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=batch), lambda: os.kill(os.getpid(), number))
        return self

    def train(self, root: Path | None = None, epochs: int = EPOCHS, **options: Any) -> Small:
        if root is not None:
            self.run = attach(self.trainer, root, evaluator=self.evaluator, **self.objects, **options)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.end_of_epoch)
        self.trainer.run(self.loader, max_epochs=epochs)
        self.state = state_of(self)
        return self


def state_of(small: Small) -> dict[str, torch.Tensor]:
    """All that two trainings must have alike."""
    moments = {f"{i}.{k}": v for i, s in small.optimizer.state_dict()["state"].items() for k, v in s.items()}
    return {
        **{name: value.clone() for name, value in small.net.state_dict().items()},
        **moments,
        "lr": torch.tensor(small.optimizer.param_groups[0]["lr"]),
        "rng": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1]),
        "steps": torch.tensor([small.trainer.state.iteration, small.trainer.state.epoch]),
    }
