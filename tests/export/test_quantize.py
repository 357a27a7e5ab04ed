"""What quantize takes, what it refuses, and that the model it is given stays exactly as it was."""

from __future__ import annotations

import importlib
import logging
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.api import quantize_report
from holdfast.errors import ArgumentError, DeviceUnavailable, MissingExtra
from holdfast.export.quantization.recipes import RECIPES
from holdfast.export.quantize import QuantizeReport
from tests.export.quant_models import Branching, Classifier, LeNet, Mlp, example_for


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        made: nn.Module = torch.jit.script(nn.Linear(2, 2))
    return made


def report_of(module: nn.Module) -> QuantizeReport:
    report = quantize_report(module)
    assert report is not None
    return report


@pytest.mark.parametrize(
    ("recipe", "model"), [("dynamic-int8", Classifier), ("static-int8", LeNet), ("int8-dynamic", Mlp)]
)
def test_the_model_stays_as_it_was(recipe: str, model: type[nn.Module]) -> None:
    net, x = model(), example_for(model.__name__)
    net.train()
    next(net.children()).eval()  # one part in another mode
    net(x).sum().backward()
    modes = [part.training for part in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    attributes = {name: set(vars(part)) for name, part in net.named_modules()}
    rng = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    engine = torch.backends.quantized.engine
    q = holdfast.quantize(net, recipe, calibration=[x], example=x, evaluate=lambda m: float(m(x).sum()))
    assert q is not net
    assert not any(part.training for part in q.modules())
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(a is None if b is None else torch.equal(a.grad, b) for a, b in zip(net.parameters(), grads, strict=True))
    assert {name: set(vars(part)) for name, part in net.named_modules()} == attributes
    assert rng[0] == random.getstate()
    assert torch.equal(rng[1], torch.get_rng_state())
    assert rng[2] == np.random.get_state()[1].tolist()
    assert torch.backends.quantized.engine == engine
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    assert not torch.equal(next(net.parameters()), state[next(iter(dict(net.named_parameters())))])


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "float8-dynamic"])
def test_every_recipe_answers_nearly_the_same_in_less(recipe: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval(), torch.randn(32, 64)
    with caplog.at_level(logging.INFO, "holdfast"):
        q = holdfast.quantize(net, recipe, calibration=[x], example=x)
    report = report_of(q)
    assert report.bytes_after < report.bytes_before / 3
    assert report.layers
    assert report.cosine is not None
    assert report.cosine > 0.99
    assert report.max_abs == pytest.approx(float((net(x) - q(x)).detach().abs().max()))
    assert report.argmax_agreement is not None
    assert report.argmax_agreement > 0.8
    assert report.speed is not None
    assert report.speed > 0
    assert f"quantized Sequential by {recipe}" in caplog.text
    shown = str(holdfast.summary(q))
    assert all(line in shown for line in str(report).splitlines())
    assert report.to_dict()["speed"] == report.speed
    assert set(vars(q)) <= set(vars(net)) | {"_code", "_graph", "_tracer_cls", "_is_replica"} or recipe == "static-int8"


def test_the_report_is_a_table() -> None:
    report = QuantizeReport("Net\x1b", "static-int8", "x86", {"a": "Linear", "b": "Linear"}, 3, 1000, 250)
    assert str(report).splitlines() == [
        r"Net\x1b by static-int8 for x86: 2 layers (2 Linear), 3 batches of calibration",
        "         float  quantized",
        "  bytes  1,000        250  x 0.25",
        "  answers were not compared: give example= or calibration=",
    ]
    report.metric_before, report.metric_after = 0.5, 0.25
    report.compared, report.max_abs, report.cosine = 2, 0.125, 0.5
    assert "  evaluate    0.5       0.25  -0.25" in str(report)
    assert str(report).endswith("answers to 2 batches: up to 0.125 off, cosine 0.500000")
    assert quantize_report(nn.Linear(1, 1)) is None


def test_convolutions_norms_and_activations_become_one() -> None:
    q = holdfast.quantize(LeNet(), "static-int8", calibration=[example_for("LeNet")])
    assert report_of(q).layers["conv1"] == "ConvReLU2d"
    assert not any(isinstance(part, nn.BatchNorm2d) for part in q.modules())
    assert report_of(q).layers["fc1"] == "LinearReLU"


def test_calibration_takes_what_loaders_give() -> None:
    x = example_for("Mlp")
    targets = torch.zeros(5)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat([x] * 4), torch.zeros(20)), 5)
    for data in ([x], [(x, targets)], [[x, targets]], loader, iter([x]), [{"x": x}]):
        q = holdfast.quantize(Mlp(), "static-int8", calibration=data)
        assert report_of(q).calibrated == (4 if data is loader else 1)
        assert report_of(q).compared == report_of(q).calibrated

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.fc(a) + self.fc(b)

    q = holdfast.quantize(Two(), "static-int8", calibration=[(x, x, targets)], example=(x, x))
    assert report_of(q).calibrated == 1
    q = holdfast.quantize(Two(), "dynamic-int8", example={"a": x, "b": x})
    assert report_of(q).compared == 1
    with pytest.raises(ArgumentError, match=r"does not take batch 0, \(float32 \(5, 16\)\): TypeError"):
        holdfast.quantize(Two(), "static-int8", calibration=[(x, x, targets)])


