"""From a live object to its adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from holdfast.errors import ArgumentError
from holdfast.objects.module import ModulePart, parameter_names
from holdfast.objects.optimizer import OptimizerPart, is_scheduler
from holdfast.objects.stateful import GeneratorPart, Stateful, StatefulPart, class_name


class SchedulerPart(StatefulPart):
    """A learning-rate scheduler."""

    kind = "scheduler"

    def at_odds(self, others: Collection[Any]) -> Iterator[str]:
        """What to say when an optimizer that is not restored too has another learning rate than the scheduler gave it.

        So it is when a scheduler was constructed after its optimizer's state was loaded: constructing takes the first
        step again, and the state that the scheduler is then given only says what the rate should be.
        """
        optimizer, given = getattr(self.obj, "optimizer", None), getattr(self.obj, "_last_lr", None)
        if optimizer is None or not given or any(optimizer is other for other in others):
            return
        rates = [group["lr"] for group in optimizer.param_groups]
        if rates != given:
            yield (
                f"its optimizer's learning rate is {rates}, the file's scheduler left it at {given}; construct both, "
                "then restore both in one call"
            )


class ScalerPart(StatefulPart):
    """A GradScaler. On an accelerator ``state_dict()`` would wait for the device, twice, with ``item()``."""

    def capture(self) -> Any:
        scaler = self.obj
        if not scaler.is_enabled() or scaler._scale is None or _is_near(scaler._scale):
            return scaler.state_dict()
        return {
            "scale": scaler._scale,
            "growth_factor": scaler.get_growth_factor(),
            "backoff_factor": scaler.get_backoff_factor(),
            "growth_interval": scaler.get_growth_interval(),
            "_growth_tracker": scaler._growth_tracker,
        }

    def assign(self, state: Any) -> None:
        numbers = {
            name: value.item() if isinstance(value, torch.Tensor) else value for name, value in dict(state).items()
        }
        self.obj.load_state_dict(numbers)


def _is_near(tensor: torch.Tensor) -> bool:
    """Whether reading a value takes no wait for a device."""
    return tensor.is_cpu


def is_object(value: Any) -> bool:
    """Whether ``value`` is a live object that is saved by its state, not a plain value."""
    if isinstance(value, type):
        return False
    return isinstance(value, torch.Generator | Stateful)


def adapt(value: Any, name: str, names: dict[int, str]) -> StatefulPart:
    """The adapter for one live object.

    Args:
        value: the object.
        name: what the caller calls it; errors say it.
        names: parameter id -> name, for optimizers.

    Raises:
        ArgumentError: it has no ``state_dict`` and ``load_state_dict``.
    """
    if isinstance(value, nn.Module):
        return ModulePart(value)
    if isinstance(value, Optimizer):
        return OptimizerPart(value, names)
    if isinstance(value, torch.Generator):
        return GeneratorPart(value)
    if isinstance(value, torch.amp.GradScaler):
        return ScalerPart(value)
    if not is_object(value):
        raise ArgumentError(
            f"`{name}` is a {class_name(value).removeprefix('builtins.')}, which has no state_dict() and "
            "load_state_dict(): give the object itself (a module, an optimizer, a scheduler, ...)",
            path=name,
        )
    return SchedulerPart(value) if is_scheduler(value) else StatefulPart(value)


def adapt_all(objects: Mapping[str, Any]) -> dict[str, StatefulPart]:
    """Adapters by name; objects that are None are left out. Modules give optimizers their parameter names."""
    names = parameter_names({name: value for name, value in objects.items() if isinstance(value, nn.Module)})
    return {name: adapt(value, name, names) for name, value in objects.items() if value is not None}
