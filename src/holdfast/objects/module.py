"""Modules. The only place that unwraps DataParallel, DistributedDataParallel and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from holdfast.objects.stateful import StatefulPart, class_name


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside wrappers, in any nesting."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            wrapped: nn.Module = module.module
            module = wrapped
        elif isinstance(inner := module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            module = inner  # what torch.compile returns; naming its class would import the compiler
        else:
            return module


class ModulePart(StatefulPart):
    """A module, seen without its wrappers: files hold the names that the user's class gives."""

    kind = "module"

    def __init__(self, obj: nn.Module) -> None:
        super().__init__(unwrap(obj))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "training": self.obj.training}

    def targets(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.obj.state_dict().items() if isinstance(value, torch.Tensor)}

    def has_own_loader(self) -> bool:
        """Whether loading is more than copying by name: hooks, extra state, or overridden methods somewhere inside."""
        return any(_loads_itself(module) for module in self.obj.modules())

    def assign(self, state: Any) -> None:
        """Loads through torch's own path, with every hook; strict, as ``load_state_dict`` is."""
        self.obj.load_state_dict(state)

    def spare(self) -> Any:
        return {
            name: value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
            for name, value in self.obj.state_dict().items()
        }

    def roll_back(self, spare: Any) -> None:
        with torch.no_grad():
            for name, live in self.targets().items():
                live.copy_(spare[name])
        if any(not isinstance(value, torch.Tensor) for value in spare.values()):
            self.obj.load_state_dict(spare, strict=False)  # extra state has no other way in


def _loads_itself(module: nn.Module) -> bool:
    cls = type(module)
    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return True
    if cls.load_state_dict is not nn.Module.load_state_dict or cls.set_extra_state is not nn.Module.set_extra_state:
        return True
    loader = cls._load_from_state_dict
    # torch.nn's own overrides (batch norm) only mend files of old versions, where keys are missing
    return loader is not nn.Module._load_from_state_dict and not loader.__module__.startswith("torch.nn.modules.")


def aliases(targets: dict[str, torch.Tensor]) -> dict[str, str]:
    """Names that share one tensor's memory with an earlier name: ``{"lm_head.weight": "wte.weight"}``."""
    first: dict[tuple[Any, ...], str] = {}
    found: dict[str, str] = {}
    for name, tensor in targets.items():
        if tensor.numel() and tensor.layout is torch.strided and not tensor.is_meta:
            key = (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if key in first:
                found[name] = first[key]
            else:
                first[key] = name
    return found


def parameter_names(modules: dict[str, nn.Module]) -> dict[int, str]:
    """The name of each parameter by its id; prefixed with the module's own name when there are several modules."""
    names: dict[int, str] = {}
    for key, module in modules.items():
        prefix = f"{key}." if len(modules) > 1 else ""
        for name, parameter in unwrap(module).named_parameters():
            names.setdefault(id(parameter), prefix + name)
    return names


def module_class_name(module: nn.Module) -> str:
    """The full name of the user's class, without wrappers."""
    return class_name(unwrap(module))
