"""Modules. The only place that unwraps DataParallel, DistributedDataParallel and torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from holdfast.objects.layers import structure_of
from holdfast.objects.quantized import (
    backend_of,
    described,
    engine,
    inner_tensors,
    is_torchao,
    origin_of,
    own_state,
    part_names,
    plain_state,
    settle_cells,
)
from holdfast.objects.stateful import StatefulPart
from holdfast.state.layers import layer_json

swap_tensors: Callable[[torch.Tensor, torch.Tensor], None] = torch.utils.swap_tensors
"""Exchanges what two tensors are; both keep their identity."""


def _inner(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The name and the module inside a wrapper; None for a module of the user's own."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module", module.module
    parts = module.__dict__.get("_modules")
    # what torch.compile returns; naming its class would import the compiler. A scripted module has no dict of its parts
    inner = parts.get("_orig_mod") if isinstance(parts, dict) else None
    return ("_orig_mod", inner) if isinstance(inner, nn.Module) else None


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside wrappers, in any nesting."""
    while (found := _inner(module)) is not None:
        module = found[1]
    return module


def _cleaner(module: nn.Module) -> Callable[[str], str] | None:
    """What takes the segments of wrapped parts inside out of a name; None where no part is wrapped."""
    wrapped = [(path, found[0]) for path, part in module.named_modules() if (found := _inner(part)) is not None]
    if not wrapped:
        return None
    segments = {(*(path.split(".") if path else ()), name) for path, name in wrapped}

    def clean(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for end, part in enumerate(parts, 1) if tuple(parts[:end]) not in segments)

    return clean


def clean_state(module: nn.Module) -> Any:
    """``state_dict()`` under the names that the user's classes give, also where a part inside is wrapped."""
    state: Any = module.state_dict()
    clean = _cleaner(module)
    if clean is None:
        return state
    cleaned = type(state)((clean(name), value) for name, value in state.items())
    if hasattr(state, "_metadata"):
        cleaned._metadata = {clean(name): value for name, value in state._metadata.items()}
    return cleaned


