"""A training that draws random numbers everywhere it can, to be killed and resumed; run as a script it forks itself.

As a script: ``python small_training.py ROOT KIND SEED POINTS`` trains once undisturbed, then POINTS times trains in a
child that is killed with SIGKILL, resumes in another child, and prints one JSON line. The first is killed behind a
random batch, the second at a random time, and so on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torchdata.stateful_dataloader import StatefulDataLoader

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


class Sharded(IterableDataset[Tensor]):
    """Its items shared out to the workers, and shuffled by each."""

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        mine = list(range(SIZE)) if info is None else list(range(info.id, SIZE, info.num_workers))
        random.shuffle(mine)
        return (Noisy(noise=False).data[index] for index in mine)


class Counted(Sharded):
    """A stream that says and takes where it is."""

    def __init__(self) -> None:
        self.done = 0

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        mine = list(range(SIZE)) if info is None else list(range(info.id, SIZE, info.num_workers))
        while self.done < len(mine):
            self.done += 1
            yield Noisy(noise=False).data[mine[self.done - 1]]
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class OwnNoise(Noisy):
    """Noise from generators of the dataset's own."""

    def __init__(self) -> None:
        super().__init__(noise=True)
        self.numpy, self.python = np.random.default_rng(7), random.Random(7)
        self.torch, self.legacy = torch.Generator().manual_seed(7), np.random.RandomState(7)

    def __getitem__(self, index: int) -> Tensor:
        noise = self.numpy.random() + self.python.random() + self.legacy.rand()
        return self.data[index] + noise + torch.rand(3, generator=self.torch)


class Buckets(Sampler[list[int]]):
    """A batch sampler that shuffles by Python's generator, and by one of its own, while the epoch goes on."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(9)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(SIZE))
        random.shuffle(order)
        for start in range(0, SIZE, BATCH):
            yield self.rng.permutation(order[start : start + BATCH]).tolist()

    def __len__(self) -> int:
        return BATCHES


class Counting(Sampler[int]):
    """A sampler that counts its epochs itself, and says so."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        return iter(torch.randperm(SIZE, generator=generator).tolist())

    def __len__(self) -> int:
        return SIZE

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


