"""ONNX beyond the common way: weights beside the model, packages that are missing, places that lead out."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import MismatchError, MissingExtra, RefusedFile
from holdfast.export import exporting, parity
from holdfast.export import onnx as to_onnx
from holdfast.export.asking import Answers
from holdfast.export.quiet import caught_stderr, quiet

Left = Callable[[Path], list[str]]


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 5))


def test_weights_beside_the_model(tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit, in a file named for its content, which goes when another export takes the place."""
    monkeypatch.setattr(to_onnx, "ONE_FILE", 4000)
    x = torch.randn(2, 4)
    first, second = wide(), wide()
    assert to_onnx.data_name("net.onnx", "0" * 32) == "net.onnx.0000000000000000.data"
    assert to_onnx.is_data_name("net.onnx.0123456789abcdef.data", "net.onnx")
    assert not to_onnx.is_data_name("netxonnx.0123456789abcdef.data", "net.onnx")
    report = holdfast.export(first, tmp_path / "net.onnx", example=x)
    assert left(tmp_path) == sorted(os.path.basename(file) for file in report.files)
    assert len(report.files) == 2
    assert report.bytes == sum(os.path.getsize(file) for file in report.files)
    assert f"  file    {report.files[1]}" in str(report)
    proto = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    onnx.checker.check_model(tmp_path / "net.onnx")
    assert to_onnx.locations(proto) == {os.path.basename(report.files[1])}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    answer = session.run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(answer, first(x).detach().numpy(), rtol=0, atol=1e-5)

    (tmp_path / "net.onnx.data").write_bytes(b"not ours")
    other = holdfast.export(second, tmp_path / "net.onnx", example=x)
    assert other.files[1] != report.files[1]
    names = ["net.onnx", "net.onnx.data", os.path.basename(other.files[1])]
    assert left(tmp_path) == sorted(names)
    monkeypatch.undo()
    holdfast.export(second, tmp_path / "net.onnx", example=x)
    assert left(tmp_path) == ["net.onnx", "net.onnx.data"]


def test_a_difference_leaves_both_old_files(tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "ONE_FILE", 4000)
    x = torch.randn(2, 4)
    first = wide()
    holdfast.export(first, tmp_path / "net.onnx", example=x)
    before = {name: (tmp_path / name).read_bytes() for name in left(tmp_path)}
    monkeypatch.setattr(exporting, "ask", lambda *_, **__: Answers("a runtime", [[torch.zeros(2, 5)]] * 5))
    for model in (first, wide()):  # the first would write the same data again
        with pytest.raises(MismatchError, match=r"gives other answers than the model on \d of 5 inputs"):
            holdfast.export(model, tmp_path / "net.onnx", example=x)
    assert {name: (tmp_path / name).read_bytes() for name in left(tmp_path)} == before


