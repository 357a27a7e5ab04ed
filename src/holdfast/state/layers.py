"""The layers of torch.nn that a module consists of, as the calls that would construct them.

A layer keeps most of its constructor's arguments as attributes of the same names, so its pickle says how it was made.
The table below lists the constructors that are known, with their defaults; only these are ever called for a file.
Source: the constructors in ``torch/nn/modules`` of torch 2.13.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import msgspec

from holdfast.state.modules import Module
from holdfast.state.values import ATOMS, Opaque, Tree, Typed

_NORM = "num_features, eps=1e-05, momentum=0.1"
_POOL = "kernel_size, stride=None, padding=0"
_RNN = "input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False"
_CONV = "in_channels, out_channels, kernel_size, stride=1, padding=0"
_LOSS = "reduction='mean'"
_BLOCK = (
    "d_model, nhead, dim_feedforward=2048, dropout=0.1, activation='relu', layer_norm_eps=1e-05, batch_first=False, "
    "norm_first=False, bias=True"
)
_SIGNATURES = {
    "Linear": "in_features, out_features, bias=True",
    "Bilinear": "in1_features, in2_features, out_features, bias=True",
    "Identity LogSigmoid Sigmoid Softmax2d Softsign Tanh Tanhshrink": "",
    "Conv1d Conv2d Conv3d": f"{_CONV}, dilation=1, groups=1, bias=True, padding_mode='zeros'",
    "ConvTranspose1d ConvTranspose2d ConvTranspose3d": f"{_CONV}, output_padding=0, groups=1, bias=True, dilation=1, "
    "padding_mode='zeros'",
    "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm": f"{_NORM}, affine=True, track_running_stats=True, bias=True",
    "InstanceNorm1d InstanceNorm2d InstanceNorm3d": f"{_NORM}, affine=False, track_running_stats=False, bias=True",
    "GroupNorm": "num_groups, num_channels, eps=1e-05, affine=True, bias=True",
    "LayerNorm": "normalized_shape, eps=1e-05, elementwise_affine=True, bias=True",
    "RMSNorm": "normalized_shape, eps=None, elementwise_affine=True",
    "LocalResponseNorm": "size, alpha=0.0001, beta=0.75, k=1.0",
    "Embedding": "num_embeddings, embedding_dim, padding_idx=None, max_norm=None, norm_type=2.0, "
    "scale_grad_by_freq=False, sparse=False",
    "EmbeddingBag": "num_embeddings, embedding_dim, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, "
    "mode='mean', sparse=False, include_last_offset=False, padding_idx=None",
    "LSTM": f"{_RNN}, proj_size=0",
    "GRU": _RNN,
    "RNN": _RNN.replace("num_layers=1", "num_layers=1, nonlinearity='tanh'"),
    "LSTMCell GRUCell": "input_size, hidden_size, bias=True",
    "RNNCell": "input_size, hidden_size, bias=True, nonlinearity='tanh'",
    "MultiheadAttention": "embed_dim, num_heads, dropout=0.0, bias=True, add_bias_kv=False, add_zero_attn=False, "
    "kdim=None, vdim=None, batch_first=False",
    "TransformerEncoderLayer TransformerDecoderLayer": _BLOCK,
    "TransformerEncoder": "encoder_layer, num_layers, norm=None, enable_nested_tensor=True",
    "TransformerDecoder": "decoder_layer, num_layers, norm=None",
    "PReLU": "num_parameters=1, init=0.25",
    "ReLU ReLU6 SiLU Mish SELU Hardsigmoid Hardswish": "inplace=False",
    "ELU CELU": "alpha=1.0, inplace=False",
    "LeakyReLU": "negative_slope=0.01, inplace=False",
    "RReLU": "lower=0.125, upper=0.3333333333333333, inplace=False",
    "GELU": "approximate='none'",
    "GLU": "dim=-1",
    "Hardshrink Softshrink": "lambd=0.5",
    "Hardtanh": "min_val=-1.0, max_val=1.0, inplace=False",
    "Softplus": "beta=1.0, threshold=20.0",
    "Threshold": "threshold, value, inplace=False",
    "Softmax Softmin LogSoftmax": "dim=None",
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout": "p=0.5, inplace=False",
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d": "output_size",
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d": "output_size, return_indices=False",
    "AvgPool1d": f"{_POOL}, ceil_mode=False, count_include_pad=True",
    "AvgPool2d AvgPool3d": f"{_POOL}, ceil_mode=False, count_include_pad=True, divisor_override=None",
    "MaxPool1d MaxPool2d MaxPool3d": f"{_POOL}, dilation=1, return_indices=False, ceil_mode=False",
    "MaxUnpool1d MaxUnpool2d MaxUnpool3d": _POOL,
    "LPPool1d LPPool2d LPPool3d": "norm_type, kernel_size, stride=None, ceil_mode=False",
    "ConstantPad1d ConstantPad2d ConstantPad3d": "padding, value",
    "CircularPad1d CircularPad2d CircularPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d "
    "ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d": "padding",
    "Upsample": "size=None, scale_factor=None, mode='nearest', align_corners=None, recompute_scale_factor=None",
    "UpsamplingNearest2d UpsamplingBilinear2d": "size=None, scale_factor=None",
    "PixelShuffle": "upscale_factor",
    "PixelUnshuffle": "downscale_factor",
    "ChannelShuffle": "groups",
    "Flatten": "start_dim=1, end_dim=-1",
    "Unflatten": "dim, unflattened_size",
    "Fold": "output_size, kernel_size, dilation=1, padding=0, stride=1",
    "Unfold": "kernel_size, dilation=1, padding=0, stride=1",
    "CosineSimilarity": "dim=1, eps=1e-08",
    "PairwiseDistance": "p=2.0, eps=1e-06, keepdim=False",
    "L1Loss MSELoss BCELoss BCEWithLogitsLoss SoftMarginLoss MultiLabelMarginLoss MultiLabelSoftMarginLoss": _LOSS,
    "NLLLoss": f"ignore_index=-100, {_LOSS}",
    "CrossEntropyLoss": f"ignore_index=-100, {_LOSS}, label_smoothing=0.0",
    "SmoothL1Loss": f"{_LOSS}, beta=1.0",
    "HuberLoss": f"{_LOSS}, delta=1.0",
    "KLDivLoss": f"{_LOSS}, log_target=False",
    "CTCLoss": f"blank=0, {_LOSS}, zero_infinity=False",
    "CosineEmbeddingLoss MarginRankingLoss": f"margin=0.0, {_LOSS}",
    "HingeEmbeddingLoss": f"margin=1.0, {_LOSS}",
    "TripletMarginLoss": f"margin=1.0, p=2.0, eps=1e-06, swap=False, {_LOSS}",
}

_STATE = re.compile(
    r"weight|bias|running_(mean|var)|num_batches_tracked|(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?|"
    r"in_proj_(weight|bias)|[qkv]_proj_weight|bias_[kv]"
)
"""Tensors that layers of the table make; one with others (weight_norm's) is not what its constructor makes."""

_OF_BLOCKS = {
    "d_model": "self_attn.embed_dim",
    "nhead": "self_attn.num_heads",
    "dim_feedforward": "linear1.out_features",
    "dropout": "dropout.p",
    "layer_norm_eps": "norm1.eps",
    "batch_first": "self_attn.batch_first",
    "bias": "linear1.bias",
}
_ELSEWHERE: dict[str, dict[str, str]] = {
    "PairwiseDistance": {"p": "norm"},
    "MultiheadAttention": {"bias": "in_proj_bias?", "add_bias_kv": "bias_k?"},
    "TransformerEncoder": {"encoder_layer": "layers.0"},
    "TransformerDecoder": {"decoder_layer": "layers.0"},
    "TransformerEncoderLayer": _OF_BLOCKS,
    "TransformerDecoderLayer": _OF_BLOCKS,
}
"""Arguments that are not kept under their own names: a path, with ``?`` where a parameter's being there is meant."""

_OF_ENCODERS: dict[str, str | None] = {
    **dict.fromkeys(("linear1", "linear2"), "Linear"),
    **dict.fromkeys(("dropout", "dropout1", "dropout2"), "Dropout"),
    **dict.fromkeys(("norm1", "norm2"), "LayerNorm"),
    "self_attn": "MultiheadAttention",
}
_PARTS: dict[str, dict[str, str | None]] = {
    "MultiheadAttention": {"out_proj": "Linear"},
    "TransformerEncoder": {"layers": "ModuleList", "norm": None},
    "TransformerDecoder": {"layers": "ModuleList", "norm": None},
    "TransformerEncoderLayer": _OF_ENCODERS,
    "TransformerDecoderLayer": _OF_ENCODERS
    | {"multihead_attn": "MultiheadAttention", "dropout3": "Dropout", "norm3": "LayerNorm"},
}
"""The layers inside layers that their constructors make; None is whatever was given."""

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})
_OF_TORCH = re.compile(r"torch\.nn\.modules\.[a-z_]+\.([A-Za-z0-9_]+)")
_LIKE = {"NonDynamicallyQuantizableLinear": "Linear", "_LinearWithBias": "Linear"}
_MISSING: Any = object()


