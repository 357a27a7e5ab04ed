"""Quantized modules: what of them is quantized, and packed parameters and torchao's tensors as plain ones and back."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from holdfast.errors import UnsupportedValue


class QuantizedTensor(msgspec.Struct, frozen=True):
    """How a tensor of torchao is made of plain ones.

    Attributes:
        type: its class, without the module.
        parts: what its plain tensors are called below its own name.
        made: what else torchao knows of it, as text: block size, dtype, how activations are quantized.
    """

    type: str
    parts: list[str]
    made: dict[str, str] = {}


class Quantized(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a file records of a quantized module.

    Attributes:
        recipe: as ``holdfast.quantize`` takes it; None where other code quantized the module.
        backend: the engine that its int8 layers are packed for, where they are.
        layers: dotted name of each quantized layer -> what it is.
        tensors: dotted name of each tensor of torchao -> how it is made.
        torch: the version that quantized it.
        torchao: likewise, where it did.
    """

    recipe: str | None = None
    backend: str | None = None
    layers: dict[str, str] = {}
    tensors: dict[str, QuantizedTensor] = {}
    torch: str | None = None
    torchao: str | None = None


class Origin(msgspec.Struct):
    """What is known of the float module that a quantized one was made of.

    Attributes:
        recipe: its name.
        backend: the engine, for int8 layers of torch.
        class_name: of the float module.
        source: digest of that class's source text, or None.
        config: how the float module was constructed, or None.
        structure: its layers as JSON holds them, when all are torch.nn's own.
        report: what quantizing it did to it, for people.
        torchao: its version, where it did the work.
    """

    recipe: str
    backend: str | None
    class_name: str
    source: str | None = None
    config: Any = None
    structure: dict[str, Any] | None = None
    report: object | None = None
    torchao: str | None = None


_origins: weakref.WeakKeyDictionary[nn.Module, Origin] = weakref.WeakKeyDictionary()
"""Kept outside the modules: their namespace is the user's."""


def remember(module: nn.Module, origin: Origin) -> None:
    """Notes what a quantized module was made of, for as long as it lives."""
    _origins[module] = origin


def origin_of(module: nn.Module) -> Origin | None:
    """What a module was made of by a recipe; None for any other."""
    return _origins.get(module)


def described(module: nn.Module) -> Quantized | None:
    """What is recorded of a module's quantization; None when nothing of it is quantized."""
    layers, tensors = quantized_layers(module), torchao_tensors(module)
    if not layers:
        return None
    origin = origin_of(module)
    made = {name: _made(tensor) for name, tensor in tensors.items()}
    known = {} if origin is None else {"recipe": origin.recipe, "backend": origin.backend, "torchao": origin.torchao}
    return Quantized(layers=layers, tensors=made, torch=str(torch.__version__), **known)


def quantized_layers(module: nn.Module) -> dict[str, str]:
    """Dotted name -> class of each layer that computes with quantized weights; "" is the module itself.

    Weights that a traced module packed for a function (``F.linear``) count as layers of their own.
    """
    found: dict[str, str] = {}
    inside: tuple[str, ...] = ()
    for name, part in module.named_modules():
        if name.startswith(inside):
            continue
        if _is_packed(type(part)):
            found[name] = type(part).__name__
            inside = (*inside, f"{name}." if name else "")
            continue
        for key, value in vars(part).items():
            if is_packed(value):
                found[f"{name}.{key}" if name else key] = _kind(value).removesuffix("PackedParamsBase")
    for name in torchao_tensors(module):
        layer = name.rpartition(".")[0]
        found.setdefault(layer, type(module.get_submodule(layer)).__name__)
    return found


def _is_packed(cls: type) -> bool:
    home = cls.__module__
    return home.startswith("torch.ao.nn.") and ".quantized." in home and ".reference." not in home