@pytest.mark.parametrize(
    ("calibration", "told"),
    [
        (None, "give calibration="),
        ([], "calibration is empty"),
        (iter(()), "calibration is empty"),
        (torch.zeros(3, 16), "calibration is a Tensor; give an iterable of batches"),
        ("data", "calibration is a str"),
        (7, "calibration is a int"),
        ([None], "calibration: batch 0 is NoneType; a tensor, a tuple that begins with 1 inputs, or a dict of"),
        ([()], "batch 0 is tuple"),
        ([torch.zeros(2, 3)], r"does not take batch 0, \(float32 \(2, 3\)\): RuntimeError"),
    ],
)
def test_calibration_that_can_not_be_used_is_refused(calibration: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        holdfast.quantize(Mlp(), "static-int8", calibration=calibration)


def test_other_dtypes_than_what_torch_packs_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"is bfloat16; torch packs float32 weights only: quantize copy\.deepcopy"):
        holdfast.quantize(Mlp().bfloat16(), "dynamic-int8")


def test_a_model_that_can_not_be_followed_says_why() -> None:
    x = example_for("Mlp")
    told = r"torch.fx, which can't follow Branching's: .*control flow.*take dynamic-int8"
    with pytest.raises(ArgumentError, match=told):
        holdfast.quantize(Branching(), "static-int8", calibration=[x])
    assert torch.isfinite(holdfast.quantize(Branching(), "dynamic-int8")(x)).all()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Parameter(torch.randn(1, 1, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.filters)

    with pytest.raises(ArgumentError, match=r"torch can't convert Odd after it was traced: RuntimeError.*bias"):
        holdfast.quantize(Odd(), "static-int8", calibration=[torch.randn(1, 1, 5, 5)])


def test_recipes_and_backends_are_listed() -> None:
    for wrong in ("int2", "Dynamic-int8", None, 8):
        with pytest.raises(ArgumentError, match="it takes one of dynamic-int8, static-int8, int8-weight-only"):
            holdfast.quantize(Mlp(), wrong)  # type: ignore[arg-type]
    for wrong in ("cuda", "", 3):
        with pytest.raises(ArgumentError, match=r"int8 layers can be packed here for .*qnnpack|here for x86"):
            holdfast.quantize(Mlp(), "dynamic-int8", backend=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="done by torchao and takes none"):
        holdfast.quantize(Mlp(), "int8-dynamic", backend="x86")


@pytest.mark.parametrize("recipe", ["dynamic-int8", "static-int8", "int8-weight-only"])
def test_nothing_to_quantize_is_said(recipe: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{recipe} quantizes .*this Sequential has none"):
        holdfast.quantize(nn.Sequential(nn.ReLU()), recipe, calibration=[torch.zeros(1)])


def test_models_that_are_no_float_models_are_refused(tmp_path: Path) -> None:
    q = holdfast.quantize(Mlp(), "dynamic-int8")
    with pytest.raises(ArgumentError, match=r"quantized already: `body.0`"):
        holdfast.quantize(q, "dynamic-int8")
    holdfast.save(q, tmp_path / "q.pt")
    with pytest.raises(ArgumentError, match=r"quantized already: `body.0`"):
        holdfast.quantize(tmp_path / "q.pt", "dynamic-int8", factory=Mlp)
    net = Mlp()
    net.head = net.head.bfloat16()
    with pytest.raises(ArgumentError, match=r"`head.weight` is bfloat16; .*torchao"):
        holdfast.quantize(net, "dynamic-int8")
    with pytest.raises(ArgumentError, match="`weight` has no values yet"):
        holdfast.quantize(nn.LazyLinear(3), "dynamic-int8")
    with torch.device("meta"):
        on_meta = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="`weight` has no values yet"):
        holdfast.quantize(on_meta, "dynamic-int8")
    with pytest.raises(ArgumentError, match="factory= and trusted= are for a file"):
        holdfast.quantize(Mlp(), "dynamic-int8", factory=Mlp)
    with pytest.raises(ArgumentError, match=r"the model does not take \(float32 \(1, 2\)\)"):
        holdfast.quantize(Mlp(), "dynamic-int8", example=torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="example= is a int; give a tensor, a tuple of positional arguments"):
        holdfast.quantize(Mlp(), "dynamic-int8", example=3)

    for odd in (None, {"a": 1}, nn.Linear, Mlp().state_dict()):
        with pytest.raises(ArgumentError, match="give a torch module, or a file of one"):
            holdfast.quantize(odd, "dynamic-int8")
    with pytest.raises(ArgumentError, match="a TorchScript module can't be quantized"):
        holdfast.quantize(scripted(), "dynamic-int8")

    class Stubborn(Mlp):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not to be copied")

    with pytest.raises(ArgumentError, match="can't be copied, and quantizing must not change it: TypeError: not to be"):
        holdfast.quantize(Stubborn(), "dynamic-int8")


def test_it_takes_wrapped_models_and_files(tmp_path: Path) -> None:
    net, x = Mlp().eval(), example_for("Mlp")
    wanted = holdfast.quantize(net, "dynamic-int8")(x)
    assert torch.equal(holdfast.quantize(nn.DataParallel(net), "dynamic-int8")(x), wanted)
    holdfast.save({"model": net}, tmp_path / "net.pt")
    q = holdfast.quantize(tmp_path / "net.pt", "dynamic-int8", factory=Mlp)
    assert torch.equal(q(x), wanted)
    holdfast.save(LeNet(classes=4), tmp_path / "lenet.pt")
    q = holdfast.quantize(tmp_path / "lenet.pt", "dynamic-int8", trusted={"tests.export.quant_models.LeNet"})
    holdfast.save(q, tmp_path / "q.pt")  # with the config that the first file recorded
    assert holdfast.build(tmp_path / "q.pt", factory=LeNet).fc2.out_features == 4


def test_evaluate_is_asked_before_and_after() -> None:
    asked: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        asked.append(model)
        return len(asked) / 2

    net = Mlp()
    q = holdfast.quantize(net, "dynamic-int8", evaluate=evaluate)
    assert (report_of(q).metric_before, report_of(q).metric_after) == (0.5, 1.0)
    assert asked[1] is q
    assert asked[0] is not net
    assert not asked[0].training


# -- what may be missing


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """without("torchao") makes importing it fail."""

    def block(name: str) -> None:
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, known)
        monkeypatch.setitem(sys.modules, name, None)

    return block


