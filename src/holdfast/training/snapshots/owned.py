"""Which memory changes in an optimizer's step, and in no other place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from holdfast.serialization.memory import TensorMemory, TensorSource
from holdfast.serialization.sharded import here
from holdfast.storage.source import ByteSource

Owner = tuple[Optimizer, torch.Tensor, torch.Tensor]
"""An optimizer, the parameter whose gradient makes it change the bytes in question, and the tensor that has them: of a
DTensor it is the DTensor, since only that one counts what is written into its part."""


class Owned:
    """The memory that optimizers own: their parameters, and the tensors of their state."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._at: dict[tuple[torch.device, int], tuple[int, list[Owner]]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._add(parameter, optimizer, parameter)
                    for value in optimizer.state.get(parameter, {}).values():
                        if isinstance(value, torch.Tensor):
                            self._add(value, optimizer, parameter)

    def _add(self, value: torch.Tensor, optimizer: Optimizer, parameter: torch.Tensor) -> None:
        tensor = here(value)
        if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_inference():
            place = (tensor.device, tensor.data_ptr())
            self._at.setdefault(place, (tensor.nbytes, []))[1].append((optimizer, parameter, value))

    def owners(self, source: ByteSource) -> list[Owner]:
        """Which optimizers change these bytes, each with the parameter whose gradient makes it; empty for nobody's."""
        if not isinstance(source, TensorMemory | TensorSource):
            return []
        address = source.address if isinstance(source, TensorMemory) else source.tensor.data_ptr()
        length, owners = self._at.get((source.tensor.device, address), (0, []))
        return owners if source.size <= length else []
