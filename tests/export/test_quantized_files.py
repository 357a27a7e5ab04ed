"""Files of quantized modules: complete, opened by others, built again bit for bit, and never taken for float ones."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import holdfast
from holdfast.errors import (
    ArgumentError,
    CorruptFile,
    DeviceUnavailable,
    MismatchError,
    RefusedFile,
    UnsupportedValue,
)
from holdfast.export.quantization import applying
from holdfast.formats.writing import write_document
from holdfast.transfer.save import document_of
from tests.export.quant_models import MODELS, Classifier, LeNet, Mlp, Recurrent, example_for

TORCH = [
    ("dynamic-int8", "Mlp"),
    ("dynamic-int8", "Classifier"),
    ("dynamic-int8", "Recurrent"),
    ("static-int8", "Mlp"),
    ("static-int8", "LeNet"),
    ("static-int8", "Functional"),
]
TORCHAO = [("int8-weight-only", "Mlp"), ("int8-dynamic", "Mlp"), ("float8-weight-only", "LeNet")]
SUFFIXES = ("pt", "safetensors")
SEEDS = itertools.count(3)
of_torch = pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning", "ignore:.*quint8, torch.qint8:UserWarning")
"""What torch says to who calls it directly."""


class Made:
    """A quantized module with what it answers, and the float one that it came from."""

    def __init__(self, recipe: str, name: str) -> None:
        torch.manual_seed(next(SEEDS))  # no two are the same, whichever test makes them
        self.recipe, self.example = recipe, example_for(name)
        self.float = MODELS[name]()
        if isinstance(self.float, LeNet):  # a batch norm that has seen something
            self.float(torch.randn(8, 1, 28, 28))
        data = [self.example] if recipe == "static-int8" else None
        self.module = holdfast.quantize(self.float, recipe, calibration=data)
        with torch.no_grad():
            self.answer = self.module(self.example)


_made: dict[tuple[str, str], Made] = {}


def made(recipe: str, name: str) -> Made:
    """Made once for all tests of this file: nothing here changes it."""
    if (recipe, name) not in _made:
        _made[recipe, name] = Made(recipe, name)
    return _made[recipe, name]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    """What one fresh process answers with the files of all recipes and models, by the name of the file."""
    folder = tmp_path_factory.mktemp("files")
    files = {}
    for recipe, name in (*TORCH, *TORCHAO):
        for suffix in SUFFIXES:
            file = folder / f"{recipe}.{name}.{suffix}"
            holdfast.save(made(recipe, name).module, file)
            files[str(file)] = name
    listed = json.dumps(list(files.items()))
    code = [sys.executable, "-W", "error", "-m", "tests.export.quant_models", listed]
    done = subprocess.run(code, capture_output=True, text=True, timeout=100, check=False, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # neither torch nor torchao has anything to say to a user
    return {Path(file).name: said for file, said in json.loads(done.stdout).items()}


@pytest.mark.parametrize(("recipe", "name"), [*TORCH, *TORCHAO])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fresh_process_builds_the_same_bits(rebuilt: dict[str, Any], recipe: str, name: str, suffix: str) -> None:
    answer, training, kind = rebuilt[f"{recipe}.{name}.{suffix}"]
    assert answer == made(recipe, name).answer.flatten().tolist()
    assert not training
    assert kind == type(made(recipe, name).module).__name__


@of_torch
@pytest.mark.parametrize(("recipe", "name"), [*TORCH, *TORCHAO])
def test_others_open_them(recipe: str, name: str, tmp_path: Path) -> None:
    one = made(recipe, name)
    holdfast.save(one.module, tmp_path / "q.pt")
    plain = torch.load(tmp_path / "q.pt")  # weights_only
    assert set(plain) == set(holdfast.load(tmp_path / "q.pt"))
    holdfast.save(one.module, tmp_path / "q.safetensors")
    assert safetensors.torch.load_file(tmp_path / "q.safetensors")
    assert not any(isinstance(value, torch.ScriptObject) for value in plain.values())
    assert all(type(value).__module__.partition(".")[0] != "torchao" for value in plain.values())


def test_what_torchao_makes_is_plain_tensors(tmp_path: Path) -> None:
    holdfast.save(made("int8-weight-only", "Mlp").module, tmp_path / "q.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "q.safetensors")
    assert stored["head.weight.qdata"].dtype == torch.int8
    assert {"body.0.weight.qdata", "body.0.weight.scale", "body.0.bias"} <= set(stored)


def test_what_cells_pack_is_plain_values(tmp_path: Path) -> None:
    holdfast.save(made("dynamic-int8", "Recurrent").module, tmp_path / "q.pt")
    cell = holdfast.load(tmp_path / "q.pt")["lstm_cell._packed_weight_ih"]
    assert cell["packed"] == "linear"
    assert cell["weight"].dtype == torch.qint8
    assert tuple(cell["bias"].shape) == (20,)
    gru = holdfast.load(tmp_path / "q.pt")["gru._all_weight_values.0.param"]
    assert [weight["packed"] for weight in gru["weights"]] == ["linear", "linear"]


@pytest.mark.parametrize("backend", torch.backends.quantized.supported_engines)
def test_each_engine_gives_the_same_bits_again(backend: str, tmp_path: Path) -> None:
    if backend == "none":
        pytest.skip("no engine")
    x = example_for("LeNet")
    before = torch.backends.quantized.engine
    q = holdfast.quantize(LeNet().eval(), "static-int8", calibration=[x], backend=backend)
    holdfast.save(q, tmp_path / "q.pt")
    assert torch.equal(holdfast.build(tmp_path / "q.pt", factory=LeNet)(x), q(x))
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("recipe", ["dynamic-int8", "static-int8", "int8-weight-only"])
def test_a_model_of_torchs_own_layers_needs_no_factory(recipe: str, tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), example_for("Mlp")
    q = holdfast.quantize(net, recipe, calibration=[x])
    holdfast.save({"model": q, "epoch": 3}, tmp_path / "q.pt")
    again = holdfast.build(tmp_path / "q.pt")
    assert torch.equal(again(x), q(x))
    holdfast.save(again, tmp_path / "again.safetensors")  # what was built is saved as completely
    assert torch.equal(holdfast.build(tmp_path / "again.safetensors")(x), q(x))


def test_a_single_layer_can_be_the_model(tmp_path: Path) -> None:
    x = example_for("Mlp")
    for recipe in ("dynamic-int8", "static-int8", "int8-weight-only"):
        q = holdfast.quantize(nn.Linear(16, 4), recipe, calibration=[x])
        holdfast.save(q, tmp_path / "q.pt")
        assert torch.equal(holdfast.build(tmp_path / "q.pt")(x), q(x))


def test_config_and_trusted_names_work_as_for_float_files(tmp_path: Path) -> None:
    x = example_for("LeNet")
    for recipe in ("static-int8", "dynamic-int8"):
        q = holdfast.quantize(LeNet(classes=7), recipe, calibration=[x])
        holdfast.save(q, tmp_path / "q.pt")
        assert torch.equal(holdfast.build(tmp_path / "q.pt", factory=LeNet)(x), q(x))
        assert torch.equal(holdfast.build(tmp_path / "q.pt", trusted={"tests.export.quant_models.LeNet"})(x), q(x))
        with pytest.raises(ArgumentError, match=r"quantized tests.export.quant_models.LeNet.*factory=Net"):
            holdfast.build(tmp_path / "q.pt")


@pytest.mark.parametrize(("recipe", "name"), [("dynamic-int8", "Classifier"), ("static-int8", "LeNet"), TORCHAO[0]])
def test_building_draws_no_more_than_the_factory(recipe: str, name: str, tmp_path: Path) -> None:
    """torch makes its quantized recurrent layers with random weights first."""
    holdfast.save(made(recipe, name).module, tmp_path / "q.pt")
    torch.manual_seed(11)
    MODELS[name]()
    drawn, engine = torch.get_rng_state(), torch.backends.quantized.engine
    torch.manual_seed(11)
    holdfast.build(tmp_path / "q.pt", factory=MODELS[name])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.backends.quantized.engine == engine


def test_it_says_what_it_is(tmp_path: Path) -> None:
    one = made("dynamic-int8", "Classifier")
    holdfast.save({"net": one.module}, tmp_path / "q.pt")
    shown = str(holdfast.summary(tmp_path / "q.pt"))
    assert f"net: dynamic-int8 for {torch.backends.quantized.engine}, 2 layers (1 LSTM, 1 Linear)" in shown
    assert "answers were not compared" in str(holdfast.summary(one.module))
    line = [sys.executable, "-m", "holdfast", "inspect", str(tmp_path / "q.pt")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert "quantized, net: dynamic-int8 for" in done.stdout
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["quantized"]["net"].startswith("dynamic-int8 for")


def test_a_probe_is_asked_again(tmp_path: Path) -> None:
    one = made("static-int8", "LeNet")
    holdfast.save(one.module, tmp_path / "q.pt", probe=one.example)
    q = holdfast.build(tmp_path / "q.pt", factory=LeNet)
    notes = holdfast.restore(tmp_path / "q.pt", model=q).notes
    assert any("same answers to the probe" in note for note in notes)


# -- restoring


@pytest.mark.parametrize(("recipe", "name"), [*TORCH, *TORCHAO])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_restore_fills_a_module_of_the_same_structure(recipe: str, name: str, suffix: str, tmp_path: Path) -> None:
    one, other = made(recipe, name), Made(recipe, name)
    holdfast.save(one.module, tmp_path / f"q.{suffix}")
    inner = getattr(getattr(other.module, "head", None), "weight", None)
    assert not torch.equal(other.module(one.example), one.answer)
    holdfast.restore(tmp_path / f"q.{suffix}", model=other.module)
    assert torch.equal(other.module(one.example), one.answer)
    if isinstance(inner, torch.Tensor):
        assert other.module.head.weight is inner  # filled in place


def test_a_snapshot_of_one_goes_back(tmp_path: Path) -> None:
    for recipe, name in (("dynamic-int8", "Recurrent"), ("int8-weight-only", "Mlp")):
        one, other = made(recipe, name), Made(recipe, name)
        holdfast.restore(holdfast.snapshot(one.module), model=other.module)
        assert torch.equal(other.module(one.example), one.answer)


@pytest.mark.parametrize(("recipe", "name"), [("dynamic-int8", "Classifier"), *TORCH[-2:], *TORCHAO])
def test_it_does_not_pass_for_a_float_file(recipe: str, name: str, tmp_path: Path) -> None:
    one, live = made(recipe, name), MODELS[name]()
    before = {key: value.clone() for key, value in live.state_dict().items()}
    holdfast.save(one.module, tmp_path / "q.pt")
    holdfast.save(live, tmp_path / "float.pt")
    quantized = rf"the file is quantized \({recipe}\).*makes the quantized model, and float weights come"
    for policy in (holdfast.Exact(), holdfast.Warm(min_coverage=0.0)):
        for dry_run in (True, False):
            with pytest.raises(MismatchError, match=quantized):
                holdfast.restore(tmp_path / "q.pt", model=live, match=policy, dry_run=dry_run)
            with pytest.raises(MismatchError, match=r"the model is quantized, .*and the file is not.*quantize"):
                holdfast.restore(tmp_path / "float.pt", model=one.module, match=policy, dry_run=dry_run)
    assert all(torch.equal(value, before[key]) for key, value in live.state_dict().items())
    assert torch.equal(one.module(one.example), one.answer)
    with pytest.raises(MismatchError, match="the model is quantized"):
        holdfast.build(tmp_path / "float.pt", factory=lambda **_: Made(recipe, name).module)


@of_torch
def test_torchs_own_files_do_not_either(tmp_path: Path) -> None:
    """A state_dict of torch.save, with tensors, with packed objects, and with torchao's own tensors."""
    for policy in (holdfast.Exact(), holdfast.Warm(min_coverage=0.0)):
        torch.save({"model": made("static-int8", "LeNet").module.state_dict()}, tmp_path / "tensors.pt")
        with pytest.raises(MismatchError, match=r"is quantized, `conv1`, `conv2`, `fc1`, `fc2`.*Quantize the model in"):
            holdfast.restore(tmp_path / "tensors.pt", model=LeNet(), match=policy)
        torch.save(made("dynamic-int8", "Classifier").module.state_dict(), tmp_path / "objects.pt")
        torch.save(made("dynamic-int8", "Recurrent").module.state_dict(), tmp_path / "only.pt")
        for file, live in (("objects.pt", Classifier()), ("only.pt", Recurrent())):
            with pytest.raises(RefusedFile, match=r"only torch's pickle makes: `.*weights_only=False.*holdfast.save"):
                holdfast.restore(tmp_path / file, model=live, match=policy)
        torch.save(made("int8-weight-only", "Mlp").module.state_dict(), tmp_path / "torchao.pt")
        for model in (Mlp(), made("int8-weight-only", "Mlp").module):
            with pytest.raises(MismatchError, match=r"`body.0.weight`, `head.weight` are tensors of torchao's own"):
                holdfast.restore(tmp_path / "torchao.pt", model=model, match=policy)


