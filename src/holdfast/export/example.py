"""The example of a model's inputs: bound to ``forward``, flattened, and named."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from holdfast.errors import ArgumentError
from holdfast.state.paths import printable

_Plain = bool | int | float | str


class Example:
    """A model's example inputs.

    Attributes:
        leaves: tensors and plain values in the order in which exporters take them.
        names: one for each leaf: the parameter of ``forward``, and inside of nested ones ``pair_0``, ``batch_mask``.
        parameters: the parameters of ``forward`` that are given by position; ``*args`` with its star.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: list[str], names: list[str]) -> None:
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.parameters = parameters
        self.names = names

    @property
    def tensors(self) -> list[int]:
        """Which of the leaves are tensors."""
        return [at for at, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    def arguments(self, leaves: list[Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments made of these leaves; those of the example itself by default."""
        args, kwargs = pytree.tree_unflatten(self.leaves if leaves is None else leaves, self.spec)
        return args, kwargs

    def by_parameter(self, leaves: list[Any]) -> dict[str, Any]:
        """What stands in place of the arguments, by the parameter of ``forward``: as torch.export takes shapes."""
        args, kwargs = self.arguments(leaves)
        plain = [name for name in self.parameters if not name.startswith("*")]
        starred = {name[1:]: args[len(plain) :] for name in self.parameters if name.startswith("*")}
        return {**dict(zip(plain, args, strict=False)), **starred, **kwargs}


def bind_example(module: nn.Module, example: Any) -> Example:
    """Binds what the caller gave as ``example`` to the parameters of the module's ``forward``.

    Args:
        module: the model.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        ArgumentError: ``forward`` does not take them, or one is neither a tensor nor a plain value.
    """
    args, kwargs = as_call(example)
    name = type(module).__name__
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except ValueError:  # a module without Python code: it says itself what it takes
        return Example(*_checked(args, kwargs), [f"input_{at}" for at in range(len(args))], _names(args, kwargs, []))
    except TypeError as reason:
        raise ArgumentError(f"example=: {name}.forward{signature} does not take it: {reason}") from None
    args, kwargs = _checked(bound.args, bound.kwargs)
    positional = [one for one in bound.arguments if one not in kwargs]
    kinds = {one: signature.parameters[one].kind for one in positional}
    parameters = [
        f"*{one}" if kind is inspect.Parameter.VAR_POSITIONAL else one
        for one, kind in kinds.items()
        if kind is not inspect.Parameter.VAR_KEYWORD
    ]
    return Example(args, kwargs, parameters, _names(args, kwargs, parameters))


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a caller gave as ``example``, as positional and keyword arguments.

    Raises:
        ArgumentError: it is neither a tensor, nor a tuple, nor a dict with names as keys.
    """
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    raise ArgumentError(
        f"example= is a {type(example).__name__}; give a tensor, a tuple of positional arguments, or a dict of keyword "
        "arguments"
    )


def _checked(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments on the CPU and without gradients, when all are what a file of another runtime can be given."""
    seen = [False]

    def checked(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            seen[0] = True
            if value.layout is not torch.strided or value.is_quantized or value.is_meta:
                kind = "without values (meta)" if value.is_meta else f"{value.layout}, {value.dtype}"
                raise ArgumentError(f"example=: `{printable(name)}` is a tensor {kind}; a plain one is wanted")
            return value.detach().cpu()
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {key: checked(item, f"{name}.{key}") for key, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(checked(item, f"{name}.{at}") for at, item in enumerate(value))
        raise ArgumentError(
            f"example=: `{printable(name)}` is a {type(value).__name__}; tensors, plain values, and tuples, lists and "
            "dicts of them are exported"
        )

    result = checked(tuple(args), "args"), checked(dict(kwargs), "kwargs")
    if not seen[0]:
        raise ArgumentError("example=: has no tensor in it; give the inputs that forward takes")
    return result


def _names(args: tuple[Any, ...], kwargs: dict[str, Any], parameters: list[str]) -> list[str]:
    plain = [name for name in parameters if not name.startswith("*")]
    starred = next((name[1:] for name in parameters if name.startswith("*")), "input")
    names = [*plain[: len(args)], *(f"{starred}_{at}" for at in range(len(args) - len(plain)))]
    tops = [*zip(names, args, strict=True), *kwargs.items()]
    return [name for top, value in tops for name in _inside(top, value)]


def _inside(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [inner for key, item in value.items() for inner in _inside(f"{name}_{key}", item)]
    if isinstance(value, tuple | list):
        return [inner for at, item in enumerate(value) for inner in _inside(f"{name}_{at}", item)]
    return [name]


def output_names(answer: Any) -> list[str]:
    """A name for each leaf of an answer: ``output`` for a lone one, keys of a dict, ``output_1``."""
    if isinstance(answer, Mapping):
        return [inner for key, item in answer.items() for inner in _inside(str(key), item)]
    return _inside("output", answer)


def foreign_class(answer: Any) -> str | None:
    """The name of a class in an answer that torch takes apart here and that another process may not know."""
    if type(answer) not in (tuple, list, dict, OrderedDict) and not isinstance(answer, torch.Tensor | None | _Plain):
        return type(answer).__name__
    inside = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, tuple | list) else ()
    return next((found for item in inside if (found := foreign_class(item))), None)