def _parsed() -> dict[str, dict[str, Any]]:
    """Class name -> its arguments in order, with their defaults; a required one has ``_MISSING``."""
    table: dict[str, dict[str, Any]] = {}
    for names, signature in _SIGNATURES.items():
        (function,) = ast.parse(f"def f({signature}): ...").body
        arguments = function.args  # type: ignore[attr-defined]  # what was parsed is a function
        values = [ast.literal_eval(default) for default in arguments.defaults]
        required = [_MISSING] * (len(arguments.args) - len(values))
        parsed = dict(zip([argument.arg for argument in arguments.args], required + values, strict=True))
        table |= dict.fromkeys(names.split(), parsed)
    return table


CONSTRUCTORS = _parsed()


def required(name: str) -> list[str]:
    """The arguments that a constructor can't do without, in order."""
    return [argument for argument, default in CONSTRUCTORS[name].items() if default is _MISSING]


class Layer(msgspec.Struct):
    """One layer, as the call that constructs it.

    Attributes:
        name: a class of torch.nn that is in the table.
        arguments: those that differ from the defaults, in order: plain values, or another Layer.
        children: of a container, by name.
    """

    name: str
    arguments: dict[str, Any] = {}
    children: dict[str, Layer] = {}


def layer_of(module: Module) -> Layer | None:
    """The call that would make a module; None when not all of it is known.

    A module with hooks is not known: they are functions, and a constructor does not make them.
    """
    name = torch_name(module)
    if "forward" in module.attributes:  # someone put a function over the class's own
        return None
    if name in CONTAINERS and not (module.hooks or module.parameters or module.buffers):
        children = {
            key: layer_of(child) if isinstance(child, Module) else None for key, child in module.children.items()
        }
        known = {key: child for key, child in children.items() if child is not None}
        return Layer(name, {}, known) if len(known) == len(children) and _numbered(name, known) else None
    if name not in CONSTRUCTORS or module.hooks or not _own_state(name, module) or not _own_parts(name, module):
        return None
    arguments: dict[str, Any] = {}
    for argument, default in CONSTRUCTORS[name].items():
        value = _argument(name, module, argument)
        if value is _MISSING:
            if default is _MISSING or argument == "reduction":  # losses before 0.4.1 said it otherwise
                return None
            continue
        if default is _MISSING or not same_value(value, default):
            arguments[argument] = value
    for argument, source in (("stride", "kernel_size"), ("kdim", "embed_dim"), ("vdim", "embed_dim")):
        if CONSTRUCTORS[name].get(argument, _MISSING) is None and same_value(
            arguments.get(argument), arguments.get(source)
        ):
            arguments.pop(argument, None)  # what the constructor takes where it was left out
    return Layer(name, arguments)