def test_torchao_is_asked_for_by_its_extra(without: Callable[[str], None], tmp_path: Path) -> None:
    holdfast.save(holdfast.quantize(Mlp(), "int8-weight-only"), tmp_path / "q.pt")
    without("torchao")
    with pytest.raises(MissingExtra, match=r'pip install "holdfast\[quant\]"'):
        holdfast.quantize(Mlp(), "int8-weight-only")
    with pytest.raises(MissingExtra, match=r'pip install "holdfast\[quant\]"'):
        holdfast.build(tmp_path / "q.pt", factory=Mlp)
    assert holdfast.quantize(Mlp(), "dynamic-int8") is not None


def test_an_old_torchao_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module("torchao.quantization")
    monkeypatch.delattr(real, "Int8WeightOnlyConfig")
    with pytest.raises(
        MissingExtra,
        match=r"torchao .* has no Int8WeightOnlyConfig, which int8-weight-only needs: pip install -U .holdfast",
    ):
        holdfast.quantize(Mlp(), "int8-weight-only")


def test_a_torch_without_its_int8_layers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.quantize_fx", ModuleType("quantize_fx"))
    with pytest.raises(MissingExtra, match=r"has no torch.ao.quantization any more .*int8-dynamic"):
        holdfast.quantize(Mlp(), "dynamic-int8")


def test_hardware_that_is_not_here_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may have it")
    with pytest.raises(DeviceUnavailable, match=r"float8-dynamic can't be done here: .*CUDA"):
        holdfast.quantize(Mlp(), "float8-dynamic")
