"""A training that draws random numbers everywhere it can, to be killed and resumed; run as a script it forks itself.

As a script: ``python small_training.py ROOT KIND SEED POINTS`` trains once undisturbed, then for each of POINTS random
batches trains in a child that is killed there with SIGKILL, resumes in another child, and prints one JSON line.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

import holdfast

SIZE, BATCH, EPOCHS = 22, 4, 3
BATCHES = -(-SIZE // BATCH)


class Noisy(Dataset[Tensor]):
    """Items with noise from all three generators, drawn when they are fetched."""

    def __init__(self, noise: bool) -> None:
        self.data = torch.arange(SIZE * 3, dtype=torch.float32).reshape(SIZE, 3) / 66
        self.noise = noise

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        if not self.noise:
            return self.data[index]
        return self.data[index] + torch.randn(3) + random.random() + np.random.rand()


class Stream(IterableDataset[Tensor]):
    """The same items without an index."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(Noisy(noise=False).data)


class OwnState:
    """A loader that keeps its own place, as torchdata's StatefulDataLoader does."""

    def __init__(self) -> None:
        self.epoch, self.batch = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(self.epoch)).split(BATCH)
        while self.batch < len(order):
            self.batch += 1
            yield Noisy(noise=True).data[order[self.batch - 1]]
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffle": lambda: DataLoader(Noisy(True), batch_size=BATCH, shuffle=True),
    "in order": lambda: DataLoader(Noisy(True), batch_size=BATCH),
    "drop_last": lambda: DataLoader(Noisy(True), batch_size=BATCH, shuffle=True, drop_last=True),
    "generator": lambda: DataLoader(Noisy(True), batch_size=BATCH, shuffle=True, generator=_seeded()),
    "sampler generator": lambda: DataLoader(
        Noisy(True), batch_size=BATCH, sampler=RandomSampler(range(SIZE), replacement=True, generator=_seeded())
    ),
    "weighted": lambda: DataLoader(
        Noisy(True), batch_size=BATCH, sampler=WeightedRandomSampler(torch.arange(1.0, SIZE + 1), SIZE)
    ),
    "no batching": lambda: DataLoader(Noisy(True), batch_size=None, shuffle=True),
    "workers": lambda: DataLoader(Noisy(False), batch_size=BATCH, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(
        Noisy(False), batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "persistent workers, generator": lambda: DataLoader(
        Noisy(False), batch_size=BATCH, shuffle=True, num_workers=1, persistent_workers=True, generator=_seeded()
    ),
    "stream": lambda: DataLoader(Stream(), batch_size=BATCH),
    "list": lambda: list(Noisy(False).data.split(BATCH)),
    "own state": OwnState,
}
"""Every kind of loader whose order a resume must get right."""


class Objects:
    """A fresh model with dropout and batch norm, its optimizer, scheduler and loader, all from one seed."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.sched = torch.optim.lr_scheduler.OneCycleLR(self.opt, 0.1, total_steps=SIZE * EPOCHS + 1)
        self.loader = LOADERS[kind]()

    def step(self, batch: Tensor) -> None:
        """One optimizer step; what was seen goes into a digest."""
        batch = batch.reshape(-1, 3)
        loss = self.net(torch.cat([batch, batch.flip(0)])).square().mean() * (1 + random.random() + np.random.rand())
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.sched.step()

    def fingerprint(self) -> str:
        """A digest of every bit that a resume must bring back."""
        digest = hashlib.sha256()
        state = [self.net.state_dict(), self.opt.state_dict(), self.sched.state_dict()]
        digest.update(repr([_exact(part) for part in state]).encode())
        digest.update(torch.get_rng_state().numpy().tobytes() + repr(random.getstate()).encode())
        digest.update(np.random.get_state()[1].tobytes())
        return digest.hexdigest()


def _exact(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _exact(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_exact(value) for value in tree]
    return tree.numpy().tobytes().hex() if isinstance(tree, Tensor) else tree


def train(
    root: Path | None,
    kind: str,
    *,
    stop: Callable[[int], None] = lambda _: None,
    order: list[str] | None = None,
    **run: Any,
) -> str:
    """Trains to the end from wherever ``root`` stands; calls ``stop`` after each optimizer step.

    With ``root`` None it trains without holdfast, as the reference.
    """
    objects = Objects(kind)
    done = 0

    def step(epoch: int, batch: Tensor) -> None:
        nonlocal done
        objects.step(batch)
        done += 1
        if order is not None:
            order.append(f"{epoch} {hashlib.sha256(batch.numpy().tobytes()).hexdigest()[:12]}")
        stop(done)

    if root is None:
        for epoch in range(EPOCHS):
            for batch in objects.loader:
                step(epoch, batch)
        return objects.fingerprint()
    with holdfast.Run(
        root, model=objects.net, opt=objects.opt, sched=objects.sched, loader=objects.loader, **{"save": "2step", **run}
    ) as training:
        for epoch in training.epochs(EPOCHS):
            for batch in training.batches(objects.loader):
                step(epoch, batch)
            training.end(epoch)
    return objects.fingerprint()


def _in_child(work: Callable[[], str]) -> tuple[int, str]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    status = os.waitpid(pid, 0)[1]
    os.set_blocking(reader, False)  # loader workers that outlive a killed parent still hold the other end
    try:
        text = os.read(reader, 1000).decode()
    except BlockingIOError:
        text = ""
    os.close(reader)
    return status, text


def main(root: str, kind: str, seed: str, points: str) -> None:
    """Prints ``{"point":, "killed":, "same":}`` for each kill point."""
    torch.set_num_threads(1)
    draw = random.Random(int(seed))
    total = (SIZE if kind == "no batching" else BATCHES) * EPOCHS
    _, whole = _in_child(lambda: train(None, kind))
    for number in range(int(points)):
        point = draw.randrange(1, total)
        folder = Path(root) / str(number)

        def kill(done: int, point: int = point) -> None:
            if done == point:
                os.kill(os.getpid(), signal.SIGKILL)

        status, _ = _in_child(lambda folder=folder, kill=kill: train(folder, kind, stop=kill))
        _, resumed = _in_child(lambda folder=folder: train(folder, kind))
        line = {"point": point, "killed": os.WIFSIGNALED(status), "same": resumed == whole, "saved": point >= 2}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
