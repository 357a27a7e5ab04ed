"""Learns to read handwritten digits. Stop it whenever you like, run it again, and it goes on where it was.

    python examples/digits.py [RUN_DIR] [--epochs 8]

The data are scikit-learn's 1,797 scanned digits of 8 x 8 pixels. The last 360 are never trained on: the best model of
the run reads them at the end.
"""

from __future__ import annotations

import argparse
import random
import zlib
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast.training.resuming import Position


class Net(nn.Module):
    """A small convolutional net with batch norm and dropout: state that a resume can get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 4 * 4, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the ten digits, shape (n, 10), for images of shape (n, 1, 8, 8)."""
        return self.classifier(self.features(images))


def digits() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """The digits to train on, to choose the best model by, and to report on: 1,200, 237 and 360 of them."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    parts = zip(images.split([1200, 237, 360]), labels.split([1200, 237, 360]), strict=True)
    train, choose, report = (TensorDataset(*part) for part in parts)
    return train, choose, report


@torch.no_grad()
def accuracy(net: nn.Module, data: TensorDataset) -> float:
    """The share of ``data`` that ``net`` reads correctly."""
    net.eval()
    images, labels = data.tensors
    return (net(images).argmax(dim=1) == labels).float().mean().item()


def train(args: argparse.Namespace) -> None:
    """Trains up to ``args.epochs``, from wherever the run in ``args.run_dir`` stands."""
    seed_everything(args.seed)
    train_data, choose_data, _ = digits()
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr)
    loader = DataLoader(train_data, batch_size=32, shuffle=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs * len(loader))

    run = holdfast.Run(
        args.run_dir,
        model=net,
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        args=args,
        best="val_acc:max",
        keep="last:2 best:1",
        save=args.save,
        background=args.background,
    )
    with run:
        at = run.resume()
        if at is not None:
            print(f"resuming at epoch {at.epoch}, batch {at.batch} (step {at.step})")
        for epoch in run.epochs(args.epochs):
            net.train()
            for images, labels in run.batches(loader):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(images), labels)
                loss.backward()
                optimizer.step()
                scheduler.step()
                if args.log:
                    log(args.log, run.position, loss, images)
            val_acc = accuracy(net, choose_data)
            run.end(epoch, val_acc=val_acc)
            print(f"epoch {epoch}: val_acc {val_acc:.3f}")


def log(file: Path, at: Position, loss: Tensor, images: Tensor) -> None:
    """Appends one line: where we are, the exact loss, and a checksum of the images seen, which tells their order."""
    with file.open("a") as lines:
        lines.write(f"{at.epoch} {at.batch} {loss.item().hex()} {zlib.crc32(images.numpy().tobytes()):08x}\n")


def seed_everything(seed: int) -> None:
    """Makes two trainings with one seed the same; all three random states are part of every commit."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main() -> None:
    """Trains, or goes on training, then reads the held-out digits with the best model of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", default="runs/digits", metavar="RUN_DIR")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="1ep", help="when to save: 1ep, 7step, 15min, or several")
    parser.add_argument("--background", action="store_true", help="train on while a save is written")
    parser.add_argument("--log", type=Path, help="append one line for each batch to this file")
    args = parser.parse_args()

    train(args)
    net = Net()
    holdfast.restore(f"{args.run_dir}@best", model=net, mode="eval")
    print(f"held-out digits read correctly by the best model: {accuracy(net, digits()[2]):.1%}")


if __name__ == "__main__":
    main()
