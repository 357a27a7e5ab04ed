"""The examples are programs: they are run as such."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.table import Table

import holdfast


def run(script: Path, *arguments: object) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(holdfast.__file__).parents[1]),
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tutorial_walks_through(repository: Path, tmp_path: Path) -> None:
    printed = run(repository / "examples" / "tutorial.py", tmp_path)
    assert re.findall(r"^== ((?:R\d+,? )+)", printed, re.MULTILINE) == [
        "R1 ", "R2 ", "R5, R28 ", "R7 ", "R12 ", "R21, R23, R25 ", "R22 ", "R29 ",
    ]  # fmt: skip
    assert "net.pt: 10 tensors, equal: True" in printed
    assert "net.safetensors: 10 tensors, equal: True" in printed
    assert "refused:" in printed
    assert "is what @best holds: True" in printed
    assert "in training mode: False" in printed


def test_digits_goes_on_where_it_was(repository: Path, tmp_path: Path) -> None:
    script = repository / "examples" / "digits.py"
    first = run(script, tmp_path / "run", "--epochs=1")
    assert "resuming" not in first
    second = run(script, tmp_path / "run", "--epochs=2")
    assert "resuming at epoch 1, batch 0 (step 38)" in second
    assert "epoch 0" not in second
    assert float(re.search(r"best model: ([\d.]+)%", second)[1]) > 60


def test_the_exported_digits_read_as_the_model_does(repository: Path, tmp_path: Path) -> None:
    printed = run(repository / "examples" / "export_digits.py", "--into", tmp_path / "files")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[0] for row in rows] == [
        "holdfast.save", "TorchScript", "ONNX", "torch.export", "dynamic-int8", "static-int8",
    ]  # fmt: skip
    correct = [float(row[3].rstrip("%")) for row in rows]
    assert correct[0] > 85
    for row, share in zip(rows, correct, strict=True):
        assert int(row[2].replace(",", "")) == (tmp_path / "files" / row[1]).stat().st_size
        assert float(row[6]) > 0
        if "int8" in row[0]:
            assert abs(share - correct[0]) <= 2
            assert int(row[4].split()[0]) >= 350
            assert int(row[2].replace(",", "")) < int(rows[0][2].replace(",", ""))
        else:
            assert (share, row[4]) == (correct[0], "360 of 360")
            assert float(row[5]) < 1e-4
    assert float(rows[-1][5]) > float(rows[-2][5]) > 1e-3, "the quantized files hold the float model"


def test_a_run_that_is_not_there_is_said(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "examples" / "export_digits.py"), f"{tmp_path}/none@best"]
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 1
    assert "NotFound" in done.stderr


@pytest.fixture
def demo(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "examples")
    return importlib.import_module("demo")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0000001])),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(2, 1)),
        (1, 1.0),
        (1, True),
        ([1], None),
    ],
)
def test_the_demo_sees_one_bit(demo: ModuleType, a: object, b: object) -> None:
    assert demo.same(a, a)
    assert not demo.same(a, b)


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        (["0 0 a x", "0 1 b y"], True),
        (["0 0 a x", "0 1 b y", "0 1 b y"], True),
        (["0 0 a x", "0 1 b z"], False),
        (["0 0 a x", "0 1 c y", "0 1 b y"], False),
        (["0 0 a x"], False),
    ],
)
def test_the_demo_sees_another_order(demo: ModuleType, lines: list[str], good: bool) -> None:
    table = Table("", "", "", "")
    assert demo.compare_logs(table, ["0 0 a x", "0 1 b y"], lines) is good
    assert table.row_count == 2


@pytest.mark.timeout(300)
def test_the_demo_proves_it(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    printed = run(repository / "examples" / "demo.py", "--epochs=3", "--seed=1", f"--page={page}")
    assert str(page) in printed
    assert "val_acc" in page.read_text()
    assert "Every bit is the same." in printed
    assert re.search(r"resuming at epoch 1, batch [1-9]", printed)
    assert "order of the data" in printed
