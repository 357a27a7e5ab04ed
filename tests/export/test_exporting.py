"""Exports from end to end: each format, from a live model and from files; what is in the file; what is left alone."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, HoldfastError, MismatchError, UnsupportedValue
from holdfast.export import exporting
from holdfast.export.report import ExportReport
from tests.export.small_models import Branching, Counting, Many, Net, Random, Reader

Left = Callable[[Path], list[str]]
BATCH = {"images": {0: "batch"}}


def ask_onnx(path: Path, *inputs: torch.Tensor) -> list[Any]:
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    answers: list[Any] = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
    return answers


def test_onnx_of_a_live_model(tmp_path: Path, left: Left, capfd: pytest.CaptureFixture[str]) -> None:
    """With a batch of one, which exporters take for a constant, and names that are really in the file."""
    net = Net()
    path = tmp_path / "deep" / "net.onnx"
    report = holdfast.export(
        net,
        path,
        example=torch.randn(1, 3, 8, 8),
        input_names=["input"],
        output_names=["output"],
        dynamic={"input": {0: "batch"}},
    )
    assert capfd.readouterr() == ("", "")
    assert left(tmp_path) == ["deep", "deep/net.onnx"]
    model = onnx.load(path)
    assert [one.name for one in model.graph.input] == ["input"]
    assert [one.name for one in model.graph.output] == ["output"]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_param or one.dim_value for one in dims] == ["batch", 3, 8, 8]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert b"small_models.py" not in path.read_bytes(), "the file tells where the model's source lies on this machine"

    fresh = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        wanted = net.eval()(fresh)
    np.testing.assert_allclose(ask_onnx(path, fresh)[0], wanted.numpy(), rtol=0, atol=1e-5)
    assert report.how == "dynamo"
    assert report.runtime.startswith("onnxruntime ")
    assert [str(port) for port in report.outputs] == ["output (batch, 10) float32"]
    tried = [one.input for one in report.compared]
    assert tried == [
        "example", "negated", "shuffled", "fresh, as the example", "fresh, around zero", "batch=2", "batch=3", "batch=7"
    ]  # fmt: skip
    assert all(one.argmax == 1.0 and one.cosine is not None and one.cosine > 0.999999 for one in report.compared)
    assert report.bytes == path.stat().st_size


def test_torchscript_named_pt_out_of_a_file(tmp_path: Path, images: torch.Tensor) -> None:
    saved = Net(4)
    holdfast.save(saved, tmp_path / "net.pt", config={"classes": 4}, probe=images)
    report = holdfast.export(tmp_path / "net.pt", tmp_path / "scripted.pt", format="torchscript", factory=Net)
    assert (report.format, report.how) == ("torchscript", "script")
    assert any("torch.export" in note for note in report.notes), "the successor is named"
    assert any("were not tried" in note for note in report.notes), "that no other size was tried is said"
    with pytest.warns(DeprecationWarning, match="torch.jit"), torch.no_grad():
        loaded = torch.jit.load(tmp_path / "scripted.pt")  # type: ignore[no-untyped-call]
    assert not loaded.training
    with torch.no_grad():
        assert loaded(images).equal(saved.eval()(images))


def test_program_of_a_runs_best(run_dir: Path, tmp_path: Path, images: torch.Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with holdfast.Run(run_dir, model=net, optimizer=optimizer, best="loss:min", save="1ep") as run:
        for epoch in run.epochs(1):
            for batch in run.batches([images]):
                net(batch).sum().backward()
                optimizer.step()
            run.end(epoch, loss=0.5)
    trained = net(images).detach()
    report = holdfast.export(f"{run_dir}@best", tmp_path / "net.pt2", example=images, dynamic={0: {0: "batch"}})
    assert report.how == "torch.export"
    assert "batch=7" in {one.input for one in report.compared}
    program = torch.export.load(tmp_path / "net.pt2")
    torch.testing.assert_close(program.module()(images), trained)
    assert program.example_inputs is None, "an example in there is a pickle that loading the file would run"


def test_a_traced_branch_is_caught(tmp_path: Path, left: Left) -> None:
    """The old file stays; what the trace lost shows on the inputs that take the other branch."""
    old = tmp_path / "branch.ts"
    old.write_bytes(b"what was there before")
    example = torch.rand(2, 4)
    with pytest.raises(MismatchError, match=r"branch\.ts`: written as torchscript \(trace\).*`output` on") as caught:
        holdfast.export(Branching(), old, example=example, format="torchscript-trace")
    assert "does a branch or a loop in forward depend on values?" in str(caught.value)
    assert caught.value.exit_code == 1
    report = caught.value.report
    assert isinstance(report, ExportReport)
    wrong = {one.input for one in report.compared if not one.is_same}
    assert "negated" in wrong
    assert "example" not in wrong
    assert "OTHER ANSWERS" in str(report)
    assert any(note.startswith("trace warns: Converting a tensor to a Python boolean") for note in report.notes)
    assert left(tmp_path) == ["branch.ts"]
    assert old.read_bytes() == b"what was there before"


def test_the_same_branch_survives_as_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And that needs none of the packages of ONNX."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    report = holdfast.export(Branching(), tmp_path / "branch.ts", example=torch.rand(2, 4), dynamic={"x": {0}})
    assert report.how == "script"
    assert str(report.inputs[0]) == "x (axis0, 4) float32"
    assert capfd.readouterr() == ("", "")


def test_integers_and_nested_answers(tmp_path: Path) -> None:
    report = holdfast.export(
        Reader(), tmp_path / "reader.onnx", example={"ids": torch.randint(0, 50, (2, 6))}, dynamic={"ids": {0: "batch"}}
    )
    assert [str(port) for port in report.outputs] == [
        "logits (batch, 5) float32",
        "state_0 (1, batch, 16) float32",
        "state_1 (1, batch, 16) float32",
    ]
    assert str(report.inputs[0]) == "ids (batch, 6) int64"


def test_many_arguments(tmp_path: Path) -> None:
    example = {"x": torch.randn(2, 4), "unused": torch.ones(3), "scale": 3, "pair": {"a": torch.ones(4)}}
    report = holdfast.export(Many(), tmp_path / "many.onnx", example=example)
    model = onnx.load(tmp_path / "many.onnx")
    assert [one.name for one in model.graph.input] == ["x", "unused", "pair_a"]
    assert [one.name for one in model.graph.output] == ["y", "again", "x_out", "sums_0"]
    assert any("every size is that of the example" in note for note in report.notes)
    y = ask_onnx(tmp_path / "many.onnx", example["x"], example["unused"], example["pair"]["a"])[0]  # type: ignore[index]
    np.testing.assert_allclose(y, (example["x"] * 3 + 1).numpy(), rtol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(tmp_path: Path, fails: bool) -> None:
    model = nn.Sequential(Counting(), nn.Dropout(), Random() if fails else nn.Identity())
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = torch.full((4,), 3.0)
    grad = model[0].weight.grad
    attributes = {name: dict(part.__dict__) for name, part in model.named_modules()}
    random.seed(3)
    np.random.seed(3)
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    settings = torch_settings()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UnsupportedValue) if fails else contextlib.nullcontext():
            holdfast.export(model, tmp_path / "m.onnx", example=torch.ones(2, 4, dtype=torch.float32))
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert float(model[0].calls) == 0
    assert model[0].last is None
    assert model[0].weight.grad is grad
    assert not model[0].weight.requires_grad
    for name, part in model.named_modules():
        assert part.__dict__.keys() == attributes[name].keys()
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]
    assert torch.get_rng_state().equal(drawn[2])
    assert torch_settings() == settings


def torch_settings() -> dict[str, Any]:
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,
    }


def test_a_model_elsewhere_is_copied_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator is here: what says where the tensors are says another device."""
    monkeypatch.setattr(exporting, "_devices", lambda module: {"cuda"})
    net = nn.Linear(2, 2)
    wrapped = nn.DataParallel(net)
    report = holdfast.export(wrapped, tmp_path / "m.onnx", example=torch.ones(1, 2))
    assert "exported and compared as a copy on the CPU; the model itself is on cuda" in report.notes
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert names == {"weight", "bias"}, "the wrapper is left out"
    net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UnsupportedValue, match=r"can't be copied to the CPU.*: TypeError: .*pickle"):
        holdfast.export(net, tmp_path / "m.ts", example=torch.ones(1, 2))


