"""``holdfast export``: on the command line as in Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast as library
from tests.cli.conftest import Result

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.head = nn.Linear(4, 3)
    def forward(self, ids, scale):
        return self.head(self.words(ids).mean(1) * scale)

class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x[0, 0] > 0 else -x
"""
Verb = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    namespace: dict[str, type[nn.Module]] = {}
    exec(MODEL, namespace)
    library.save(namespace["Net"](), "net.pt")
    library.save(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), "layers.pt", probe=torch.randn(2, 4))
    library.save({"model": namespace["Branch"]().state_dict()}, "branch.pt")
    return tmp_path


def test_inputs_names_and_open_axes(folder: Path, holdfast: Verb) -> None:
    done = holdfast(
        "export", "net.pt", "net.onnx", "--factory", "model.py:Net", "--input", "1x6:int64:20", "--input", "4",
        "--dynamic", "ids:0=batch", "--input-name", "ids", "--input-name", "scale", "--output-name", "logits", "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["same"] is True
    assert report["inputs"][0] == {"name": "ids", "shape": ["batch", 6], "dtype": "int64"}
    assert report["outputs"][0] == {"name": "logits", "shape": ["batch", 3], "dtype": "float32"}
    assert (folder / "net.onnx").stat().st_size == report["bytes"]


def test_inputs_from_the_probe_and_a_table(folder: Path, holdfast: Verb) -> None:
    done = holdfast("export", "layers.pt", "layers.ts")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("layers.ts: torchscript (script), ")
    assert "fresh, around zero" in done.out


def test_other_answers_exit_one(folder: Path, holdfast: Verb) -> None:
    line = ("export", "branch.pt", "out.ts", "--factory", "model.py:Branch", "--input", "2x2", "--format")
    done = holdfast(*line, "torchscript-trace")
    assert (done.code, done.out) == (1, "")
    assert "gives other answers than the model on" in done.err
    assert done.err.count("\n") == 1
    done = holdfast(*line, "torchscript-trace", "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert report["same"] is False
    assert "other answers" in report["message"]
    assert len(report["compared"]) == 5
    assert not (folder / "out.ts").exists()
    assert holdfast(*line, "torchscript-trace", "--tolerance", "1e9").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("layers.pt", "layers.pt"), 3, "the name does not say for which runtime"),
        (("gone.pt", "net.onnx"), 4, "no such file"),
        (("net.pt", "net.ts", "--input", "4"), 3, "factory="),
        (("layers.pt", "n.ts", "--input", "1xa"), 3, "write SHAPE, SHAPE:DTYPE or SHAPE:DTYPE:N, as 1x16:int64:1000"),
        (("layers.pt", "n.ts", "--input", "1:float3"), 3, "--input '1:float3': torch has no dtype 'float3'"),
        (("layers.pt", "n.ts", "--input", "1:int64:0"), 3, "integers are drawn from 0 to below N; N is at least 1"),
        (("layers.pt", "n.ts", "--dynamic", "input=batch"), 3, "write INPUT:AXIS=NAME, such as images:0=batch"),
        (("layers.pt", "n.ts", "--input", "2x5"), 3, "Sequential does not take it"),
        (("layers.pt", "n.ts", "--format", "tflite"), 3, "is not one of"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, holdfast: Verb, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = holdfast("export", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_missing_package_exits_five(folder: Path, holdfast: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = holdfast("export", "layers.pt", "layers.onnx")
    assert done.code == 5
    assert 'pip install "holdfast[export]"' in done.err
