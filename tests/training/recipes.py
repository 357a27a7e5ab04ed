"""Trainings of every common shape, to be stopped and resumed: what has state beside one model and one optimizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

SIZE, BATCH, EPOCHS = 20, 4, 3


class Augmented(Dataset[Tensor]):
    """Items that numpy and Python change at random when they are fetched."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        item = torch.full((3,), index / SIZE)
        if random.random() < 0.5:
            item = item.flip(0)
        return item + torch.from_numpy(np.random.normal(size=3)).float()


class Stopping:
    """Early stopping that says what it counts, as an object of the user's own."""

    def __init__(self) -> None:
        self.best, self.bad = float("inf"), 0

    def see(self, loss: float) -> None:
        self.bad = 0 if loss < self.best else self.bad + 1
        self.best = min(self.best, loss)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.bad = state["best"], state["bad"]


class Recipe:
    """One model with dropout, its optimizer and a loader; the others differ from it in what they say."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 1))
        self.opt: Any = torch.optim.AdamW(self.net.parameters(), lr=0.02)
        self.objects: dict[str, Any] = {"model": self.net, "opt": self.opt}
        self.loader = DataLoader(Augmented(), batch_size=BATCH, shuffle=True)
        self.build()

    def build(self) -> None:
        """Makes what is more."""

    def loss(self, batch: Tensor) -> Tensor:
        return self.net(batch).square().mean() * (1 + random.random())

    def step(self, batch: Tensor, number: int) -> None:
        """Trains on one batch, the ``number``-th of its epoch."""
        self.opt.zero_grad()
        self.loss(batch).backward()
        self.opt.step()

    def evaluate(self) -> None:
        """What comes between an epoch's last item and its end."""


class Schedulers(Recipe):
    """One that steps with each batch on top of one that looks at the loss, and early stopping."""

    def build(self) -> None:
        self.warmup = torch.optim.lr_scheduler.LinearLR(self.opt, 0.1, total_iters=8)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.opt, patience=0)
        self.stopping = Stopping()
        self.objects |= {"warmup": self.warmup, "plateau": self.plateau, "stopping": self.stopping}

    def step(self, batch: Tensor, number: int) -> None:
        super().step(batch, number)
        self.warmup.step()

    def evaluate(self) -> None:
        loss = self.loss(torch.ones(2, 3)).item()
        self.plateau.step(loss)
        self.stopping.see(loss)


class Scaled(Recipe):
    """A GradScaler that skips some of the steps and changes its scale."""

    def build(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=2)
        self.objects["scaler"] = self.scaler

    def step(self, batch: Tensor, number: int) -> None:
        self.opt.zero_grad()
        self.scaler.scale(self.loss(batch) * (1e12 if random.random() < 0.3 else 1.0)).backward()
        self.scaler.step(self.opt)
        self.scaler.update()


class Averaged(Recipe):
    """An exponential moving average of the weights, which the evaluation looks at."""

    def build(self) -> None:
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.objects["ema"] = self.ema

    def step(self, batch: Tensor, number: int) -> None:
        super().step(batch, number)
        self.ema.update_parameters(self.net)


class Closure(Recipe):
    """LBFGS, which calls the model as often as it likes."""

    def build(self) -> None:
        self.opt = torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=3, history_size=4)
        self.objects["opt"] = self.opt

    def step(self, batch: Tensor, number: int) -> None:
        def closure() -> Tensor:
            self.opt.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        self.opt.step(closure)


class Adversaries(Recipe):
    """Two models, each with its optimizer, one of which takes a step with every second batch."""

    def build(self) -> None:
        self.critic = nn.Linear(1, 1)
        self.opt_critic = torch.optim.RMSprop(self.critic.parameters(), lr=0.01, momentum=0.5)
        self.objects |= {"critic": self.critic, "opt_critic": self.opt_critic}

    def step(self, batch: Tensor, number: int) -> None:
        made = self.net(torch.randn_like(batch))
        self.opt_critic.zero_grad()
        (self.critic(made.detach()).mean() - self.critic(batch[:, :1]).mean()).backward()
        self.opt_critic.step()
        if number % 2 == 1:
            self.opt.zero_grad()
            (-self.critic(made).mean()).backward()
            self.opt.step()


class Accumulated(Recipe):
    """Gradients of two batches for each step, and what is left at the end of an epoch is applied there."""

    def step(self, batch: Tensor, number: int) -> None:
        (self.loss(batch) / 2).backward()
        if number % 2 == 1 or number == len(self.loader) - 1:
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.opt.step()
            self.opt.zero_grad()


class Validated(Recipe):
    """A second loader, read beside the run, that draws from the same generators."""

    def build(self) -> None:
        self.validation = DataLoader(Augmented(), batch_size=8, shuffle=True)

    def evaluate(self) -> None:
        self.net.eval()
        with torch.no_grad():
            sum(self.net(batch).sum() for batch in self.validation)
        self.net.train()


class ValidatedByWorkers(Validated):
    """The second loader keeps its workers, and draws their seed once: from a generator of its own."""

    def build(self) -> None:
        self.validation = DataLoader(
            Augmented(), batch_size=8, num_workers=1, persistent_workers=True, generator=torch.Generator()
        )


class OwnGenerators(Recipe):
    """Dropout in the loop from a generator that is an object of the run, and a dataset with one of its own."""

    def build(self) -> None:
        self.noise = torch.Generator().manual_seed(4)
        self.objects["noise"] = self.noise

    def loss(self, batch: Tensor) -> Tensor:
        return super().loss(batch + torch.randn(batch.shape, generator=self.noise))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "plain": Recipe,
    "schedulers": Schedulers,
    "scaler": Scaled,
    "average": Averaged,
    "closure": Closure,
    "adversaries": Adversaries,
    "accumulation": Accumulated,
    "validation": Validated,
    "validation by workers": ValidatedByWorkers,
    "own generator": OwnGenerators,
}


def state_of(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Everything that a resume must bring back, leaf by leaf, tensors as their bytes."""
    for name, value in recipe.objects.items():
        yield from _leaves(name, value.get_state() if isinstance(value, torch.Generator) else value.state_dict())
    yield from _leaves("torch", torch.get_rng_state())
    yield "python", random.getstate()
    yield from _leaves("numpy", list(np.random.get_state()))


def _leaves(path: str, tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(f"{path}.{key}", value)
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _leaves(f"{path}.{index}", value)
    else:
        yield path, tree.tobytes() if isinstance(tree, np.ndarray) else _bytes(tree)


def _bytes(leaf: Any) -> Any:
    return (leaf.dtype, leaf.shape, leaf.numpy().tobytes()) if isinstance(leaf, Tensor) else leaf