class Named(nn.Module):
    """A parameter that is called as an argument of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return scale * self.scale


def test_an_input_that_is_called_as_a_parameter(tmp_path: Path) -> None:
    holdfast.export(Named(), tmp_path / "m.onnx", example=torch.ones(3))
    assert ask_onnx(tmp_path / "m.onnx", torch.ones(3))[0].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.ts"])
def test_a_model_that_is_random_in_eval_is_refused(tmp_path: Path, left: Left, name: str) -> None:
    with pytest.raises(UnsupportedValue, match="Random gives another answer to the same input when it is asked again"):
        holdfast.export(Random(), tmp_path / name, example=torch.ones(4, 4))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "export needs an example of the inputs"),
        ([torch.ones(1)], "example= is a list; give a tensor, a tuple"),
        ((torch.ones(2, 3, 8, 8), 1), r"example=: Net\.forward.* does not take it: too many positional arguments"),
        ({"pictures": torch.ones(1)}, r"Net\.forward.* does not take it: missing a required argument: 'images'"),
        (torch.ones(2, 5), "example=: Net does not take it: RuntimeError: "),
        ((3,), "has no tensor in it"),
        ({"images": object()}, r"`args\.0` is a object; tensors, plain values"),
        (torch.ones(2, 2, device="meta"), r"`args\.0` is a tensor without values \(meta\)"),
        (torch.ones(2, 2).to_sparse(), r"`args\.0` is a tensor torch\.sparse_coo, torch\.float32"),
    ],
)
def test_a_wrong_example(tmp_path: Path, left: Left, example: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        holdfast.export(Net(), tmp_path / "net.ts", example=example)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format 'tflite' is unknown; there are: onnx"),
        ({"path": "net.pt"}, r"`net\.pt`: the name does not say for which runtime: end it in \.onnx, \.pt2, \.ts, or"),
        ({"path": "s3://bucket/net.onnx"}, "exporting to a URL is not in this version; export to a path"),
        ({"path": 3}, "export writes to a path, not to a int"),
        ({"tolerance": -1}, "tolerance= is -1; a number from 0 on"),
        ({"model": {"a": 1}}, "a module, or a file that has one, is wanted, not dict"),
        ({"input_names": ["a", "b"]}, "input_names= has 2 names; there are 1: images"),
        ({"input_names": "a"}, r"input_names= is a list of names: input_names=\['images'\]"),
        ({"output_names": ["images"]}, "output_names=: images names an input too"),
        ({"dynamic": {"pictures": {0: "batch"}}}, "dynamic=: no input 'pictures'; the inputs are images"),
        ({"dynamic": {"images": {7: "batch"}}}, "dynamic=: 'images' has no axis 7; it has 4"),
        ({"dynamic": {"images": 0}}, r"dynamic=: 'images' takes axes, \{0: 'batch'\} or \{0\}, not 0"),
        ({"dynamic": {"images": {0: "the batch"}}}, "the name of an axis is a word such as 'batch', not 'the batch'"),
        ({"dynamic": {"images": {0: "n", 1: "n"}}}, "axes named 'n' have one size; the example has 2, 3"),
        ({"dynamic": ["images"]}, "dynamic= maps inputs to their open axes"),
    ],
)
def test_wrong_options(tmp_path: Path, left: Left, images: torch.Tensor, options: Any, message: str) -> None:
    given = {"model": Net(), "path": tmp_path / "net.onnx", "example": images, **options}
    with pytest.raises(ArgumentError, match=message):
        holdfast.export(given.pop("model"), given.pop("path"), **given)
    assert left(tmp_path) == []


class Fixing(nn.Module):
    """Forward fixes the size that is said to be open."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1).sum(1) if x.shape[0] == 2 else x.sum(1)


