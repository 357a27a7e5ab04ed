"""The table of constructors against torch itself: signatures, and every layer there and back."""

from __future__ import annotations

import inspect
import io
import json
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.objects.layers import structure_of
from holdfast.state.layers import CONSTRUCTORS, CONTAINERS, Layer, layer_from_json, layer_json, required

ELSEWHERE = {"device", "dtype", "size_average", "reduce", "_weight", "_freeze", "mask_check", "process_group"} | {
    "min_value", "max_value", "weight", "pos_weight",
}  # fmt: skip
"""Arguments that say where and in which type, that are deprecated, or that are tensors."""

WITHOUT = {
    "AdaptiveLogSoftmaxWithLoss", "Container", "CrossMapLRN2d", "DataParallel", "FractionalMaxPool2d",
    "FractionalMaxPool3d", "GaussianNLLLoss", "LinearCrossEntropyLoss", "Module", "MultiMarginLoss", "NLLLoss2d",
    "ParameterDict", "ParameterList", "PoissonNLLLoss", "RNNBase", "RNNCellBase", "Transformer",
    "TripletMarginWithDistanceLoss",
}  # fmt: skip
"""Classes of torch.nn that are not in the table: rare, abstract, or not to be made from what they keep."""


def test_the_table_lists_what_torch_has() -> None:
    classes = {
        name for name in dir(nn) if inspect.isclass(getattr(nn, name)) and issubclass(getattr(nn, name), nn.Module)
    }
    lazy = {name for name in classes if name.startswith("Lazy")}
    assert set(CONSTRUCTORS) | CONTAINERS <= classes
    assert classes - set(CONSTRUCTORS) - CONTAINERS - lazy <= WITHOUT


@pytest.mark.parametrize("name", sorted(set(CONSTRUCTORS) - {"RNN", "LSTM", "GRU"}))
def test_signatures_are_those_of_torch(name: str) -> None:
    parameters = [
        one
        for one in inspect.signature(getattr(nn, name)).parameters.values()
        if one.name not in ELSEWHERE and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    assert [one.name for one in parameters if one.default is one.empty] == required(name)
    found = {one.name: one.default for one in parameters if one.default is not one.empty and one.name != "activation"}
    table = {key: value for key, value in CONSTRUCTORS[name].items() if key not in (*required(name), "activation")}
    # a torch that is older may lack an argument, a newer one may have more
    assert {key: found[key] for key in table if key in found} == {key: table[key] for key in table if key in found}
    assert set(table) - set(found) <= {"bias", "proj_size"}


MADE: list[Any] = [
    nn.Linear(2, 3), nn.Linear(2, 3, bias=False), nn.Bilinear(2, 3, 4), nn.Identity(),
    nn.Conv1d(2, 4, 3, padding="same"),
    nn.Conv2d(2, 4, (3, 5), stride=2, groups=2, bias=False, padding_mode="circular"), nn.Conv3d(1, 1, 2, dilation=2),
    nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False),
    nn.BatchNorm2d(3, momentum=None, track_running_stats=False),
    nn.InstanceNorm2d(3, affine=True, track_running_stats=True), nn.GroupNorm(2, 4), nn.LayerNorm((2, 3)),
    nn.LayerNorm(2, bias=False), nn.LayerNorm(2, elementwise_affine=False), nn.RMSNorm(4), nn.LocalResponseNorm(2),
    nn.Embedding(5, 3, padding_idx=0, max_norm=2.0), nn.EmbeddingBag(5, 3, mode="sum"),
    nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.5, proj_size=2), nn.GRU(3, 4, bias=False, batch_first=True),
    nn.RNN(3, 4, nonlinearity="relu"), nn.LSTMCell(2, 3), nn.GRUCell(2, 3, bias=False),
    nn.RNNCell(2, 3, nonlinearity="relu"), nn.MultiheadAttention(4, 2, add_bias_kv=True, dropout=0.25),
    nn.MultiheadAttention(4, 2, bias=False, kdim=3, vdim=5),
    nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True, batch_first=True),
    nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, bias=False),
    nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, norm=nn.LayerNorm(8)),
    nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2), nn.PReLU(3, init=0.5), nn.ReLU(inplace=True),
    nn.ReLU6(), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.RReLU(0.1, 0.2), nn.GELU("tanh"), nn.GLU(1), nn.Hardshrink(0.25),
    nn.Hardtanh(-float("inf"), 2.0), nn.Softplus(2), nn.Threshold(0.1, 20), nn.Softmax(1), nn.LogSoftmax(-1),
    nn.Tanh(), nn.Dropout(0.1), nn.Dropout2d(), nn.AdaptiveAvgPool2d((None, 3)), nn.AdaptiveMaxPool1d(2),
    nn.AvgPool1d(2), nn.AvgPool2d(2, stride=1, count_include_pad=False), nn.MaxPool2d((2, 3), padding=1),
    nn.MaxPool3d(2, ceil_mode=True), nn.MaxUnpool2d(2), nn.LPPool2d(2, 3), nn.ConstantPad2d(1, 0.5),
    nn.ReflectionPad1d((1, 2)), nn.ZeroPad2d(2), nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
    nn.UpsamplingNearest2d(size=(4, 4)), nn.PixelShuffle(2), nn.ChannelShuffle(2), nn.Flatten(0),
    nn.Unflatten(1, (2, 3)), nn.Fold((4, 5), (2, 2)), nn.Unfold(3), nn.CosineSimilarity(0), nn.PairwiseDistance(1.0),
    nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss(reduction="sum"), nn.HuberLoss(delta=2.0),
    nn.TripletMarginLoss(margin=0.5), nn.CTCLoss(blank=1), nn.SmoothL1Loss(beta=0.5),
    nn.Sequential(nn.Linear(1, 2), nn.Sequential(), nn.ModuleDict({"a": nn.Tanh()}), nn.ModuleList([nn.ReLU()] * 2)),
]  # fmt: skip


