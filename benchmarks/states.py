"""The states that benchmarks save and load, named as in docs/promises.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """One transformer block of GPT-2, parameters only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class GPT2(nn.Module):
    """The parameters of GPT-2 124M: 148 tensors, 0.5 GB in float32."""

    def __init__(self, layers: int = 12, width: int = 768, words: int = 50257) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.h = nn.ModuleList(Block(width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)


class Live:
    """A model, and an optimizer that has made one step: what is saved, and what is restored into."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.optimizer = torch.optim.AdamW(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def objects(self) -> dict[str, Any]:
        return {"model": self.net, "optimizer": self.optimizer}

    @property
    def tree(self) -> dict[str, Any]:
        return {name: one.state_dict() for name, one in self.objects.items()}

    @property
    def flat(self) -> dict[str, torch.Tensor]:
        """Every tensor under one name, for peers that know no trees."""
        tensors = {f"model.{name}": value for name, value in self.net.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        return tensors

    def take(self, found: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Copies named tensors into the live ones; what a peer maps is read by that."""
        live = self.flat
        for name, value in found:
            live.pop(name).copy_(value)
        if live:
            raise SystemExit(f"a peer left out {list(live)[:3]}")

    def take_tree(self, tree: dict[str, Any]) -> None:
        """load_state_dict, with every page touched."""
        self.net.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        for values in self.optimizer.state.values():  # mapped pages are read when they are touched
            for value in values.values():
                value.reshape(-1)[::1024].sum()

    def blocks(self) -> list[memoryview]:
        """The bytes of every tensor, as they lie."""
        return [memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) for tensor in self.flat.values()]


def gpt2(layers: int = 12) -> Live:
    """State G: GPT-2 with its AdamW moments, 1.49 GB with all layers, and smaller in all parts with fewer."""
    return Live(GPT2(layers, words=50257 * layers // 12))


def many_tensors(count: int = 50_000, size: int = 64) -> dict[str, torch.Tensor]:
    """State M: tensors so small that what is done per tensor is all that counts."""
    return {f"layer.{number}.weight": torch.randn(size) for number in range(count)}