class Pair(NamedTuple):
    """A class of the user's own."""

    a: int
    b: int


class Answering(nn.Module):
    """Answers with what it is made with."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> Any:
        return x, self.what


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (
            Branching(),
            "m.pt2",
            r"m\.pt2`: torch\.export does not take this model: .*a branch on values needs torch\.cond",
        ),
        (Fixing(), "m.onnx", "Constraints violated.*batch.*specialized it to be a constant"),
        (Answering(3), "m.onnx", r"the model answers with plain values \(output_1\); ONNX has tensors only"),
        (Answering({1, 2}), "m.onnx", "Answering answers with a set; what is exported answers with tensors"),
        (Answering(torch.eye(2).to_sparse()), "m.ts", r"Answering answers with a tensor torch\.sparse_coo"),
        (Answering(Pair(1, 2)), "m.pt2", r"answers with a Pair, and a \.pt2 of it opens only where"),
        (nn.Linear(4, 4, device="meta"), "m.ts", "the model has tensors on the meta device, without values"),
    ],
)
def test_models_that_are_not_taken(tmp_path: Path, left: Left, model: nn.Module, name: str, message: str) -> None:
    with pytest.raises(UnsupportedValue, match=message) as caught:
        holdfast.export(model, tmp_path / name, example=torch.ones(2, 4), dynamic={"x": {0: "batch"}} if "x" in str(
            model.forward.__code__.co_varnames) else None)  # fmt: skip
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []


def test_script_by_name_does_not_fall_back(tmp_path: Path, left: Left) -> None:
    example = {"x": torch.randn(2, 4), "unused": torch.ones(3), "pair": {"a": torch.ones(4)}}
    with pytest.raises(UnsupportedValue, match=r"torch\.jit\.script does not take this model: .*torchscript-trace"):
        holdfast.export(Many(), tmp_path / "m.ts", example=example, format="torchscript-script")
    with pytest.raises(
        UnsupportedValue,
        match=r"torch\.jit\.trace does not .*Nor does torch\.jit\.script: .*The successor may: name the",
    ):
        holdfast.export(Many(), tmp_path / "m.ts", example=example)
    assert left(tmp_path) == []


class Bessel(nn.Module):
    """An operator that torch.export knows and ONNX does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_what_onnx_does_not_take_is_said(tmp_path: Path, left: Left) -> None:
    with pytest.raises(
        UnsupportedValue, match=r"torch\.onnx does not take this model: .*\.pt2 needs no operators of ONNX"
    ):
        holdfast.export(Bessel(), tmp_path / "m.onnx", example=torch.ones(3))
    assert left(tmp_path) == []


