"""rename, strip, extract, merge and average on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import holdfast as library

Holdfast = Callable[..., Any]
VERBS = ["average", "extract", "merge", "rename", "strip"]
BLOCKED = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None      # importing them fails from here on
from holdfast.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of torch and two of ours."""
    monkeypatch.chdir(tmp_path)
    state = {"module.fc.weight": torch.ones(2, 3), "module.fc.bias": torch.zeros(2)}
    torch.save({"state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "old.ckpt")
    for value in (1.0, 4.0):
        library.save({"model": {"w": torch.full((3,), value)}, "note": "x"}, f"{value:.0f}.pt")
    return tmp_path


def test_rename(holdfast: Holdfast, folder: Path) -> None:
    code, out, _ = holdfast("rename", "old.ckpt", "new.pt", "--strip-prefix", "module", "--rename", r"^fc\.", "head.")
    assert code == 0
    assert "module.fc.weight -> head.weight" in out
    assert out.startswith("new.pt: pt, 2 tensors, ")
    assert list(torch.load("new.pt")["state_dict"]) == ["head.weight", "head.bias"]
    code, _, err = holdfast("rename", "old.ckpt", "new.pt", "--rename", "nothing", "x")
    assert code == 1
    assert "no name changes under these rules" in err
    code, _, err = holdfast("rename", "old.ckpt", "new.pt")
    assert code == 3
    assert "rename needs a rule" in err
    code, out, _ = holdfast("rename", "old.ckpt", "new.pt", "--drop", "*.bias", "--add-prefix", "net", "--json")
    found = json.loads(out)
    assert found["renamed"] == {"module.fc.weight": "net.module.fc.weight"}
    assert found["left_out"] == {"module.fc.bias": 8}


def test_strip(holdfast: Holdfast, folder: Path) -> None:
    code, out, _ = holdfast("strip", "old.ckpt", "net.safetensors")
    assert code == 0
    assert "left out, 0 bytes (2):\n  optimizer\n  epoch" in out
    assert set(safetensors.torch.load_file("net.safetensors")) == {"module.fc.weight", "module.fc.bias"}
    assert json.loads(holdfast("strip", "old.ckpt", "net.bin", "--at", "state_dict", "--json").out)["format"] == "pt"
    assert holdfast("strip", "old.ckpt", "old.ckpt").code == 3
    assert holdfast("strip", "missing.pt", "net.pt").code == 4
    assert holdfast("strip", "old.ckpt", "net.pt", "--format", "zip").code == 3


def test_extract(holdfast: Holdfast, folder: Path) -> None:
    code, out, _ = holdfast("extract", "old.ckpt", "state_dict.module", "-o", "module.pt")
    assert code == 0
    assert "made of old.ckpt, read again and equal" in out
    assert list(torch.load("module.pt")) == ["fc.weight", "fc.bias"]
    assert json.loads(holdfast("extract", "old.ckpt", "epoch", "-o", "e.pt", "--json").out)["tensors"] == 0
    assert torch.load("e.pt") == 3
    code, _, err = holdfast("extract", "old.ckpt", "nothing", "-o", "x.pt")
    assert code == 4
    assert "has no part `nothing`" in err
    assert holdfast("extract", "old.ckpt", "epoch").code == 3


def test_merge(holdfast: Holdfast, folder: Path) -> None:
    code, out, _ = holdfast("merge", "one=1.pt", "four=4.pt", "-o", "both.pt")
    assert code == 0
    assert "made of 1.pt, 4.pt" in out
    assert torch.load("both.pt")["four"]["model"]["w"].tolist() == [4.0] * 3
    code, _, err = holdfast("merge", "1.pt", "4.pt", "-o", "no.pt")
    assert code == 1
    assert "`model` is in `1.pt` and `4.pt`" in err
    code, _, err = holdfast("merge", "one=1.pt", "4.pt", "-o", "no.pt")
    assert code == 3
    assert "give every file a name of its own, or none: one=1.pt, 4.pt" in err
    assert holdfast("merge", "one=1.pt", "one=4.pt", "-o", "no.pt").code == 3
    os.rename("1.pt", "lr=0.1.pt")
    found = json.loads(holdfast("merge", "lr=0.1.pt", "old.ckpt", "-o", "all.pt", "--json").out)
    assert found["sources"] == ["lr=0.1.pt", "old.ckpt"]
    assert list(torch.load("all.pt")) == ["model", "note", "state_dict", "optimizer", "epoch"]


def test_average(holdfast: Holdfast, folder: Path) -> None:
    code, out, _ = holdfast("average", "1.pt", "4.pt", "-o", "mean.pt", "--weights", "1,2")
    assert code == 0
    assert "left out, 0 bytes (1):\n  note" in out
    assert torch.load("mean.pt")["w"].tolist() == [3.0] * 3
    assert json.loads(holdfast("average", "1.pt", "4.pt", "-o", "mean.pt", "--json").out)["tensors"] == 1
    assert torch.load("mean.pt")["w"].tolist() == [2.5] * 3
    code, _, err = holdfast("average", "1.pt", "4.pt", "-o", "mean.pt", "--weights", "1,much")
    assert code == 3
    assert "--weights takes numbers with commas between, not 'much'" in err
    code, _, err = holdfast("average", "1.pt", "old.ckpt", "-o", "mean.pt")
    assert code == 1
    assert "are not of one model" in err
    library.save({"w": torch.full((3,), float("nan"))}, "nan.pt")
    assert holdfast("average", "1.pt", "nan.pt", "-o", "mean.pt").code == 2
    assert holdfast("average", "1.pt", "nan.pt", "-o", "mean.pt", "--nonfinite", "keep").code == 0
    assert torch.load("mean.pt")["w"].isnan().all()


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(holdfast: Holdfast, verb: str) -> None:
    code, out, _ = holdfast(verb, "--help")
    assert code == 0
    assert f"Example: holdfast {verb} " in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize(
    "line",
    [
        "rename old.ckpt new.pt --strip-prefix module",
        "strip old.ckpt new.safetensors",
        "extract old.ckpt state_dict -o new.pt",
        "merge one=1.pt four=4.pt -o new.pt",
    ],
)
def test_only_averaging_needs_torch(folder: Path, line: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(library.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", BLOCKED, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "read again and equal" in done.stdout