def test_one_layer_may_not_differ_alone(tmp_path: Path) -> None:
    whole = holdfast.quantize(Mlp(), "dynamic-int8")
    half = holdfast.quantize(Mlp(), "dynamic-int8")
    half.head = nn.Linear(32, 4)
    holdfast.save(half, tmp_path / "half.pt")
    with pytest.raises(MismatchError, match="`head` is quantized in the model, and float in the file"):
        holdfast.restore(tmp_path / "half.pt", model=whole, match=holdfast.Warm())
    holdfast.save(whole, tmp_path / "whole.pt")
    with pytest.raises(MismatchError, match="`head` is quantized in the file, and float in the model"):
        holdfast.restore(tmp_path / "whole.pt", model=half, match=holdfast.Warm())


def test_what_is_packed_has_to_fit(tmp_path: Path) -> None:
    """torch itself would take weights of any shape, and fail at use."""
    holdfast.save(holdfast.quantize(nn.Sequential(nn.Linear(4, 3)), "dynamic-int8"), tmp_path / "q.pt")
    other = holdfast.quantize(nn.Sequential(nn.Linear(5, 3)), "dynamic-int8")
    told = r"0._packed_params._packed_params.0`: file has \(3, 4\) qint8 per_tensor_affine, model wants \(3, 5\) qint8"
    with pytest.raises(MismatchError, match=told):
        holdfast.restore(tmp_path / "q.pt", model=other, match=holdfast.Warm(), dry_run=True)
    holdfast.save(holdfast.quantize(nn.Sequential(nn.GRU(4, 3)), "dynamic-int8"), tmp_path / "q.pt")
    cell = holdfast.quantize(nn.Sequential(nn.GRU(4, 3, num_layers=2)), "dynamic-int8")
    with pytest.raises(MismatchError, match=r"_all_weight_values.1.param"):
        holdfast.restore(tmp_path / "q.pt", model=cell)


