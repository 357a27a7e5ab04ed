"""The examples are programs: they are run as such."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert re.findall(r"^== (R[\d, R]+\d)", printed, re.MULTILINE) == [
        "R1", "R2", "R5, R28", "R7", "R12", "R21, R23, R25", "R22", "R29",
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


@pytest.mark.timeout(300)
def test_the_demo_proves_it(repository: Path) -> None:
    printed = run(repository / "examples" / "demo.py", "--epochs=3", "--seed=1")
    assert "Every bit is the same." in printed
    assert re.search(r"resuming at epoch 1, batch [1-9]", printed)
    assert "order of the data" in printed
