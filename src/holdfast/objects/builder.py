"""Constructing a model from what the caller allows and what the file records of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from holdfast.errors import ArgumentError, ConfigMissing


def construct(factory: Callable[..., Any], config: Any, *, file: str) -> nn.Module:
    """Calls ``factory`` with a recorded config: as keywords where it takes them, else as its one argument.

    Args:
        factory: a class or function that returns a module.
        config: what ``save(..., config=...)`` recorded, or None.
        file: named in errors.

    Raises:
        ConfigMissing: the factory needs arguments and the file records none.
        ArgumentError: the factory does not take the config, or returns no module.
    """
    name = getattr(factory, "__qualname__", repr(factory))
    signature = inspect.signature(factory)
    if config is None and _binds(signature, (), {}):
        made = factory()
    elif config is None:
        raise ConfigMissing(
            f"`{file}`: {name}{signature} needs arguments and the file records none: save it with "
            f"holdfast.save(model, ..., config={{...}}), or give factory=lambda: {name}(...)",
            file=file,
        )
    elif isinstance(config, Mapping) and _binds(signature, (), dict(config)):
        made = factory(**config)
    elif _binds(signature, (config,), {}):
        made = factory(config)
    else:
        raise ArgumentError(
            f"`{file}`: {name}{signature} takes neither the keywords of the recorded config {config!r} nor the config "
            "as its one argument",
            file=file,
        )
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"`{file}`: {name} returned a {type(made).__name__}, a torch module is wanted", file=file)
    return made


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