@pytest.mark.parametrize(("recipe", "name"), [("dynamic-int8", "Recurrent"), ("static-int8", "Functional"), TORCHAO[0]])
def test_a_failure_half_way_undoes_all(recipe: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = made(recipe, name), Made(recipe, name)
    other.module.register_load_state_dict_post_hook(lambda *_: None)  # so that all go through load_state_dict
    holdfast.save(one.module, tmp_path / "q.pt")
    before = other.module(one.example)

    def failing(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("holdfast.transfer.apply._fill", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        holdfast.restore(tmp_path / "q.pt", model=other.module)
    assert torch.equal(other.module(one.example), before)


# -- modules that other code quantized


def by_torch(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell}
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model.eval(), kinds)
    return quantized


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["Mlp", "Classifier", "Recurrent"])
def test_they_are_saved_whole_and_need_their_factory(name: str, suffix: str, tmp_path: Path) -> None:
    q, x, file = by_torch(MODELS[name]()), example_for(name), tmp_path / f"q.{suffix}"
    notes = holdfast.save(q, file).notes
    assert any("holdfast.build needs a factory that quantizes in the same way" in note for note in notes)
    again = holdfast.build(file, factory=lambda: by_torch(MODELS[name]()))
    assert torch.equal(again(x), q(x))
    with pytest.raises(MismatchError, match=r"the file is quantized, .*Quantize the model in the same way first"):
        holdfast.build(file, factory=MODELS[name])
    with pytest.raises(ArgumentError, match="no recipe is recorded: factory=lambda"):
        holdfast.build(file)
    holdfast.save(made("dynamic-int8", name).module, file)
    with pytest.raises(ArgumentError, match=r"factory=Net \(the class, or a function that makes the float model\)"):
        holdfast.build(file)


class WithStubs(nn.Module):
    """What eager mode wants of a model, and layers that no recipe quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.relu = nn.Conv1d(2, 3, 3), nn.ReLU()
        self.embedding = nn.Embedding(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.relu(self.conv(self.quant(x)))) + self.embedding(torch.tensor([1])).sum()


def eager() -> nn.Module:
    """A module by plain torch's eager mode."""
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = WithStubs().eval()
        net.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        net.embedding.qconfig = quantization.float_qparams_weight_only_qconfig
        prepared = quantization.prepare(quantization.fuse_modules(net, [["conv", "relu"]]))
        prepared(torch.randn(4, 2, 8))
        quantized: nn.Module = quantization.convert(prepared)
    return quantized


def by_torchao() -> nn.Module:
    """Not of any recipe: one scale for each whole weight."""
    from torchao.quantization import Int8WeightOnlyConfig, PerTensor, quantize_

    net = Mlp().eval()
    quantize_(net, Int8WeightOnlyConfig(granularity=PerTensor()))
    return net


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_so_are_those_of_eager_mode_and_of_torchao(suffix: str, tmp_path: Path) -> None:
    x = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(5))
    for factory, question in ((eager, x), (by_torchao, example_for("Mlp"))):
        q, file = factory(), tmp_path / f"q.{suffix}"
        assert any("needs a factory" in note for note in holdfast.save(q, file).notes)
        assert torch.equal(holdfast.build(file, factory=factory)(question), q(question))
    made_otherwise = made("int8-weight-only", "Mlp").module
    told = r"`body.0.weight`: its block_size is \[32, 16\] in the file, \[1, 16\] in the model"
    with pytest.raises(MismatchError, match=told):
        holdfast.restore(file, model=made_otherwise, match=holdfast.Warm())


