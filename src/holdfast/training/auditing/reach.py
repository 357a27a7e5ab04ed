"""What the objects of a run cover: everything whose state is in their state_dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from holdfast.objects.module import unwrap
from holdfast.objects.order import generators_of, parts_of

_LEAVES = (str, bytes, int, float, type(None), type, ModuleType, FunctionType, torch.Tensor)
_LAYERS = 6
"""How deep an object of the user's own is followed: what hangs there is covered by its state_dict."""


class Reached:
    """What is in a run, directly or inside something that is.

    Args:
        registered: the objects of this run and of others that are alive.
        loaders: of these runs.
    """

    def __init__(self, registered: Iterable[Any], loaders: Iterable[Any]) -> None:
        self._ids: set[int] = set()
        self._tensors: set[int] = set()
        self._layouts: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        for obj in registered:
            self._add(obj)
        for loader in loaders:
            self._add_loader(loader)

    def covers(self, obj: Any) -> bool:
        """Whether an object's state is in the run's commits."""
        return id(obj) in self._ids

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a parameter or buffer belongs to a module of the run."""
        return id(tensor) in self._tensors

    def copied(self, module: nn.Module) -> str | None:
        """The class of a module of the run whose parameters have the very shapes of this one's."""
        layout = _layout(module.parameters())
        return next((name for name, other in self._layouts if layout and layout == other), None)

    def shadows(self, value: Any) -> bool:
        """Whether a list or dict holds a tensor for each parameter, or for each tensor of the state, of a module."""
        tensors = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(tensors, list) or not tensors or not all(isinstance(one, torch.Tensor) for one in tensors):
            return False
        if any(self.owns(one) for one in tensors):
            return False
        return any(_layout(tensors) == layout for _, layout in self._layouts)

    def _add(self, obj: Any) -> None:
        self._ids.add(id(obj))
        if isinstance(obj, nn.Module):
            self._add_module(obj)
        elif isinstance(obj, LRScheduler):
            self._follow(obj, LRScheduler)
        elif isinstance(obj, Optimizer):
            self._follow(obj, Optimizer)
        elif not type(obj).__module__.startswith("torch."):
            self._follow(obj, object)

    def _add_module(self, module: nn.Module) -> None:
        self._ids.update(id(part) for part in module.modules())
        inner = unwrap(module)
        tensors = [*inner.parameters(), *inner.buffers()]
        self._tensors.update(map(id, tensors))
        name = type(inner).__name__
        self._layouts += [(name, _layout(inner.parameters())), (name, _layout(inner.state_dict().values()))]

    def _follow(self, obj: Any, kind: type) -> None:
        """Covers what hangs on an object and is of ``kind``: the schedulers that a sequence of them goes through."""
        todo = [(part, 1) for part in _parts(obj)]
        while todo:
            part, depth = todo.pop()
            if issubclass(type(part), _LEAVES):
                continue
            if isinstance(part, kind) and id(part) not in self._ids:
                self._ids.add(id(part))
                if isinstance(part, nn.Module):
                    self._add_module(part)
            elif not isinstance(part, dict | list | tuple):
                continue
            if depth < _LAYERS:
                todo += [(inner, depth + 1) for inner in _parts(part)]

    def _add_loader(self, loader: Any) -> None:
        parts = parts_of(loader)
        self._ids.update(map(id, (*parts, *generators_of(parts))))


def _parts(obj: Any) -> Iterator[Any]:
    if isinstance(obj, dict):
        yield from obj.values()
    elif isinstance(obj, list | tuple):
        yield from obj
    else:
        yield from vars(obj).values() if hasattr(obj, "__dict__") else ()


def _layout(tensors: Iterable[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(one.shape) for one in tensors if isinstance(one, torch.Tensor))
