"""One small model under every wrapper, on any of the processes of a group, and its state as one process sees it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WRAPPERS = ("single", "ddp", "fsdp", "tp", "fsdp+tp")


class Net(nn.Module):
    """Sizes that no number of ranks divides, tied to nothing, with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 12)
        self.down = nn.Linear(12, 7)
        self.norm = nn.LayerNorm(7)
        self.few = nn.Parameter(torch.ones(1, 3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.down(torch.relu(self.up(x)))).sum() + self.few.sum()


class Part:
    """The first ``size`` processes: their group and meshes. Made by all processes at once, in one order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.group = dist.new_group(list(range(size)), backend="gloo")
        self.line = DeviceMesh("cpu", list(range(size)))
        square = torch.arange(size).reshape(2, -1) if size % 2 == 0 else None
        self.square = None if square is None else DeviceMesh("cpu", square, mesh_dim_names=("dp", "tp"))


def wrapped(kind: str, part: Part, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of one seed under a wrapper, and its optimizer, after a step: on every process of a part."""
    torch.manual_seed(seed)
    net: nn.Module = Net()
    net.count.fill_(seed)
    net.mean.normal_()
    if kind == "ddp":
        net = nn.parallel.DistributedDataParallel(net, process_group=part.group)
    elif kind == "fsdp":
        fully_shard(net.up, mesh=part.line)
        fully_shard(net, mesh=part.line)
    elif kind == "tp":
        _parallel(net, part.line)
    elif kind == "fsdp+tp":
        assert part.square is not None
        _parallel(net, part.square["tp"])
        fully_shard(net, mesh=part.square["dp"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01 * (seed + 1), foreach=False)
    net(torch.randn(4, 5)).backward()
    optimizer.step()
    return net, optimizer


def _parallel(net: nn.Module, mesh: DeviceMesh) -> None:
    parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What ``dcp.save`` is given."""
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim, "step": 7, "args": {"name": "a", "widths": (5, 12)}}


def give(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """What follows ``dcp.load``."""
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])


def full(tree: Any) -> Any:
    """A state with whole tensors; a collective call where some are not."""
    if isinstance(tree, dict):
        return {key: full(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [full(value) for value in tree]
    if isinstance(tree, DTensor):
        return tree.full_tensor().detach().clone()
    return tree.detach().clone() if isinstance(tree, torch.Tensor) else tree


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two whole states differ, to the bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = {str(key): key for key in left}, {str(key): key for key in right}
        found = [f"{path}.{key}: only on one side" for key in keys[0].keys() ^ keys[1].keys()]
        both = keys[0].keys() & keys[1].keys()
        return found + [d for k in both for d in differences(left[keys[0][k]], right[keys[1][k]], f"{path}.{k}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for at, (a, b) in enumerate(zip(left, right, strict=True)) for d in differences(a, b, f"{path}.{at}")]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
        return [] if same else [path]
    return [] if type(left) is type(right) and left == right else [f"{path}: {left!r} and {right!r}"]