@pytest.mark.parametrize("recipe", ["dynamic-int8", "int8-weight-only"])
def test_a_converted_file_is_built_as_well(recipe: str, tmp_path: Path) -> None:
    one = made(recipe, "Mlp")
    holdfast.save(one.module, tmp_path / "q.pt")
    holdfast.convert(tmp_path / "q.pt", tmp_path / "q.safetensors")
    assert torch.equal(holdfast.build(tmp_path / "q.safetensors", factory=Mlp)(one.example), one.answer)


def test_a_state_dict_with_packed_objects_is_refused(tmp_path: Path) -> None:
    state = made("dynamic-int8", "Classifier").module.state_dict()
    for suffix in SUFFIXES:
        with pytest.raises(UnsupportedValue, match=r"`model.lstm._all.*param`.*Save the module and not its state_dict"):
            holdfast.save({"model": state}, tmp_path / f"q.{suffix}")
        assert not list(tmp_path.iterdir())


def test_a_factory_may_quantize_by_itself(tmp_path: Path) -> None:
    one = made("dynamic-int8", "Mlp")
    holdfast.save(one.module, tmp_path / "q.pt")
    built = holdfast.build(tmp_path / "q.pt", factory=lambda: holdfast.quantize(Mlp(), "dynamic-int8"))
    assert torch.equal(built(one.example), one.answer)


