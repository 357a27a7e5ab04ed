"""holdfast quantize: a file out of a file, with the report that Python gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast as library

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, left, right):
        return self.fc(left) + self.fc(right)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    library.save(scope["Net"](), "net.pt")
    library.save(scope["Two"](), "two.pt")
    library.save(nn.Sequential(nn.Linear(4, 3)), "layers.safetensors")
    return tmp_path


def test_it_writes_a_file_that_build_opens(holdfast: Callable[..., Any], folder: Path) -> None:
    code, out, err = holdfast(
        "quantize", "net.pt", "q.pt", "--recipe", "dynamic-int8", "--factory", "model.py:Net", "--input", "2x1x4x4"
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"Net by dynamic-int8 for {torch.backends.quantized.engine}: 1 layers (1 Linear)")
    assert "answers to 1 batches" in out
    assert out.splitlines()[-1].startswith("wrote q.pt, pt, ")
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    assert library.build("q.pt", factory=scope["Net"])(torch.zeros(1, 1, 4, 4)).shape == (1, 2)


def test_layers_of_torch_need_no_factory(holdfast: Callable[..., Any], folder: Path) -> None:
    code, out, _ = holdfast("quantize", "layers.safetensors", "q.safetensors", "--recipe", "int8-weight-only", "--json")
    assert code == 0
    assert out.isascii()
    said = json.loads(out)
    assert said["layers"] == {"0": "Linear"}
    assert (said["file"], said["format"]) == ("q.safetensors", "safetensors")
    assert library.build("q.safetensors")(torch.zeros(1, 4)).shape == (1, 3)


def test_calibration_comes_from_a_file(holdfast: Callable[..., Any], folder: Path) -> None:
    images = torch.randn(40, 1, 4, 4)
    library.save(images, "samples.pt")
    library.save([(images[:5], torch.zeros(5)), (images[5:], torch.zeros(35))], "batches.pt")
    np.savez("samples.npz", images=images.numpy())
    for file, batches in (("samples.pt", 2), ("batches.pt", 2), ("samples.npz", 2)):
        options = ("--recipe", "static-int8", "--factory", "model.py:Net", "--calibration", file, "--json")
        code, out, err = holdfast("quantize", "net.pt", "q.pt", *options)
        assert (code, err) == (0, "")
        assert json.loads(out)["calibrated"] == batches
    np.savez("two.npz", left=np.ones((40, 4), np.float32), right=np.ones((40, 4), np.float32))
    options = ("--recipe", "static-int8", "--factory", "model.py:Two", "--calibration", "two.npz", "--json")
    code, out, err = holdfast("quantize", "two.pt", "q.pt", *options)
    assert (code, err) == (0, "")
    assert json.loads(out)["calibrated"] == 2


def test_what_is_wrong_is_one_line(holdfast: Callable[..., Any], folder: Path) -> None:
    net = ("net.pt", "q.pt", "--factory", "model.py:Net")
    library.save({"a": torch.zeros(3, 1), "b": torch.zeros(2, 1)}, "uneven.pt")
    library.save(torch.zeros(()), "number.pt")
    for arguments, code, told in (
        ((*net, "--recipe", "int3"), 3, "it takes one of dynamic-int8, static-int8"),
        ((*net, "--recipe", "dynamic-int8", "--backend", "cuda"), 3, "int8 layers can be packed here for"),
        ((*net, "--recipe", "static-int8"), 3, "give calibration="),
        ((*net, "--recipe", "static-int8", "--calibration", "uneven.pt"), 3, "holds no calibration data"),
        ((*net, "--recipe", "static-int8", "--calibration", "number.pt"), 3, "holds no calibration data"),
        ((*net, "--recipe", "static-int8", "--calibration", "gone.pt"), 4, "gone.pt"),
        (
            (*net, "--recipe", "dynamic-int8", "--input", "1x-3"),
            3,
            "'1x-3': write SHAPE, SHAPE:DTYPE or SHAPE:DTYPE:N",
        ),
        ((*net[:2], "--recipe", "dynamic-int8"), 3, "factory=Net"),
        (("gone.pt", "q.pt", "--recipe", "dynamic-int8"), 4, "gone.pt"),
    ):
        result = holdfast("quantize", *arguments)
        assert result.code == code, result
        assert told in result.err
        assert result.err.count("\n") == 1
        assert not (folder / "q.pt").exists()


def test_check_says_that_a_file_is_quantized(holdfast: Callable[..., Any], folder: Path) -> None:
    options = ("--recipe", "dynamic-int8", "--factory", "model.py:Net")
    assert holdfast("quantize", "net.pt", "q.pt", *options).code == 0
    code, out, _ = holdfast("check", "q.pt", "model.py:Net", "--warm")
    assert code == 1
    assert "the file is quantized (dynamic-int8), `head`, and the model is not" in out


def test_a_model_of_tokens_is_asked_with_integers(folder: Path, holdfast: Callable[..., Any]) -> None:
    library.save(torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 2)), "tokens.pt")
    line = ("tokens.pt", "q.pt", "--recipe", "dynamic-int8", "--input", "2x6:int64:50", "--json")
    result = holdfast("quantize", *line)
    assert result.code == 0, result
    assert json.loads(result.out)["compared"] == 1