class Renewing(DataLoader[Tensor]):
    """A loader whose iterator is not torch's own."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch * 2


class Pair:
    """Two loaders as one iterable."""

    def __init__(self, *loaders: Any) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.cat(batches) for batches in zip(*self.loaders, strict=True))


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


def _replica(rank: int) -> DataLoader[Tensor]:
    return DataLoader(Noisy(True), batch_size=2, sampler=DistributedSampler(Noisy(True), num_replicas=2, rank=rank))


def _torchdata(dataset: Any, **options: Any) -> Any:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torchdata 0.11 calls what torch gave up
        return StatefulDataLoader(dataset, batch_size=BATCH, **options)


def _in_workers(workers: int = 2, **options: Any) -> DataLoader[Tensor]:
    return DataLoader(Noisy(False), batch_size=BATCH, num_workers=workers, **options)


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
    "batch sampler": lambda: DataLoader(
        Noisy(True), batch_sampler=BatchSampler(RandomSampler(range(SIZE), generator=_seeded()), BATCH, drop_last=True)
    ),
    "list as sampler": lambda: DataLoader(Noisy(True), batch_size=BATCH, sampler=list(range(SIZE))[::-1]),
    "own batch sampler": lambda: DataLoader(Noisy(True), batch_sampler=Buckets()),
    "own sampler that counts": lambda: DataLoader(Noisy(True), batch_size=BATCH, sampler=Counting()),
    "own generators in the dataset": lambda: DataLoader(OwnNoise(), batch_size=BATCH, shuffle=True),
    "replica 0": lambda: _replica(0),
    "replica 1": lambda: _replica(1),
    "own iterator": lambda: Renewing(Noisy(True), batch_size=BATCH, shuffle=True, generator=_seeded()),
    "two loaders": lambda: Pair(*(DataLoader(Noisy(True), batch_size=BATCH, shuffle=True) for _ in range(2))),
    "workers": lambda: _in_workers(shuffle=True),
    "workers, replacement": lambda: _in_workers(
        prefetch_factor=3, sampler=RandomSampler(range(SIZE), replacement=True, generator=_seeded())
    ),
    "persistent workers": lambda: _in_workers(shuffle=True, persistent_workers=True),
    "persistent workers, generator": lambda: _in_workers(1, shuffle=True, persistent_workers=True, generator=_seeded()),
    "stream": lambda: DataLoader(Stream(), batch_size=BATCH),
    "shuffled stream": lambda: DataLoader(Sharded(), batch_size=BATCH),
    "stream in workers": lambda: DataLoader(Sharded(), batch_size=BATCH, num_workers=2),
    "stream in persistent workers": lambda: DataLoader(
        Stream(), batch_size=BATCH, num_workers=1, persistent_workers=True
    ),
    "list": lambda: list(Noisy(False).data.split(BATCH)),
    "own state": OwnState,
    "torchdata": lambda: _torchdata(Noisy(True), shuffle=True),
    "torchdata, generator": lambda: _torchdata(Noisy(True), shuffle=True, generator=_seeded()),
    "torchdata, stream": lambda: _torchdata(Counted()),
    "torchdata, workers": lambda: _torchdata(Noisy(False), shuffle=True, num_workers=2),
    "torchdata, stream in workers": lambda: _torchdata(Counted(), num_workers=2),
    "torchdata, persistent workers": lambda: _torchdata(
        Noisy(False), shuffle=True, num_workers=2, persistent_workers=True, generator=_seeded()
    ),
}
"""Every kind of loader whose order a resume must get right."""


def set_epoch(loader: Any, epoch: int) -> None:
    """What a program with a DistributedSampler does before each epoch."""
    if isinstance(getattr(loader, "sampler", None), DistributedSampler):
        loader.sampler.set_epoch(epoch)


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
    leave: int | None = None,
    evaluate: Callable[[holdfast.Run, int], None] = lambda run, epoch: None,
    **run: Any,
) -> str:
    """Trains to the end from wherever ``root`` stands; calls ``stop`` after each optimizer step.

    With ``root`` None it trains without holdfast, as the reference. ``leave`` ends each epoch after so many items;
    ``evaluate`` is called between an epoch's last item and its end.
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
            set_epoch(objects.loader, epoch)
            for batch in islice(objects.loader, leave):
                step(epoch, batch)
        return objects.fingerprint()
    with holdfast.Run(
        root, model=objects.net, opt=objects.opt, sched=objects.sched, loader=objects.loader, **{"save": "2step", **run}
    ) as training:
        for epoch in training.epochs(EPOCHS):
            set_epoch(objects.loader, epoch)
            for batch in training.batches(objects.loader):
                step(epoch, batch)
                if leave is not None and training.position.batch + 1 == leave:
                    break
            evaluate(training, epoch)
            training.end(epoch)
    return objects.fingerprint()


def _in_child(work: Callable[[], str], kill_after: float | None = None) -> tuple[int, str]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.set_blocking(reader, False)  # loader workers that outlive a killed parent still hold the other end
    try:
        text = os.read(reader, 1000).decode()
    except BlockingIOError:
        text = ""
    os.close(reader)
    return status, text


def main(root: str, kind: str, seed: str, points: str) -> None:
    """Prints ``{"point":, "killed":, "same":}`` for each kill; its point is a batch, or seconds."""
    torch.set_num_threads(1)
    draw = random.Random(int(seed))
    _, whole = _in_child(lambda: train(None, kind))
    begin = time.monotonic()
    _in_child(lambda: train(Path(root) / "undisturbed", kind))
    seconds = time.monotonic() - begin
    total = (SIZE if kind == "no batching" else BATCHES) * EPOCHS
    for number in range(int(points)):
        by_time = number % 2 == 1
        point = draw.uniform(0.0, seconds) if by_time else draw.randrange(1, total)
        folder = Path(root) / str(number)

        def kill(done: int, point: float = point) -> None:
            if done == point:
                os.kill(os.getpid(), signal.SIGKILL)

        work = functools.partial(train, folder, kind, stop=kill)
        status, _ = _in_child(work, point if by_time else None)
        _, resumed = _in_child(lambda folder=folder: train(folder, kind))
        line = {"point": point, "killed": os.WIFSIGNALED(status) or by_time, "same": resumed == whole}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
