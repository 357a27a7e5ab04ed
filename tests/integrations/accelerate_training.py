"""A small training with Accelerate that draws random numbers, accumulates gradients and evaluates."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast.integrations.accelerate import run as held

SIZE, BATCH, EPOCHS = 22, 4, 3
BATCHES = -(-SIZE // BATCH)


class Counter:
    """An object of the user's own, registered for checkpointing."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Small:
    """Everything that is prepared."""

    def __init__(self, *, seedable: bool = False, stateful: bool = False, accumulate: int = 1, seed: int = 7) -> None:
        set_seed(seed)
        config = DataLoaderConfiguration(use_seedable_sampler=seedable, use_stateful_dataloader=stateful)
        self.accelerator = Accelerator(cpu=True, dataloader_config=config, gradient_accumulation_steps=accumulate)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.7)
        rows = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(5))
        loader = DataLoader(TensorDataset(rows, torch.arange(SIZE)), batch_size=BATCH, shuffle=True)
        prepared = self.accelerator.prepare(net, optimizer, scheduler, loader)
        self.net, self.optimizer, self.scheduler, self.loader = prepared
        self.counter = Counter()
        self.accelerator.register_for_checkpointing(self.counter)
        self.seen: list[int] = []
        self.left = 0
        self.number = signal.SIGKILL

    def stop(self, batch: int, number: int = signal.SIGKILL) -> Small:
        """Sends this process a signal behind a batch."""
        self.left, self.number = batch, number
        return self

    def step(self, batch: list[torch.Tensor]) -> None:
        self.seen += batch[1].tolist()
        with self.accelerator.accumulate(self.net):
            self.accelerator.backward((self.net(batch[0]) - 1).square().mean())
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        self.counter.count += 1
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def plain(self) -> Small:
        for _ in range(EPOCHS):
            for batch in self.loader:
                self.step(batch)
        return self.keep_state()

    def train(self, root: Path, **options: Any) -> Small:
        with held(self.accelerator, root, **options) as run:
            for epoch in run.epochs(EPOCHS):
                for batch in run.batches(self.loader):
                    self.step(batch)
                run.end(epoch, val_loss=random.random())
        self.run = run
        return self.keep_state()

    def keep_state(self) -> Small:
        """Keeps all that two trainings must have alike."""
        inner = self.optimizer.optimizer.state_dict()
        moments = {f"{i}.{k}": v for i, s in inner["state"].items() for k, v in s.items()}
        self.state = {
            **{name: value.clone() for name, value in self.net.state_dict().items()},
            **moments,
            "lr": torch.tensor(inner["param_groups"][0]["lr"]),
            "rng": torch.get_rng_state(),
            "count": torch.tensor(self.counter.count),
        }
        return self
