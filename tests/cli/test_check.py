"""holdfast check: whether a file fits a model, without loading it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.head = nn.Linear(4, 2)
"""


class Net(nn.Module):
    def __init__(self, head: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.head = nn.Linear(4, head)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    holdfast.save(Net(2), tmp_path / "fits.pt")
    holdfast.save(Net(5), tmp_path / "other.pt")
    torch.save({"model_state_dict": nn.DataParallel(Net(2)).state_dict(), "epoch": 3}, tmp_path / "parallel.pth")
    return tmp_path


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast", "check", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_what_fits_exits_zero(folder: Path) -> None:
    done = check(folder, "fits.pt", "model.py:Net")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fits.pt fits model.py:Net\nloaded 26 tensors and states (100.0%")


def test_a_module_is_imported_from_the_present_folder(folder: Path) -> None:
    done = check(folder, "parallel.pth", "model:Net")
    assert done.returncode == 0
    assert "module.* as model.*  x26" in done.stdout


def test_what_does_not_fit_exits_one_and_shows_it_collapsed(folder: Path) -> None:
    done = check(folder, "other.pt", "model.py:Net")
    assert done.returncode == 1
    assert "mismatched (2):" in done.stdout
    assert "file has (5, 4) float32, object wants (2, 4) float32" in done.stdout


def test_a_warm_start_is_judged_as_one(folder: Path) -> None:
    done = check(folder, "other.pt", "model.py:Net", "--warm", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["fits"] is True
    assert len(report["loaded"]) == 24


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fits.pt", "Net"), 3, "write the model as pkg.module:Net or path/to/file.py:Net"),
        (("fits.pt", "gone.py:Net"), 4, "`gone.py`: no such file"),
        (("fits.pt", "nowhere.at.all:Net"), 4, "'nowhere.at.all' can't be imported from here"),
        (("fits.pt", "model.py:Nut"), 4, "'model.py' has no class or function 'Nut'"),
        (("gone.pt", "model.py:Net"), 4, "no such file"),
    ],
)
def test_what_is_not_there_is_said(folder: Path, arguments: tuple[str, str], code: int, message: str) -> None:
    done = check(folder, *arguments)
    assert done.returncode == code
    assert message in done.stderr