def test_the_data_goes_when_its_model_does_not_come(
    tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "ONE_FILE", 4000)
    real = os.replace

    def fails(source: str, target: str) -> None:
        if target.endswith(".onnx"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(holdfast.HoldfastError, match="renaming failed: Input/output error"):
        holdfast.export(wide(), tmp_path / "net.onnx", example=torch.randn(2, 4))
    assert left(tmp_path) == []


@pytest.mark.parametrize("place", ["../net.data", "/etc/passwd", "a/b", "..", "", "a\\b", "c:d"])
def test_places_that_lead_out_are_refused(place: str) -> None:
    """Also in a graph inside of a graph, where a loader looks too."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    inner = onnx.helper.make_graph([], "inner", [], [], initializer=[tensor])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], []))
    with pytest.raises(RefusedFile, match="is outside of the model's folder"):
        to_onnx.locations(model)
    tensor.external_data[0].value = "beside.data"
    model.graph.initializer.append(tensor)
    del model.graph.node[:]
    assert to_onnx.locations(model) == {"beside.data"}


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing(tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf'ONNX needs .* and {package} can.t .*pip install "holdfast\[export\]"'):
        holdfast.export(nn.Linear(2, 2), tmp_path / "net.onnx", example=torch.ones(1, 2))
    assert left(tmp_path) == []


def test_axes_of_one_size_are_told_apart(tmp_path: Path) -> None:
    """Two open axes of the same size in the example stay two."""
    report = holdfast.export(
        nn.Linear(3, 2), tmp_path / "net.onnx", example=torch.randn(2, 2, 3), dynamic={"input": {0: "batch", 1: "time"}}
    )
    assert str(report.outputs[0]) == "output (batch, time, 2) float32"
    model = onnx.load(tmp_path / "net.onnx")
    assert [dim.dim_param for dim in model.graph.output[0].type.tensor_type.shape.dim[:2]] == ["batch", "time"]
    assert {one.input for one in report.compared} >= {"batch=1", "batch=7", "time=1", "time=7"}


class Placed(nn.Module):
    """Adds places, of which there are sixteen, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(16, 3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (x + self.places[: x.shape[1]]) * mask.unsqueeze(-1)


def test_an_axis_that_is_open_up_to_a_size(tmp_path: Path) -> None:
    axes = {0: "batch", 1: "time"}
    example = (torch.randn(2, 5, 3), torch.ones(2, 5))
    report = holdfast.export(Placed(), tmp_path / "p.onnx", example=example, dynamic={"x": axes, "mask": axes})
    assert report.notes == ["in this file `time` may be at most 16"]
    assert {one.input for one in report.compared} >= {"batch=1", "time=1", "time=7"}
    model = onnx.load(tmp_path / "p.onnx")
    for port in (*model.graph.input, *model.graph.output):
        assert [dim.dim_param for dim in port.type.tensor_type.shape.dim[:2]] == ["batch", "time"]


def test_a_runtime_that_fails_on_one_size(tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of the others are in the report."""
    real = exporting.ask

    def fails_at_seven(*arguments: object, **words: object) -> object:
        answers = real(*arguments, **words)  # type: ignore[arg-type]
        answers.cases[-1] = "RuntimeException: shapes [7] do not\x1b match"
        return answers

    monkeypatch.setattr(exporting, "ask", fails_at_seven)
    with pytest.raises(
        MismatchError, match=r"does not take `batch=7`, which the model takes: .*not\\x1b match"
    ) as caught:
        holdfast.export(nn.Linear(2, 2), tmp_path / "n.onnx", example=torch.ones(1, 2), dynamic={"input": {0: "batch"}})
    assert len(caught.value.report.compared) == 7  # type: ignore[attr-defined]
    assert left(tmp_path) == []


def test_what_exporters_say_does_not_reach_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    loud = logging.getLogger("torch.onnx.loud")
    own = logging.getLogger("mine")
    other: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            other.append(record.getMessage())

    keep = Keep()
    for logger in (loud, own):
        logger.addHandler(keep)
    try:
        with quiet() as told:
            print("chatter")
            print("chatter", file=sys.stderr)
            loud.error("chatter")
            own.error("heard")
            warnings.warn("mind this\nand more", UserWarning, stacklevel=1)
            warnings.warn("gone soon", DeprecationWarning, stacklevel=1)
            thread = threading.Thread(target=lambda: (print("from a thread"), loud.error("also heard")))
            thread.start()
            thread.join()
    finally:
        for logger in (loud, own):
            logger.removeHandler(keep)
    assert told == ["mind this"]
    assert other == ["heard", "also heard"]
    assert capfd.readouterr().out == "from a thread\n"
    with caught_stderr() as said:
        os.write(2, b"[W] first\nsecond\n")
    assert said == ["[W] first"]
    assert capfd.readouterr().err == ""


def test_tolerances_are_those_of_the_page(repository: Path) -> None:
    page = (repository / "docs/design/007-leaving-pytorch.md").read_text(encoding="utf-8")
    for dtype, allowed in parity.TOLERANCES.items():
        assert f"| {str(dtype).removeprefix('torch.')} | {allowed:.0e}".replace("e-0", "e-") in page
