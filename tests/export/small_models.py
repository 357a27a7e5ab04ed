"""Small models for exports, each with something that exporters get wrong."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Images to classes, with modes that matter: dropout and batch norm."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))


class Reader(nn.Module):
    """Integers in, an LSTM, a dict with a tuple in it out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids):  # type: ignore[no-untyped-def]
        answers, state = self.lstm(self.words(ids))
        return {"logits": self.head(answers[:, -1]), "state": state}


class Branching(nn.Module):
    """A branch on the data: a trace keeps the one that the example took."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return -x


class Counting(nn.Module):
    """Forward changes a buffer, an attribute, and draws a number that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(4))
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = x
        torch.rand(3)
        return x * self.weight


class Random(nn.Module):
    """Dropout that eval() does not turn off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x)


class Many(nn.Module):
    """Keyword arguments, a plain one, nested ones, one that is not used; an input among the answers."""

    def forward(self, x, unused, scale=2, *, pair=None):  # type: ignore[no-untyped-def]
        y = x * scale + pair["a"]
        return {"y": y, "again": y, "x": x, "none": None, "sums": (y.sum(),)}
