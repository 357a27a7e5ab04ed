"""Constructing a model from what the caller allows and what the file records of its arguments."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from holdfast.errors import ArgumentError, ConfigMissing
from holdfast.objects.quantized import origin_of
from holdfast.objects.stateful import class_name, own_class

_Class = TypeVar("_Class", bound=type[nn.Module])
_recorded: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Constructor arguments by module, kept outside the modules: their namespace is the user's."""


def record_config(cls: _Class) -> _Class:
    """A class decorator: remembers the arguments of each construction, so that ``save`` records them by itself.

    Args:
        cls: a module class; its arguments must be plain data, as ``save`` takes it.

    Returns:
        The same class.

    Example:
        >>> import holdfast, torch
        >>> @holdfast.record_config
        ... class Net(torch.nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(width, 1)
        >>> saved = holdfast.save(Net(width=8), "net.pt")
        >>> holdfast.build("net.pt", factory=Net).fc.in_features
        8
    """
    original = cls.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def recording_init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls:  # a subclass has arguments of its own
            bound = signature.bind(self, *args, **kwargs)
            given = dict(list(bound.arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    given |= given.pop(name, {})
            _recorded[self] = given

    cls.__init__ = recording_init  # type: ignore[method-assign]
    return cls


def find_config(module: nn.Module) -> Any:
    """How a module was constructed, where it says so: by ``record_config``, a dataclass, or a ``config`` attribute.

    For a quantized module, how the float one that it was made of was.
    """
    origin = origin_of(module)
    if origin is not None:
        return origin.config
    if module in _recorded:
        return _recorded[module]
    if dataclasses.is_dataclass(module):
        return {field.name: getattr(module, field.name) for field in dataclasses.fields(module) if field.init}
    config = getattr(module, "config", None)
    as_dict = getattr(config, "to_dict", None)  # transformers' configurations; first, for they are dataclasses too
    if callable(as_dict) and not isinstance(config, type):
        return as_dict()
    is_plain = isinstance(config, Mapping) or (dataclasses.is_dataclass(config) and not isinstance(config, type))
    return config if is_plain else None


_sources: weakref.WeakKeyDictionary[type, str | None] = weakref.WeakKeyDictionary()


def source_digest(cls: type) -> str | None:
    """A digest of a class's source text, to notice that the code changed; None where there is no source."""
    if cls not in _sources:
        try:
            _sources[cls] = hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()
        except (OSError, TypeError):
            _sources[cls] = None
    return _sources[cls]


def module_source(module: nn.Module) -> str | None:
    """The digest of the source of a module's class; of the float module's, when it is quantized."""
    origin = origin_of(module)
    return source_digest(own_class(module)) if origin is None else origin.source


def source_drift(module: nn.Module, record: Mapping[str, Any]) -> str | None:
    """What to say when a module's class has other source than when it was saved; None when nothing is known."""
    origin = origin_of(module)
    name = class_name(module) if origin is None else origin.class_name
    if record.get("class") != name or not record.get("source"):
        return None
    here = module_source(module)
    if here is None or here == record["source"]:
        return None
    return f"the source of {record['class']} has changed since it was saved"


def construct(factory: Callable[..., Any], config: Any, *, file: str) -> nn.Module:
    """Calls ``factory`` with a recorded config: as keywords where it takes them, else as its one argument.

    A factory that names its ``config_class``, as transformers' models do, is given one of those.

    Args:
        factory: a class or function that returns a module.
        config: what ``save(..., config=...)`` recorded, or None.
        file: named in errors.

    Raises:
        ConfigMissing: the factory needs arguments and the file records none.
        ArgumentError: the factory does not take the config, or returns no module.
    """
    name = getattr(factory, "__qualname__", repr(factory))
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a builtin: no model, which its answer will show
        signature = inspect.Signature()
    if config is None and _binds(signature, (), {}):
        made = factory()
    elif config is None:
        raise ConfigMissing(
            f"`{file}`: {name}{signature} needs arguments and the file records none: save it with "
            f"holdfast.save(model, ..., config={{...}}), decorate {name} with @holdfast.record_config, or give "
            f"factory=lambda: {name}(...)",
            file=file,
        )
    elif isinstance(config, Mapping) and _binds(signature, (), dict(config)):
        made = factory(**config)
    elif _binds(signature, (config,), {}):
        made = factory(_as_wanted(factory, config))
    else:
        raise ArgumentError(
            f"`{file}`: {name}{signature} takes neither the keywords of the recorded config {config!r} nor the config "
            "as its one argument",
            file=file,
        )
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"`{file}`: {name} returned a {type(made).__name__}, a torch module is wanted", file=file)
    return made


def _as_wanted(factory: Callable[..., Any], config: Any) -> Any:
    from_dict = getattr(getattr(factory, "config_class", None), "from_dict", None)
    return from_dict(dict(config)) if callable(from_dict) and isinstance(config, Mapping) else config


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
