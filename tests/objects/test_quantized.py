"""Packed parameters and torchao's tensors as plain ones, and back, without a file between."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import UnsupportedValue
from holdfast.objects import quantized
from holdfast.objects.module import ModulePart


def dynamic(model: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear, nn.LSTM, nn.GRUCell}
        made: nn.Module = torch.ao.quantization.quantize_dynamic(model.eval(), kinds, dtype=dtype)
    return made


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3)
        self.cell = nn.GRUCell(3, 3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.cell(self.lstm(x)[0][-1]))


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_what_is_captured_is_plain_and_goes_back(dtype: torch.dtype) -> None:
    """Also for the half precision layers of plain torch, which no recipe makes."""
    one, other, x = dynamic(Net(), dtype), dynamic(Net(), dtype), torch.randn(5, 2, 4)
    state = ModulePart(one).capture()
    assert not any(isinstance(value, torch.ScriptObject) for value in state.values())
    assert state._metadata == one.state_dict()._metadata
    assert not torch.equal(one(x), other(x))
    missing, unexpected = ModulePart(other).load(state, strict=True)
    assert (missing, unexpected) == ([], [])
    assert torch.equal(one(x), other(x))
    assert quantized.quantized_layers(one) == {"lstm": "LSTM", "cell": "GRUCell", "fc": "Linear"}


def test_biases_of_cells_follow_what_is_packed() -> None:
    """torch computes with those that are packed, and leaves those of its constructor as attributes."""
    one, other = dynamic(Net()), dynamic(Net())
    ModulePart(other).load(ModulePart(one).capture(), strict=True)
    packed = one.cell._packed_weight_ih.__getstate__()[0][1]
    assert torch.equal(other.cell.bias_ih, packed)


def test_a_cell_with_other_biases_than_its_weights_keeps_both() -> None:
    ops = torch.ops.quantized
    weight = dynamic(nn.Sequential(nn.Linear(2, 4)))[0].weight()
    packed = ops.linear_prepack(weight, torch.ones(4))
    cell = ops.make_quantized_cell_params_dynamic(packed, packed, torch.zeros(4), torch.ones(4), True)
    plain = quantized.unpacked(cell, "cell")
    assert [bias.tolist() for bias in plain["biases"]] == [[0.0] * 4, [1.0] * 4]
    again = quantized.unpacked(quantized._packed(plain), "cell")
    assert [bias.tolist() for bias in again["biases"]] == [[0.0] * 4, [1.0] * 4]


def test_objects_that_are_not_known_are_refused_by_name() -> None:
    class Other:
        def _type(self) -> Any:
            return type("T", (), {"name": staticmethod(lambda: "SparsePackedParamsBase")})

    with pytest.raises(UnsupportedValue, match="`fc`: a SparsePackedParamsBase of torch can't be stored"):
        quantized.unpacked(Other(), "fc")  # type: ignore[arg-type]


def test_tensors_of_torchao_are_filled_where_they_are() -> None:
    one, other = (holdfast.quantize(nn.Sequential(nn.Linear(8, 4)), "int8-weight-only") for _ in range(2))
    part = ModulePart(other)
    live = part.targets()
    assert set(live) == {"0.weight.qdata", "0.weight.scale", "0.weight.zero_point", "0.bias"}
    for name, value in ModulePart(one).capture().items():
        live[name].copy_(value)
    x = torch.randn(2, 8)
    assert torch.equal(one(x), other(x))
    assert part.groups() == {name: "frozen" for name in live if name != "0.bias"}


def test_a_module_with_hooks_takes_them_through_its_own_loader() -> None:
    one, other = (holdfast.quantize(nn.Sequential(nn.Linear(8, 4)), "int8-weight-only") for _ in range(2))
    other.register_load_state_dict_post_hook(lambda *_: None)
    state, weight, x = ModulePart(one).capture(), other[0].weight, torch.randn(2, 8)
    holdfast.restore({"model": dict(state)}, model=other)
    assert torch.equal(one(x), other(x))
    assert other[0].weight is weight
    del state["0.weight.scale"]
    missing, unexpected = ModulePart(other).load(state, strict=False)
    assert missing == ["0.weight.qdata", "0.weight.scale", "0.weight.zero_point"]
    assert set(unexpected) == {"0.weight.qdata", "0.weight.zero_point"}


def test_a_copy_is_not_known_and_no_less_complete(tmp_path: Any) -> None:
    """What is known of a module is kept beside it, and a copy is another module."""
    q, x = holdfast.quantize(Net(), "dynamic-int8"), torch.randn(5, 2, 4)
    twin = copy.deepcopy(q)
    assert quantized.origin_of(twin) is None
    notes = holdfast.save(twin, tmp_path / "q.pt").notes
    assert any("needs a factory" in note for note in notes)
    built = holdfast.build(tmp_path / "q.pt", factory=lambda: holdfast.quantize(Net(), "dynamic-int8"))
    assert torch.equal(built(x), q(x))


def test_the_engine_is_put_back() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(KeyError), quantized.engine("qnnpack"):
        raise KeyError
    assert torch.backends.quantized.engine == before
    with quantized.engine("imaginary"):
        assert torch.backends.quantized.engine == before