class ModulePart(StatefulPart):
    """A module, seen without its wrappers: files hold the names that the user's class gives."""

    kind = "module"

    def __init__(self, obj: nn.Module) -> None:
        super().__init__(unwrap(obj))

    def capture(self) -> Any:
        return plain_state(clean_state(self.obj))

    def describe(self) -> dict[str, Any]:
        known: dict[str, Any] = {"training": self.obj.training}
        quantized, origin = described(self.obj), origin_of(self.obj)
        if quantized is not None:
            known["quantized"] = msgspec.to_builtins(quantized)
        if quantized is not None and origin is not None:  # what is to be constructed is the float module
            known |= {"class": origin.class_name, **({"structure": origin.structure} if origin.structure else {})}
        elif quantized is None and (structure := structure_of(self.obj)) is not None:
            known["structure"] = layer_json(structure)
        return {**super().describe(), **known}

    def targets(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in self.obj.state_dict().items():
            if is_torchao(value):
                found.update(inner_tensors(value, name))
            elif isinstance(value, torch.Tensor) and not is_lazy(value):
                found[name] = value
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """Under the names that the state has."""
        clean = _cleaner(self.obj) or (lambda name: name)
        return {clean(name): value for name, value in self.obj.named_parameters(remove_duplicate=False)}

    def groups(self) -> dict[str, str]:
        """What changes less often than the trained parameters: ``frozen`` parameters and ``buffers``, by name."""
        names = [name for name, value in self.obj.named_parameters() if not value.requires_grad]
        frozen = dict.fromkeys(part_names(self.obj, names), "frozen")
        return frozen | {name: "buffers" for name, _ in self.obj.named_buffers()}

    def has_own_loader(self) -> bool:
        """Whether loading is more than copying by name: hooks, extra state, or overridden methods somewhere inside."""
        return any(_loads_itself(module) for module in self.obj.modules())

    def assign(self, state: Any) -> None:
        """Loads through torch's own path, with every hook; strict, as ``load_state_dict`` is."""
        self.load(state, strict=True)

    def load(self, state: Any, *, strict: bool) -> tuple[list[str], list[str]]:
        """Loads through torch's own path, with every hook; returns missing and unexpected names."""
        with engine(backend_of(self.obj)):
            incompatible = self.obj.load_state_dict(own_state(self.obj, state), strict=strict)
        settle_cells(self.obj)
        if incompatible is None:  # an override that returns nothing has raised where it was not content
            return [], []
        return part_names(self.obj, list(incompatible.missing_keys)), list(incompatible.unexpected_keys)

    def materialise(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Gives tensors of a model made on the meta device memory, without a new identity: optimizers keep them.

        Returns:
            Pairs of (the tensor, what it was), for ``torch.utils.swap_tensors`` to undo it.
        """
        swapped: list[tuple[torch.Tensor, torch.Tensor]] = []
        owned = dict(self.obj.named_parameters(remove_duplicate=False)) | dict(self.obj.named_buffers())
        if not any(tensor.is_meta for tensor in owned.values()):
            return swapped
        for name in self.targets():
            tensor = owned.get(name)
            if tensor is not None and tensor.is_meta:
                real = torch.empty_like(tensor, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    real = nn.Parameter(real, requires_grad=tensor.requires_grad)
                swap_tensors(tensor, real)
                swapped.append((tensor, real))
        return swapped

    def spare(self) -> list[_Before]:
        return [_Before(module) for module in self.obj.modules()]

    def roll_back(self, spare: list[_Before]) -> None:
        for before in spare:
            before.bring_back_extra()
        for before in spare:  # after those: what they set is set back too
            before.bring_back()


class _Before:
    """One module as it was before its own code loaded something: attributes, tensors and their values, extra state."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(vars(module))
        self._members = [dict(members) for members in _members(module)]
        tensors = [*module._parameters.values(), *module._buffers.values()]
        self._values = [
            (tensor, tensor.detach().clone()) for tensor in tensors if tensor is not None and not is_lazy(tensor)
        ]
        self._extra = copy.deepcopy(module.get_extra_state()) if _has_extra_state(module) else None

    def bring_back_extra(self) -> None:
        """What only the module's own code reaches: containers that it filled in place, objects outside Python."""
        if self._extra is not None:
            self._module.set_extra_state(self._extra)

    def bring_back(self) -> None:
        vars(self._module).clear()
        vars(self._module).update(self._attributes)
        for members, before in zip(_members(self._module), self._members, strict=True):
            members.clear()
            members.update(before)
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)


def _members(module: nn.Module) -> list[dict[str, Any]]:
    return [module._parameters, module._buffers, module._modules]


def _has_extra_state(module: nn.Module) -> bool:
    cls = type(module)
    return cls.get_extra_state is not nn.Module.get_extra_state and cls.set_extra_state is not nn.Module.set_extra_state


_OWN_CODE = ("load_state_dict", "_load_from_state_dict", "state_dict", "_save_to_state_dict", "set_extra_state")
_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")


def _of_torch(hook: Any) -> bool:
    """FSDP's own hooks see to it that a module's parameters are their shards, and change no name or value."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.fsdp._fully_shard.")


def _loads_itself(module: nn.Module) -> bool:
    """Also a module that makes its state_dict itself: the tensors in there need not be those that it computes with."""
    if any(not _of_torch(hook) for hooks in _HOOKS for hook in getattr(module, hooks).values()):
        return True
    # torch.nn's own overrides (batch norm) only mend files of old versions, where keys are missing
    methods = [(getattr(type(module), name), getattr(nn.Module, name)) for name in _OWN_CODE]
    return any(own is not torchs and not own.__module__.startswith("torch.nn.modules.") for own, torchs in methods)


def aliases(targets: dict[str, torch.Tensor]) -> dict[str, str]:
    """Names that share one tensor's memory with an earlier name: ``{"lm_head.weight": "wte.weight"}``."""
    at_address: dict[int, list[str]] = {}
    found: dict[str, str] = {}
    targets = {name: _in_memory(tensor) for name, tensor in targets.items()}
    for name, tensor in targets.items():
        if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel():
            others = at_address.setdefault(tensor.data_ptr(), [])
            first = next((other for other in others if _same_place(tensor, targets[other])), None)
            if first is None:
                others.append(name)
            else:
                found[name] = first
    return found


def _in_memory(tensor: Any) -> torch.Tensor:
    """What this process has of a tensor that several share."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "__create_chunk_list__") else tensor
    return local


def _same_place(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors that begin at one address are the same elements."""
    return (left.device, left.shape, left.stride(), left.dtype) == (
        right.device,
        right.shape,
        right.stride(),
        right.dtype,
    )


def parameter_names(modules: dict[str, nn.Module]) -> dict[int, str]:
    """The name of each parameter by its id; prefixed with the module's own name when there are several modules."""
    names: dict[int, str] = {}
    for key, module in modules.items():
        prefix = f"{key}." if len(modules) > 1 else ""
        for name, parameter in unwrap(module).named_parameters():
            names.setdefault(id(parameter), prefix + name)
    return names
