"""A small training for ``holdfast prove``, sound or with one flaw: what a resume then gets wrong is what it names."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import holdfast


class Shuffled(Sampler[int]):
    """Draws the order from a generator of its own, where nobody looks for one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.draws = [np.random.default_rng(5)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.draws[0].permutation(self.size).tolist())

    def __len__(self) -> int:
        return self.size


class EarlyStopping:
    """Ends the training after the second epoch that it sees."""

    def __init__(self) -> None:
        self.counter = 0

    def is_enough(self) -> bool:
        self.counter += 1
        return self.counter >= 2


class Parts:
    """Everything that a training is made of."""

    def __init__(self, flaw: str, workers: int) -> None:
        torch.manual_seed(time.time_ns() % 2**31 if flaw == "clock" else 3)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.sched = torch.optim.lr_scheduler.LinearLR(self.opt, total_iters=30)
        self.ema = torch.optim.swa_utils.AveragedModel(self.net)
        data = TensorDataset(torch.arange(66.0).reshape(22, 3) / 66)
        order: dict[str, Any] = {"sampler": Shuffled(22)} if flaw == "order" else {"shuffle": True}
        self.loader = DataLoader(data, batch_size=4, num_workers=workers, **order)

    def objects(self, flaw: str) -> dict[str, Any]:
        found = {"model": self.net, "opt": self.opt, "sched": self.sched, "ema": self.ema}
        return {name: value for name, value in found.items() if name != flaw}

    def step(self, batch: Tensor) -> None:
        self.opt.zero_grad()
        self.net(batch).square().mean().backward()
        self.opt.step()
        self.sched.step()
        self.ema.update_parameters(self.net)

    def loss(self) -> float:
        return float(sum(parameter.sum() for parameter in self.ema.module.parameters()))


def train(root: Path, flaw: str, workers: int) -> None:
    parts = Parts(flaw, workers)
    stopping = EarlyStopping() if flaw == "counter" else None
    save = "3ep" if flaw == "anew" else "1ep"
    objects = {**parts.objects(flaw), "loader": parts.loader}
    background = flaw == "background"
    with holdfast.Run(root, **objects, rng=flaw != "rng", args=flaw, save=save, background=background) as run:
        if flaw == "restart" and run.resume() is not None:
            raise RuntimeError("this script can't go on")
        for epoch in run.epochs(0 if flaw == "nothing" else 3):
            for (batch,) in run.batches(parts.loader):
                parts.step(batch)
            run.end(epoch, loss=parts.loss())
            if stopping is not None and stopping.is_enough():
                break
    last = f"{root}@last"
    if flaw != "nothing" and holdfast.restore(last, model=Parts(flaw, 0).net).values["args"] != flaw:
        raise RuntimeError("that was the run of another training")


def own_loop(root: Path) -> None:
    parts = Parts("", 0)
    with holdfast.Run(root, **parts.objects("")) as run:
        at = run.resume()
        for step in range(at.step if at else 0, 30):
            parts.step(torch.rand(4, 3))
            if step % 3 == 2:
                run.save(step=step + 1, metrics={"loss": parts.loss()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--flaw", default="")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(3)
    if args.flaw == "own loop":
        own_loop(args.root)
    elif args.flaw == "two":
        train(args.root / "a", args.flaw, args.workers)
        train(args.root / "b", args.flaw, args.workers)
    else:
        train(args.root, args.flaw, args.workers)


if __name__ == "__main__":
    main()