# -- records are from files, and files are hostile


def with_record(module: nn.Module, file: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A file whose record was changed by hand."""
    document, _ = document_of(module, row_major=False)
    change(document.objects[""])
    write_document(document, file, "pt")
    return file


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record["quantized"].__setitem__(key, value)


LIES: list[tuple[str, Any, type[Exception], str]] = [
    (
        "recipe",
        "int2-magic\x1b[2J",
        CorruptFile,
        r"was quantized by the recipe 'int2-magic\\+x1b\[2J', unknown to this version",
    ),
    ("recipe", 8, CorruptFile, "what it records of its quantization is damaged"),
    ("recipe", "static-int8", MismatchError, "`body.0` is a quantized"),
    ("recipe", "int8-weight-only", MismatchError, "can't be quantized as the file was|does not fit"),
    ("backend", "os.system", CorruptFile, "was quantized for the backend 'os.system', which is none of"),
    ("backend", None, CorruptFile, "backend None, which is none of"),
    ("backend", ["x86"], CorruptFile, "what it records of its quantization is damaged"),
    ("layers", {"body.0": "Linear", "nowhere": "Linear"}, MismatchError, "`nowhere` is a quantized Linear.*no such"),
    (
        "layers",
        {"body.0": "Linear", "body.1": "Linear"},
        MismatchError,
        "`body.1` is a quantized Linear.*no such layer",
    ),
    ("layers", {"body.0": "LSTM", "head": "Linear"}, MismatchError, "`body.0` is a quantized LSTM.*a Linear here"),
    ("layers", {"body.0": "Linear"}, MismatchError, "`head` is quantized in the file, and float in the model"),
    ("layers", ["body.0"], CorruptFile, "what it records of its quantization is damaged"),
    ("layers", {}, MismatchError, "is quantized .*and the model is not"),
    ("tensors", {"head.weight": 3}, CorruptFile, "what it records of its quantization is damaged"),
]


@pytest.mark.parametrize(("key", "value", "error", "told"), LIES)
def test_a_record_that_lies_is_refused(key: str, value: Any, error: Any, told: str, tmp_path: Path) -> None:
    file = with_record(made("dynamic-int8", "Mlp").module, tmp_path / "q.pt", setting(key, value))
    with pytest.raises(error, match=told):
        holdfast.build(file, factory=Mlp)


def test_a_record_of_fewer_layers_than_its_recipe_makes_is_refused(tmp_path: Path) -> None:
    file = with_record(
        made("static-int8", "Mlp").module, tmp_path / "q.pt", lambda record: record["quantized"]["layers"].pop("head")
    )
    with pytest.raises(MismatchError, match="`head` would be quantized too, which the file does not say"):
        holdfast.build(file, factory=Mlp)


def test_a_record_of_another_making_is_refused(tmp_path: Path) -> None:
    one = made("int8-weight-only", "Mlp")

    def change(record: dict[str, Any]) -> None:
        record["quantized"]["tensors"]["head.weight"]["made"]["block_size"] = "[1, 8]"

    file = with_record(one.module, tmp_path / "q.pt", change)
    with pytest.raises(MismatchError, match=r"`head.weight`: its block_size is \[1, 8\] in the file, \[1, 32\] in"):
        holdfast.build(file, factory=Mlp)


def test_layers_larger_than_the_file_are_not_made(tmp_path: Path) -> None:
    q = holdfast.quantize(nn.Sequential(nn.Linear(4, 4)), "dynamic-int8")
    for size, told in ((10**6, "describes layers of 1,000,001,000,000 elements"), (10**30, "can't construct")):

        def change(record: dict[str, Any], size: int = size) -> None:
            arguments = record["structure"]["children"][0][1]["arguments"]
            arguments["in_features"] = arguments["out_features"] = size

        with pytest.raises(CorruptFile, match=told):
            holdfast.build(with_record(q, tmp_path / "q.pt", change))


def test_nothing_that_a_record_names_is_imported(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")

    def change(record: dict[str, Any]) -> None:
        record["class"] = "planted.Net"
        record["quantized"]["layers"] = {"body.0": "planted.Linear", "head": "planted.Linear"}

    file = with_record(made("dynamic-int8", "Mlp").module, tmp_path / "q.pt", change)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(MismatchError, match=r"planted.Linear"):
            holdfast.build(file, factory=Mlp)
        with pytest.raises(ArgumentError, match=r"planted.Net"):
            holdfast.build(file)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_packed_part_that_lies_is_refused(tmp_path: Path) -> None:
    document, _ = document_of(made("dynamic-int8", "Recurrent").module, row_major=False)
    state = document.tree.payload["items"]
    for lie, told in (({"packed": "linear"}, "model wants"), (3, "file has 3"), ({"packed": "os.system"}, "os.system")):
        before, state["lstm_cell._packed_weight_ih"] = state["lstm_cell._packed_weight_ih"], lie
        write_document(document, tmp_path / "q.pt", "pt")
        with pytest.raises(MismatchError, match=told):
            holdfast.build(tmp_path / "q.pt", factory=Recurrent)
        state["lstm_cell._packed_weight_ih"] = before


# -- machines


def test_an_engine_that_is_not_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holdfast.save(made("dynamic-int8", "Mlp").module, tmp_path / "q.pt")
    monkeypatch.setattr(applying, "supported_backends", lambda: ["imaginary"])
    with pytest.raises(DeviceUnavailable, match=r"which this machine lacks \(it has imaginary\)"):
        holdfast.build(tmp_path / "q.pt", factory=Mlp)


def test_packed_layers_stay_on_the_cpu(tmp_path: Path) -> None:
    for recipe, name in (("dynamic-int8", "Mlp"), ("static-int8", "LeNet")):
        holdfast.save(made(recipe, name).module, tmp_path / "q.pt")
        with pytest.raises(DeviceUnavailable, match=r"packed for the CPU and can't go to meta.*map_location='cpu'"):
            holdfast.build(tmp_path / "q.pt", "meta", factory=MODELS[name])
        built = holdfast.build(tmp_path / "q.pt", "cpu", factory=MODELS[name])
        assert torch.equal(built(example_for(name)), made(recipe, name).answer)


# -- runs


@pytest.mark.parametrize(("recipe", "name"), [("dynamic-int8", "Classifier"), ("static-int8", "LeNet"), TORCHAO[0]])
def test_a_run_keeps_a_quantized_model(recipe: str, name: str, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = made(recipe, name), Made(recipe, name)
    with (
        caplog.at_level(logging.WARNING, "holdfast"),
        holdfast.Run(run_dir, model=one.module, background=True) as run,
    ):
        run.save(step=1)
    assert not caplog.records
    with holdfast.Run(run_dir, model=other.module) as run:
        position = run.resume()
    assert position is not None
    assert position.step == 1
    assert torch.equal(other.module(one.example), one.answer)
    assert torch.equal(holdfast.build(f"{run_dir}@last", factory=MODELS[name])(one.example), one.answer)
    with holdfast.Run(run_dir, model=MODELS[name]()) as run, pytest.raises(MismatchError, match="the model is not"):
        run.resume()