def torch_name(module: Module) -> str:
    """``Linear`` for ``torch.nn.modules.linear.Linear``; empty for a class that is not torch.nn's."""
    found = _OF_TORCH.fullmatch(module.class_name)
    return "" if found is None else _LIKE.get(found[1], found[1])


def _numbered(name: str, children: dict[str, Layer]) -> bool:
    return name != "ModuleList" or list(children) == [str(index) for index in range(len(children))]


def _own_state(name: str, module: Module) -> bool:
    held = [key for key, tree in (*module.parameters.items(), *module.buffers.items()) if tree is not None]
    if name.endswith("Loss"):  # weights of classes are given as tensors, which no call can show
        return not held
    return all(_STATE.fullmatch(key) for key in held)


def _own_parts(name: str, module: Module) -> bool:
    """Whether the layers inside a layer are those that its constructor makes."""
    wanted = _PARTS.get(name, {})
    for key, child in module.children.items():
        if key not in wanted or (child is not None and not isinstance(child, Module)):
            return False
        kind = wanted[key]
        if child is not None and kind is not None and torch_name(child) != kind:
            return False
    layers = module.children.get("layers")
    if isinstance(layers, Module):  # a stack repeats one layer
        each = [layer_of(child) for child in layers.children.values() if isinstance(child, Module)]
        return bool(each) and each[0] is not None and all(one == each[0] for one in each)
    return all(key in module.children or kind is None for key, kind in wanted.items())