@pytest.mark.parametrize("net", MADE, ids=range(len(MADE)))
def test_a_layer_comes_back(net: nn.Module) -> None:
    assert structure_of(net) is not None
    for write in (torch.save, holdfast.save):
        buffer = io.BytesIO()
        write(net, buffer)
        buffer.seek(0)
        built = holdfast.build(buffer, mode="train")
        assert repr(built) == repr(net)
        assert list(built.state_dict()) == list(net.state_dict())
        assert all(torch.equal(one, net.state_dict()[name]) for name, one in built.state_dict().items())
        plain = {key: value for key, value in vars(net).items() if isinstance(value, int | float | str | tuple)}
        assert {key: vars(built)[key] for key in plain} == plain


@pytest.mark.parametrize("net", MADE, ids=range(len(MADE)))
def test_a_structure_survives_json(net: nn.Module) -> None:
    layer = structure_of(net)
    assert layer is not None
    assert layer_from_json(json.loads(json.dumps(layer_json(layer), allow_nan=False))) == layer


class Mine(nn.Linear):
    """A class of the user's own."""


def hooked() -> nn.Module:
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(
    "net", [Mine(2, 2), nn.Sequential(Mine(1, 1)), hooked(), nn.CrossEntropyLoss(weight=torch.ones(2))]
)
def test_what_no_call_makes_has_no_structure(net: nn.Module) -> None:
    assert structure_of(net) is None


def test_what_was_taken_apart_has_no_structure() -> None:
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.Tanh()
    block = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    block.layers[1] = nn.TransformerEncoderLayer(8, 2, 32)
    patched = nn.ReLU()
    patched.forward = torch.sin
    assert structure_of(attention) is structure_of(block) is structure_of(patched) is None


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, {"layer": "Linear"}, {"layer": "os", "arguments": {}, "children": []},
        {"layer": "Linear", "arguments": {"evil": 1}, "children": []}, {"layer": [], "arguments": {}, "children": []},
        {"layer": "Sequential", "arguments": {"a": 1}, "children": []},
        {"layer": "Sequential", "arguments": {}, "children": [["a"]]},
        {"layer": "Linear", "arguments": {"bias": {"layer": "system"}}, "children": []},
        {"layer": "Linear", "arguments": {"bias": {"float": "x"}}, "children": []},
    ],
)  # fmt: skip
def test_json_that_lies_is_no_layer(value: Any) -> None:
    assert layer_from_json(value) is None


def test_equal_layers() -> None:
    assert structure_of(nn.Linear(2, 3)) == Layer("Linear", {"in_features": 2, "out_features": 3})
    assert structure_of(nn.Conv2d(1, 2, 3)) == Layer(
        "Conv2d", {"in_channels": 1, "out_channels": 2, "kernel_size": (3, 3)}
    )
