"""Tensors of which this process has a part: DTensors of FSDP2, tensor parallelism and their like."""

from __future__ import annotations

import sys
from typing import Any

import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats.boxes import Box


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor. torch's part for them is not imported: without it there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: torch.Tensor, name: str) -> tuple[torch.Tensor, Box]:
    """What this process has of a sharded tensor, and where that lies in it.

    Raises:
        UnsupportedValue: it is a sum that was not made yet, or lies in more than one box.
    """
    sharded: Any = tensor.detach()
    try:
        chunks = sharded.__create_chunk_list__()
    except (RuntimeError, ValueError) as reason:
        raise UnsupportedValue(f"`{name}`: has no values of its own yet: {reason}", path=name) from reason
    if len(chunks) != 1:
        raise UnsupportedValue(
            f"`{name}`: this process has {len(chunks)} parts of it; one is wanted. Store full_tensor()", path=name
        )
    return sharded.to_local(), Box(tuple(chunks[0].offsets), tuple(chunks[0].sizes))


def here(tensor: torch.Tensor, name: str = "tensor") -> torch.Tensor:
    """A tensor as this process has it in memory."""
    return local_part(tensor, name)[0] if is_sharded(tensor) else tensor