def _argument(name: str, module: Module, argument: str) -> Any:
    path = _ELSEWHERE.get(name, {}).get(argument, argument)
    *above, last = path.split(".")
    for segment in above:
        child = module.children.get(segment)
        if not isinstance(child, Module):
            return _MISSING
        module = child
    if last.endswith("?"):
        return module.parameters.get(last[:-1]) is not None
    child = module.children.get(last)
    if child is not None:
        return (layer_of(child) if isinstance(child, Module) else None) or _MISSING
    if last == "bias" and "bias" in module.parameters:
        # without a weight there is no bias either, and nobody said so
        return module.parameters["bias"] is not None or module.parameters.get("weight") is None
    value = module.attributes.get(last, _MISSING)
    if argument == "activation":
        return _activation(value)
    return value if value is _MISSING else plain_value(value, _MISSING)


def _activation(value: Tree) -> Any:
    """A function of torch that its constructor takes by name."""
    found = value.type_name if type(value) is Opaque and value.args is None else ""
    return found.rpartition(".")[2] if found in ("torch.nn.functional.relu", "torch._C._nn.gelu") else _MISSING


def plain_value(tree: Tree, otherwise: Any) -> Any:
    """A value of numbers, text, tuples and lists; ``otherwise`` for anything else."""
    if type(tree) in ATOMS:
        return tree
    if type(tree) is Typed and tree.kind in ("tuple", "torch.Size") and type(tree.payload) is list:
        items = [plain_value(item, _MISSING) for item in tree.payload]
        return otherwise if _MISSING in items else tuple(items)
    if type(tree) is list:
        items = [plain_value(item, _MISSING) for item in tree]
        return otherwise if _MISSING in items else items
    return otherwise


def same_value(one: Any, other: Any) -> bool:
    """Whether two arguments mean the same: ``(1, 1)`` is ``1``."""
    one, other = (value[0] if _is_uniform(value) else value for value in (one, other))
    return type(one) is type(other) and bool(one == other)


def _is_uniform(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(item == value[0] for item in value)


# -- as JSON, for a file's own record


def layer_json(layer: Layer) -> dict[str, Any]:
    """A layer as JSON can hold it."""
    return {
        "layer": layer.name,
        "arguments": {name: _value_json(value) for name, value in layer.arguments.items()},
        "children": [[name, layer_json(child)] for name, child in layer.children.items()],
    }


def _value_json(value: Any) -> Any:
    if isinstance(value, Layer):
        return layer_json(value)
    if isinstance(value, tuple):
        return {"tuple": [_value_json(item) for item in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return [_value_json(item) for item in value] if isinstance(value, list) else value


def layer_from_json(value: Any) -> Layer | None:
    """The layer that JSON holds; None when it says what the table has not."""
    try:
        return _layer(value)
    except (TypeError, ValueError, LookupError):
        return None


def _layer(value: Any) -> Layer:
    name, given, children = value["layer"], value["arguments"], value["children"]
    known = {} if name in CONTAINERS else CONSTRUCTORS[name]
    if not set(given) <= set(known):
        raise LookupError(name)
    return Layer(
        name,
        {argument: _value(item) for argument, item in given.items()},
        {str(child): _layer(below) for child, below in children},
    )


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_value(item) for item in value["tuple"])
    return float(value["float"]) if "float" in value else _layer(value)
