"""The states that benchmarks save and load, named as in docs/promises.md."""

from __future__ import annotations

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


def gpt2_with_moments() -> tuple[nn.Module, torch.optim.Optimizer]:
    """State G: the model and an AdamW that has made one step, 1.49 GB."""
    net = GPT2()
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net, optimizer


def many_tensors(count: int = 50_000, size: int = 64) -> dict[str, torch.Tensor]:
    """State M: tensors so small that what is done per tensor is all that counts."""
    return {f"layer.{number}.weight": torch.randn(size) for number in range(count)}
