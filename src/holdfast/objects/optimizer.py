"""Optimizers: their state by parameter, with the parameters' names beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from holdfast.objects.stateful import StatefulPart


class OptimizerPart(StatefulPart):
    """An optimizer.

    Args:
        obj: the optimizer.
        names: parameter id -> name, from the modules that are saved or restored beside it.
    """

    kind = "optimizer"

    def __init__(self, obj: Optimizer, names: dict[int, str]) -> None:
        super().__init__(obj)
        self._names = names

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "param_names": self.param_names()}

    def param_names(self) -> list[str] | None:
        """Names in the order of the state's integer keys, or None when a parameter belongs to no module given."""
        names = [self._names.get(id(p)) for group in self.obj.param_groups for p in group["params"]]
        return None if None in names else [name for name in names if name is not None]

    def param_shapes(self) -> list[tuple[int, ...]]:
        """Shapes in the order of the state's integer keys."""
        return [tuple(p.shape) for group in self.obj.param_groups for p in group["params"]]

    def parameters(self) -> list[torch.Tensor]:
        """In the order of the state's integer keys."""
        return [p for group in self.obj.param_groups for p in group["params"]]

    def group_sizes(self) -> list[int]:
        """Parameters in each group."""
        return [len(group["params"]) for group in self.obj.param_groups]

    def targets(self) -> dict[str, torch.Tensor]:
        """State tensors that exist already, by the dotted name that they have in ``state_dict()``."""
        parameters = [p for group in self.obj.param_groups for p in group["params"]]
        return {
            f"state.{index}.{name}": value
            for index, parameter in enumerate(parameters)
            for name, value in self.obj.state.get(parameter, {}).items()
            if isinstance(value, torch.Tensor)
        }

    def spare(self) -> Any:
        """The present state, by reference: tensors are kept, only which belongs where is copied."""
        state = {parameter: dict(values) for parameter, values in self.obj.state.items()}
        return state, [dict(group) for group in self.obj.param_groups]

    def roll_back(self, spare: Any) -> None:
        state, groups = spare
        self.obj.state.clear()
        self.obj.state.update(state)
        for group, old in zip(self.obj.param_groups, groups, strict=True):
            group.clear()
            group.update(old)


def is_scheduler(obj: Any) -> bool:
    """Whether ``obj`` is one of torch's learning-rate schedulers."""
    return isinstance(obj, torch.optim.lr_scheduler.LRScheduler)