def packed_layers(module: nn.Module) -> bool:
    """Whether some layer has weights that torch packed for the CPU: they can't move to a device."""
    return any(_is_packed(type(part)) for part in module.modules()) or any(
        isinstance(value, torch.ScriptObject) for value in module.state_dict().values()
    )


# -- tensors of torchao


def is_torchao(value: Any) -> bool:
    """Whether a value is a tensor of one of torchao's own classes, which is made of plain ones."""
    cls = type(value)
    if cls is torch.Tensor or cls is nn.Parameter:
        return False
    return (
        issubclass(cls, torch.Tensor) and cls.__module__.startswith("torchao.") and hasattr(cls, "__tensor_flatten__")
    )


def torchao_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers of torchao's classes, by name."""
    members = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: value for name, value in members if is_torchao(value)}


def inner_tensors(tensor: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors that a tensor of torchao is made of, each below its name; they share its memory."""
    parts, _ = tensor.__tensor_flatten__()
    for part in parts:
        inner = getattr(tensor, part)
        if is_torchao(inner):
            yield from inner_tensors(inner, f"{name}.{part}")
        else:
            yield f"{name}.{part}", inner


def _made(tensor: Any) -> QuantizedTensor:
    parts = [part.removeprefix("weight.") for part, _ in inner_tensors(tensor, "weight")]
    _, context = tensor.__tensor_flatten__()
    known = context if isinstance(context, Mapping) else {"": context}
    return QuantizedTensor(type(tensor).__name__, parts, {str(key): str(value) for key, value in known.items()})


def _rebuilt(like: Any, name: str, state: Mapping[str, Any]) -> Any:
    """A tensor made as ``like`` is, of the plain tensors that a state has for it."""
    parts, context = like.__tensor_flatten__()
    inner = {}
    for part in parts:
        live = getattr(like, part)
        below = f"{name}.{part}"
        inner[part] = _rebuilt(live, below, state) if is_torchao(live) else state[below]
    return type(like).__tensor_unflatten__(inner, context, like.shape, like.stride())


# -- packed parameters


def _kind(value: Any) -> str:
    return str(value._type().name())


def is_packed(value: Any) -> bool:
    """Whether a value is one of the objects in which torch keeps packed parameters."""
    return isinstance(value, torch.ScriptObject) and _kind(value) in _UNPACKED


def unpacked(value: torch.ScriptObject, path: str) -> dict[str, Any]:
    """What a packed object holds, as plain values and tensors.

    Raises:
        UnsupportedValue: an object of another class.
    """
    kind = _kind(value)
    if kind not in _UNPACKED:
        raise UnsupportedValue(
            f"`{path}`: a {kind} of torch can't be stored: what is packed in it is not known", path=path
        )
    return _UNPACKED[kind](value)


def _unpack_linear(value: Any) -> dict[str, Any]:
    weight, bias = value.__getstate__()[0]
    return {"packed": "linear", "weight": weight, "bias": None if bias is None else bias.detach()}


def _unpack_cell(value: Any) -> dict[str, Any]:
    kind, tensors, _, numbers, packed = value.__getstate__()[0]
    weights, biases = [_unpack_linear(one) for one in packed], [tensor.detach() for tensor in tensors]
    if all(
        one["bias"] is not None and torch.equal(one["bias"], bias) for one, bias in zip(weights, biases, strict=False)
    ):
        biases = []  # those in the weights, a second time
    return {"packed": kind, "numbers": list(numbers), "weights": weights, "biases": biases}


def _unpack_conv(value: Any) -> dict[str, Any]:
    weight, bias = value.unpack()
    geometry = {name: list(getattr(value, name)()) for name in ("stride", "padding", "output_padding", "dilation")}
    return {
        "packed": "conv",
        "weight": weight,
        "bias": None if bias is None else bias.detach(),
        **geometry,
        "groups": int(value.groups()),
        "transpose": bool(value.transpose()),
    }


_UNPACKED = {
    "LinearPackedParamsBase": _unpack_linear,
    "CellParamsBase": _unpack_cell,
    "Conv2dPackedParamsBase": _unpack_conv,
    "Conv3dPackedParamsBase": _unpack_conv,
}


def _packed(parts: Mapping[str, Any]) -> Any:
    """The object that holds these parts, for the engine of this moment. They fit a live one: that was checked."""
    ops, kind = torch.ops.quantized, parts["packed"]
    if kind == "linear":
        pack = ops.linear_prepack if parts["weight"].is_quantized else ops.linear_prepack_fp16
        return pack(parts["weight"], parts["bias"])
    if kind == "conv":
        shape = [parts["stride"], parts["padding"]]
        names = f"conv{'_transpose' if parts['transpose'] else ''}{parts['weight'].dim() - 2}d_prepack"
        if parts["transpose"]:
            shape.append(parts["output_padding"])
        return getattr(ops, names)(parts["weight"], parts["bias"], *shape, parts["dilation"], parts["groups"])
    weights = [_packed(one) for one in parts["weights"]]
    if kind == "quantized_dynamic":
        biases = parts["biases"] or [one["bias"] for one in parts["weights"]]
        return ops.make_quantized_cell_params_dynamic(*weights, *biases, bool(parts["numbers"][0]))
    return ops.make_quantized_cell_params_fp16(*weights)


# -- a module's state


def plain_state(state: Any) -> Any:
    """A state_dict without objects of torch and torchao: what is packed in them stands in their place."""
    if not any(is_torchao(value) or isinstance(value, torch.ScriptObject) for value in state.values()):
        return state
    plain = type(state)()
    for name, value in state.items():
        if is_torchao(value):
            plain.update(inner_tensors(value, name))
        elif isinstance(value, torch.ScriptObject):
            plain[name] = unpacked(value, name)
        else:
            plain[name] = value
    if hasattr(state, "_metadata"):
        plain._metadata = state._metadata
    return plain


def own_state(module: nn.Module, state: Mapping[str, Any]) -> Any:
    """The converse: what a module's own ``load_state_dict`` takes, of what ``plain_state`` made.

    Names that the module does not have stay, for its loader to refuse.
    """
    result: Any = copy.copy(state)  # with torch's _metadata, which is an attribute
    for name, live in module.state_dict().items():
        if is_torchao(live):
            parts = [part for part, _ in inner_tensors(live, name)]
            if all(part in result for part in parts):
                result[name] = _rebuilt(live, name, result)
                for part in parts:
                    del result[part]
        elif isinstance(live, torch.ScriptObject) and isinstance(result.get(name), Mapping):
            result[name] = _packed(result[name])
    return result


def part_names(module: nn.Module, names: list[str]) -> list[str]:
    """Names of a module's state_dict as files have them: a tensor of torchao by its parts."""
    tensors = torchao_tensors(module)
    return [
        part
        for name in names
        for part in ([inner for inner, _ in inner_tensors(tensors[name], name)] if name in tensors else [name])
    ]


def settle_cells(module: nn.Module) -> None:
    """Gives recurrent cells the biases that are packed in them: torch leaves those of its constructor as attributes."""
    for part in module.modules():
        if _is_packed(type(part)) and hasattr(part, "_packed_weight_ih"):
            for end in ("ih", "hh"):
                setattr(part, f"bias_{end}", _unpack_linear(getattr(part, f"_packed_weight_{end}"))["bias"])


@contextlib.contextmanager
def engine(backend: str | None) -> Iterator[None]:
    """The engine that torch packs for, for a while; as it is where ``backend`` is None or not supported here."""
    before = torch.backends.quantized.engine
    try:
        if backend in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = backend
        yield
    finally:
        torch.backends.quantized.engine = before


def backend_of(module: nn.Module) -> str | None:
    """The engine that a module's packed layers are for, where a recipe made them."""
    origin = origin_of(module)
    return None if origin is None else origin.backend