def spoiled(*_: Any, **__: Any) -> Any:
    raise onnx.checker.ValidationError("Field 'op_type' of 'node' is required to be non-empty.")


@pytest.mark.parametrize(
    ("name", "what", "does", "message"),
    [
        ("m.onnx", "onnx.checker.check_model", spoiled, r"onnx\.checker does not take this model"),
        ("m.onnx", "torch.onnx.export", lambda *_, **__: None, r"torch\.onnx left out inputs or outputs of this model"),
        ("m.pt2", "torch.export.save", spoiled, r"torch\.export\.save does not take this model: .*Answer with tensors"),
    ],
    ids=range(3),
)
def test_what_an_exporter_leaves_out_or_spoils_is_not_written(
    tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch, name: str, what: str, does: Any, message: str
) -> None:
    monkeypatch.setattr(what, does)
    with pytest.raises(UnsupportedValue, match=message):
        holdfast.export(nn.Linear(4, 2), tmp_path / name, example=torch.ones(3, 4))
    assert left(tmp_path) == []


class Unscriptable(nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return sum(inputs)  # type: ignore[return-value]


def test_trace_when_script_does_not_take_it(tmp_path: Path) -> None:
    report = holdfast.export(Unscriptable(), tmp_path / "m.ts", example=(torch.ones(3), torch.ones(3)))
    assert report.how == "trace"
    assert any(note.startswith("traced, since torch.jit.script does not take the model: Not") for note in report.notes)
    assert [port.name for port in report.inputs] == ["inputs_0", "inputs_1"]


def test_what_the_model_itself_does_not_take_is_said(tmp_path: Path) -> None:
    """An axis that may be open, but not that small."""
    net = nn.Conv1d(2, 2, 3)
    report = holdfast.export(net, tmp_path / "net.ts", example=torch.randn(1, 2, 9), dynamic={"input": {2: "length"}})
    assert {one.input for one in report.compared} >= {"length=3", "length=7"}
    notes = [note for note in report.notes if note.startswith("not tried on length=1: the model itself does not take")]
    assert notes
    assert str(report.outputs[0]) == "output (1, 2, of length) float32"


def test_every_error_is_of_holdfast(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError):
        holdfast.export(tmp_path / "gone.pt", tmp_path / "m.onnx", example=torch.ones(1))
    folder = tmp_path / "folder.ts"
    folder.mkdir()
    with pytest.raises(holdfast.HoldfastError, match="is a folder; name a file inside it"):
        holdfast.export(nn.Linear(2, 2), folder, example=torch.ones(1, 2))


def test_a_file_that_is_less_exact_than_asked_for_is_not_written(tmp_path: Path, left: Left) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Softmax(-1))
    with pytest.raises(MismatchError, match="if that is near enough for you, give tolerance=; nothing was written"):
        holdfast.export(model, tmp_path / "m.onnx", example=torch.randn(8, 64), tolerance=0)
    assert left(tmp_path) == []
