"""A small training in Lightning that draws random numbers, steps schedulers and validates."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SIZE, BATCH, EPOCHS = 22, 4, 3
BATCHES = -(-SIZE // BATCH)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)


class Net(LightningModule):
    """Dropout draws in each step; the plateau scheduler steps behind each epoch, after the hooks that save."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.seen: list[int] = []
        self.losses: list[float] = []
        self.extra = 0
        self.rng: Tensor

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.seen += batch[1].tolist()
        loss = (self.layers(batch[0]) - 1).square().mean()
        self.extra += 1
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        noise = torch.rand(1).item()  # of the global generator: what validates draws too
        self.log("val_loss", (self.layers(batch[0]) - 1).square().mean() + 1e-3 * noise)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["extra"] = self.extra

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.extra = checkpoint["extra"]


class Two(Net):
    """Steps two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()
        del self.seen[-len(batch[1]) :]

    def configure_optimizers(self) -> Any:
        momentum = torch.optim.SGD(self.layers[3].parameters(), lr=0.1, momentum=0.9)
        return [torch.optim.AdamW(self.layers[0].parameters()), momentum]


class Stop(Callback):
    """Sends this process a signal behind a batch, counted from the start of this process."""

    def __init__(self, batch: int, number: int = signal.SIGKILL) -> None:
        self.left, self.number = batch, number

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(SIZE, 3, generator=generator)
    return DataLoader(TensorDataset(rows, torch.arange(SIZE)), batch_size=BATCH, shuffle=True)


def train(
    folder: Path,
    *callbacks: Callback,
    epochs: int = EPOCHS,
    ckpt_path: Any = None,
    kind: type[Net] = Net,
    **options: Any,
) -> Net:
    """Trains from the seed, or from where the callbacks or ``ckpt_path`` stand."""
    seed_everything(7, verbose=False)
    net = kind()
    options = {"enable_checkpointing": False, **options}
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    held_out = DataLoader(TensorDataset(torch.randn(8, 3), torch.arange(8)), batch_size=4)
    trainer.fit(net, data(), held_out, ckpt_path=ckpt_path)
    net.rng = torch.get_rng_state()
    return net


def state_of(net: Net) -> dict[str, Any]:
    """All that two trainings must have alike."""
    optimizer = net.trainer.optimizers[0]
    logged = net.trainer.fit_loop.epoch_loop._batches_that_stepped  # the step of a logger
    moments = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    return {
        **net.state_dict(),
        **moments,
        "lr": torch.tensor(optimizer.param_groups[0]["lr"]),
        "rng": net.rng,
        "extra": torch.tensor(net.extra),
        "steps": torch.tensor([net.global_step, net.trainer.current_epoch, logged]),
        "val_loss": net.trainer.callback_metrics["val_loss"],
    }


def differing(one: Net, other: Net) -> list[str]:
    """What is not the same, bit for bit."""
    first, second = state_of(one), state_of(other)
    return [name for name in first if not torch.equal(first[name], second[name])]
