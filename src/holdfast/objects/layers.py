"""Models of torch.nn's own layers: seen as the calls that construct them, and constructed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from holdfast.errors import CorruptFile, MismatchError
from holdfast.objects.stateful import class_name
from holdfast.state.layers import CONTAINERS, Layer, layer_of, plain_value, same_value
from holdfast.state.modules import Module
from holdfast.state.paths import printable
from holdfast.state.values import ATOMS, Opaque, Typed

Shapes = Mapping[str, tuple[int, ...]]
"""Name in the state_dict -> shape."""
_ROOM, _SLACK = 8, 65536
"""A float model may have this many times the elements of its quantized file, whose batch norms went into their
convolutions, and this many more."""


def structure_of(module: nn.Module) -> Layer | None:
    """The calls that construct a live module; None when not all of it is torch.nn's own."""
    if not all(type(part).__module__.startswith("torch.nn.modules.") for part in module.modules()):
        return None
    return layer_of(_as_kept(module))


def _as_kept(module: nn.Module) -> Module:
    """A live module as a pickle of it would show it."""
    return Module(
        class_name(module),
        {name: _kept(value) for name, value in vars(module).items()},
        dict(module._parameters),
        dict(module._buffers),
        {name: None if child is None else _as_kept(child) for name, child in module._modules.items()},
        frozenset(module._non_persistent_buffers_set),
        tuple(name for name, table in vars(module).items() if name.endswith("_hooks") and table),
    )


def _kept(value: Any) -> Any:
    if isinstance(value, tuple):
        return Typed("tuple", [_kept(item) for item in value])
    if isinstance(value, list):
        return [_kept(item) for item in value]
    if type(value) in ATOMS:
        return value
    home = {nn.functional.relu: "torch.nn.functional.relu", nn.functional.gelu: "torch._C._nn.gelu"}
    return Opaque(home.get(value, type(value).__name__) if callable(value) else type(value).__name__, None)


def construct_layers(layer: Layer, shapes: Shapes, file: str) -> nn.Module:
    """Constructs layers without memory for their tensors (on the meta device).

    Args:
        layer: what to construct; only classes of the table can stand in it.
        shapes: what the file has for it; nothing larger is made.
        file: named in errors.

    Raises:
        CorruptFile: the constructor refuses its arguments.
        MismatchError: the layers are not those that the file's tensors belong to.
    """
    made = _on_meta(layer, len(shapes), file)
    wanted = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    for name in (*wanted, *shapes):
        if wanted.get(name) != shapes.get(name):
            raise MismatchError(
                f"`{file}`: `{name}`: the layers as the file describes them have {_shape(wanted.get(name))}, its "
                f"tensors {_shape(shapes.get(name))}. Construct the model yourself and use holdfast.restore",
                file=file,
                path=name,
            )
    return made


def construct_blank(layer: Layer, tensors: int, elements: int, file: str) -> nn.Module:
    """Constructs layers whose values are in a file under other names: a quantized model's float layers.

    Args:
        layer: what to construct; only classes of the table can stand in it.
        tensors: how many the file has.
        elements: how many there are in all of them; layers of many more are not made.
        file: named in errors.

    Raises:
        CorruptFile: the constructor refuses its arguments, or the layers are larger than the file.
    """
    made = _on_meta(layer, tensors, file)
    size = sum(tensor.numel() for tensor in made.state_dict().values())
    if size > _ROOM * elements + _SLACK:
        raise CorruptFile(
            f"`{file}`: describes layers of {size:,} elements, and has {elements:,} in its tensors", file=file
        )
    return _made(layer)


def _on_meta(layer: Layer, tensors: int, file: str) -> nn.Module:
    _check_counts(layer, tensors, file)
    try:
        with torch.device("meta"):
            return _made(layer)
    except Exception as reason:  # whatever torch's constructors raise for arguments that make no sense
        raise CorruptFile(
            f"`{file}`: torch can't construct the layers with the arguments that the file has: "
            f"{type(reason).__name__}: {printable(str(reason))}",
            file=file,
        ) from reason


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none of this name" if shape is None else f"shape {shape}"


def _check_counts(layer: Layer, tensors: int, file: str) -> None:
    """Stacks are made in a loop: no more of them than there are tensors for."""
    for name, value in layer.arguments.items():
        if isinstance(value, Layer):
            _check_counts(value, tensors, file)
        elif name == "num_layers" and (type(value) is not int or value > tensors):
            raise CorruptFile(
                f"`{file}`: a {layer.name} of {value!r:.30} layers, and {tensors} tensors in the file", file=file
            )
    for child in layer.children.values():
        _check_counts(child, tensors, file)


def _made(layer: Layer) -> nn.Module:
    cls = getattr(nn, layer.name)
    children = OrderedDict((name, _made(child)) for name, child in layer.children.items())
    if layer.name == "ModuleList":
        made = cls(children.values())
    elif layer.name in CONTAINERS:
        made = cls(children)
    else:
        made = cls(
            **{name: _made(value) if isinstance(value, Layer) else value for name, value in layer.arguments.items()}
        )
    return made  # type: ignore[no-any-return]  # every class of the table is a module


def check_attributes(made: nn.Module, kept: Module, file: str) -> None:
    """Compares the attributes of constructed layers with those that the file has.

    Raises:
        MismatchError: one differs: the layer was changed after it was made, or a later torch makes it otherwise.
    """
    stack = [("", made, kept)]
    while stack:
        prefix, live, old = stack.pop()
        for name, tree in old.attributes.items():
            value, now = plain_value(tree, ...), vars(live).get(name, ...)
            if value is ... or type(now) not in (*ATOMS, tuple, list, torch.Size):
                continue
            if not same_value(_tuple(value), _tuple(now)):
                raise MismatchError(
                    f"`{file}`: `{prefix}{name}`: is {value!r:.100} in the file, and {now!r:.100} in the "
                    f"{type(live).__name__} that torch constructs. Construct the model yourself and use "
                    "holdfast.restore",
                    file=file,
                    path=f"{prefix}{name}",
                )
        for name, child in live.named_children():
            below = old.children.get(name)
            if isinstance(below, Module):
                stack.append((f"{prefix}{name}.", child, below))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def give_state(
    made: nn.Module, state: Mapping[str, torch.Tensor], tied: Mapping[str, str], frozen: frozenset[str]
) -> None:
    """Gives constructed layers their tensors.

    Args:
        made: on the meta device.
        state: every name of its state_dict.
        tied: name -> the earlier name whose tensor it is.
        frozen: parameters that do not want a gradient.
    """
    made.load_state_dict(dict(state), assign=True)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name not in frozen and parameter.requires_grad)
    for name, first in tied.items():
        tensor = _tensor(made, first)
        above, _, last = name.rpartition(".")
        setattr(made.get_submodule(above), last, tensor)


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    above, _, last = name.rpartition(".")
    found: torch.Tensor = getattr(module.get_submodule(above), last)
    return found
