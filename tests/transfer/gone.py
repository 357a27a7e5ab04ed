"""Whole modules pickled by classes that are gone afterwards."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.scale = float("inf")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(2), Block(2), Block(4)])
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(1, 2, 3))
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("transient", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)
        self.own = nn.Parameter(torch.ones(2, 2))
        self.register_parameter("missing", None)
        self.heads = nn.ModuleDict({"a": nn.LSTM(3, 4, 2, bidirectional=True), "b": nn.MultiheadAttention(4, 2)})
        self.normed = nn.utils.weight_norm(nn.Linear(2, 2))
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(5))
        self.free = nn.ParameterList([torch.ones(2), torch.ones(3)])
        self.name = "it's"
        self.sizes = (1, [2.5, None])
        self.act = torch.relu
"""


@contextmanager
def throwaway(source: str = SOURCE, name: str = "throwaway_models") -> Iterator[Any]:
    """A module with the classes of ``source``, importable inside the block alone."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(source, vars(module))
        yield module
    finally:
        del sys.modules[name]
