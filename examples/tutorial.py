"""Walks through what one does with a saved model, heading by heading, and prints what happens.

    python examples/tutorial.py [FOLDER]

The model is the small convolutional net of many tutorials; the data are random, so that everything takes a second.
The headings are those of docs/recipes.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import holdfast


class SmallNet(nn.Module):
    """Two convolutions and three linear layers for colour images of 32 x 32 pixels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes, shape (n, classes), for images of shape (n, 3, 32, 32)."""
        maps = self.pool(self.conv1(images).relu())
        maps = self.pool(self.conv2(maps).relu())
        return self.fc3(self.fc2(self.fc1(maps.flatten(1)).relu()).relu())


def heading(text: str) -> None:
    """Prints a heading."""
    print(f"\n== {text}")


def look(net: SmallNet, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """R1: what a model, an optimizer and a file hold."""
    heading("R1 what is inside")
    print(holdfast.summary(net))
    print(holdfast.summary(optimizer))
    holdfast.save(net, folder / "net.pt")
    with holdfast.open(folder / "net.pt") as opened:
        print(opened.format, "with", len(opened.keys()), "tensors, none of them read so far")


def parameters(net: SmallNet, folder: Path) -> None:
    """R2: parameters only, as a torch file and as safetensors; a model that does not fit is left as it was."""
    heading("R2 parameters")
    for name in ("net.pt", "net.safetensors"):
        holdfast.save(net, folder / name)
        fresh = SmallNet()
        report = holdfast.restore(folder / name, model=fresh, mode="eval")
        print(f"{name}: {len(report.loaded)} tensors, equal: {fresh.fc3.weight.equal(net.fc3.weight)}")
    plain = torch.load(folder / "net.pt", weights_only=True)
    print("plain torch.load reads it:", list(plain)[:2], "...")
    try:
        holdfast.restore(folder / "net.pt", model=SmallNet(classes=5))
    except holdfast.HoldfastError as error:
        print("refused:", error)


def checkpoint(net: SmallNet, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """R5 and R28: everything in one file; what is None is left out, what nobody asked for is named."""
    heading("R5, R28 a checkpoint")
    scheduler = StepLR(optimizer, step_size=10)
    args = argparse.Namespace(lr=0.01, name="baseline")
    state = {"model": net, "optimizer": optimizer, "scheduler": scheduler, "ema": None, "epoch": 3, "args": args}
    holdfast.save(state, folder / "ckpt.pt")
    report = holdfast.restore(folder / "ckpt.pt", model=net, optimizer=optimizer, scheduler=None)
    print("epoch", report.values["epoch"], "with", report.values["args"], "and not asked for:", report.unused)

    torch.save({"model_state_dict": net.state_dict(), "loss": 0.5}, folder / "by_hand.tar")
    report = holdfast.restore(folder / "by_hand.tar", model=net)
    print("a file written by hand: loss", report.values["loss"])


def several(folder: Path) -> None:
    """R7: several models and optimizers in one file."""
    heading("R7 several models")
    a, b = SmallNet(), SmallNet(classes=2)
    optimizers = torch.optim.Adam(a.parameters()), torch.optim.SGD(b.parameters(), lr=0.1)
    holdfast.save({"A": a, "B": b, "opt_A": optimizers[0], "opt_B": optimizers[1]}, folder / "both.pt")
    report = holdfast.restore(folder / "both.pt", A=a, opt_A=optimizers[0])
    print("A restored; also in the file:", report.unused)


def devices(net: SmallNet, folder: Path) -> None:
    """R12: where tensors arrive."""
    heading("R12 devices")
    state = holdfast.load(folder / "net.pt", map_location="cpu")
    print("load(map_location='cpu'):", state["fc3.weight"].device)
    print("load(map_location='auto'):", holdfast.load(folder / "net.pt", map_location="auto")["fc3.weight"].device)
    holdfast.restore(folder / "net.pt", model=net)
    print("restore keeps the model's device:", net.fc3.weight.device)


def best_and_some(net: SmallNet, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """R21, R22, R23 and R25: a run keeps the best and some others, in folders that it makes."""
    heading("R21, R23, R25 the best, and every second epoch")
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    loader = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)
    losses = [0.9, 0.4, 0.7, 0.8]
    objects = {"model": net, "optimizer": optimizer, "loader": loader}
    rules = {"best": "val_loss:min", "keep": "last:1 best:1 every:2ep", "save": "1ep"}
    with holdfast.Run(folder / "runs" / "a", **objects, **rules) as run:
        for epoch in run.epochs(len(losses)):
            for x, y in run.batches(loader):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            run.end(epoch, val_loss=losses[epoch])
            if losses[epoch] == min(losses):
                best = holdfast.snapshot(net)
    for step in sorted((folder / "runs" / "a").glob("step-*")):
        print("kept:", step.name)

    heading("R22 the best in memory, and as a file")
    holdfast.restore(f"{folder}/runs/a@best", model=net, mode="eval")
    same = all(value.equal(best[name]) for name, value in net.state_dict().items())
    print("the snapshot taken at the best epoch is what @best holds:", same)
    holdfast.convert(f"{folder}/runs/a@best", folder / "best_model.pth")
    print("best_model.pth for plain torch.load:", sorted(torch.load(folder / "best_model.pth", weights_only=True)))


def infer(folder: Path) -> None:
    """R29: a model to use, made and loaded in one call."""
    heading("R29 inference")
    model = holdfast.build(folder / "net.pt", factory=SmallNet)
    with torch.no_grad():
        index = model(torch.randn(1, 3, 32, 32)).argmax(dim=1).item()
    print(f"in training mode: {model.training}; class index of a random image: {index}")


def main() -> None:
    """Walks through all headings, in a folder that is thrown away unless one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="where to leave the files")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = args.folder or Path(thrown_away)
        net = SmallNet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        look(net, optimizer, folder)
        parameters(net, folder)
        checkpoint(net, optimizer, folder)
        several(folder)
        devices(net, folder)
        best_and_some(net, optimizer, folder)
        infer(folder)


if __name__ == "__main__":
    main()
