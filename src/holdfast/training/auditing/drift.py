"""What changes in a run's objects and is in no state_dict: plain attributes and buffers that are not persistent.

The values are noted when the run is made, before the first item, and compared when an audit asks. Numbers are noted as
they are; of a tensor a weak reference, its version counter and, where it is small and on the CPU, a digest: nothing is
kept alive, and a model of the size of GPT-2 takes less than a millisecond.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from holdfast.objects.module import unwrap
from holdfast.storage.digest import digest_bytes

_DIGESTED = 64 << 10
"""Bytes up to which a tensor's values are noted as a digest; larger ones are told by identity and version."""
_MODULES_OWN = frozenset(vars(nn.Module()))
_RECOMPUTED = (("_g", "_v"), ("_orig",))
"""What weight_norm and spectral_norm call the parameters from which they set a plain attribute at each forward."""


class Change(msgspec.Struct, frozen=True):
    """One value that changed and that no state_dict holds.

    Attributes:
        name: with the object's name in the run, ``model.block.steps_seen``.
        attribute: its last part.
        before: the number when the run was made or last audited, as text; None of a tensor, or when there was none.
        now: the value.
        buffer: whether it is a buffer that was registered with ``persistent=False``.
    """

    name: str
    attribute: str
    before: str | None
    now: str
    buffer: bool


class _Tensor:
    """A tensor as it was: enough to notice that it was written or replaced, nothing that keeps it alive."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.ref = weakref.ref(tensor)
        self.version = None if tensor.is_inference() else tensor._version
        self.digest = _digest(tensor)

    def differs(self, tensor: torch.Tensor) -> bool:
        if self.digest is not None:
            return self.digest != _digest(tensor)
        return self.ref() is not tensor or tensor.is_inference() or self.version != tensor._version


_Mark = int | float | _Tensor


class Baseline:
    """The plain values of a run's objects at one moment.

    Args:
        objects: what the run was given, by name.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._refs = [weakref.ref(value) for value in objects.values() if _has_weak_references(value)]
        self._marks = _marks(objects)

    def registered(self) -> list[Any]:
        """The run's objects that are still alive."""
        return [found for ref in self._refs if (found := ref()) is not None]

    def changes(self, objects: Mapping[str, Any]) -> list[Change]:
        """What changed since the run was made, or since this was last asked."""
        before, self._marks = self._marks, _marks(objects)
        saved = {name: _Saved(value) for name, value in objects.items()}
        found = []
        for (name, path, key), (value, buffer) in _plain_values(objects):
            old = before.get((name, path, key))
            if (old is None or _changed(old, value)) and not saved[name].holds(path, key, value):
                full = ".".join(part for part in (name, path, key) if part)
                told = None if old is None or isinstance(old, _Tensor) else repr(old)
                found.append(Change(full, key, told, _text(value), buffer))
        return found


def _marks(objects: Mapping[str, Any]) -> dict[tuple[str, str, str], _Mark]:
    return {
        place: _Tensor(value) if isinstance(value, torch.Tensor) else value
        for place, (value, _) in _plain_values(objects)
    }


def _plain_values(objects: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], tuple[Any, bool]]]:
    """(object, path in it, attribute) and (value, whether it is a buffer) of everything to watch."""
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            for path, module in unwrap(value).named_modules():
                for key, attribute in _attributes(module):
                    yield (name, path, key), (attribute, False)
                for key in module._non_persistent_buffers_set:
                    buffer = module._buffers.get(key)
                    if buffer is not None:
                        yield (name, path, key), (buffer, True)
        elif not type(value).__module__.startswith(("torch.", "numpy.")) and hasattr(value, "__dict__"):
            for key, attribute in vars(value).items():
                if _watched(attribute):
                    yield (name, "", key), (attribute, False)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    parameters = module._parameters
    for key, value in vars(module).items():
        if key in _MODULES_OWN or not _watched(value):
            continue
        if isinstance(value, torch.Tensor) and any(all(key + end in parameters for end in e) for e in _RECOMPUTED):
            continue
        yield key, value


def _watched(value: Any) -> bool:
    cls = type(value)
    if cls is int or cls is float or cls is bool:
        return True
    # a tensor with a graph is an intermediate result, made anew by each forward
    return isinstance(value, torch.Tensor) and value.grad_fn is None and not isinstance(value, nn.Parameter)


def _changed(old: _Mark, new: Any) -> bool:
    if isinstance(old, _Tensor):
        return not isinstance(new, torch.Tensor) or old.differs(new)
    if isinstance(new, torch.Tensor):
        return True
    return bool(old != new and (old == old or new == new))


def _digest(tensor: torch.Tensor) -> str | None:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    if type(tensor) is not torch.Tensor or tensor.nbytes > _DIGESTED:
        return None
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest_bytes(flat.view(torch.uint8).numpy().tobytes())}"


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} tensor {tuple(value.shape)}".removeprefix("torch.")
    return repr(value)


def _has_weak_references(value: Any) -> bool:
    return bool(type(value).__weakrefoffset__)


class _Saved:
    """What an object's own state says of its plain attributes: extra state, or a state_dict of the user's."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj
        self._entries: dict[str, list[tuple[str, Any]]] = {}

    def holds(self, path: str, key: str, value: Any) -> bool:
        """Whether the state that covers the attribute has a key of its name, or the very value."""
        if path not in self._entries:
            self._entries[path] = list(_entries(self._state(path)))
        wanted = key.lstrip("_")
        return any(name.lstrip("_") == wanted or _same(held, value) for name, held in self._entries[path])

    def _state(self, path: str) -> Any:
        if not isinstance(self._obj, nn.Module):
            return self._obj.state_dict()
        module = unwrap(self._obj).get_submodule(path)
        cls = type(module)
        if cls.state_dict is not nn.Module.state_dict:
            return module.state_dict()
        return module.get_extra_state() if cls.get_extra_state is not nn.Module.get_extra_state else {}


def _entries(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _entries(value, str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _entries(value, name)
    else:
        yield name, tree


def _same(held: Any, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return isinstance(held, torch.Tensor) and held.data_ptr() == value.data_ptr()
    return type(held) is type(value) and bool(held == value) and type(value) is not bool
