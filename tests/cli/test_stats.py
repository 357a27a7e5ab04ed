from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import holdfast as library
from tests.cli.conftest import Result
from tests.house.test_light_wing import BLOCKED
from tests.runs.hand_made import flip

Holdfast = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {
        "net": {
            "good": torch.tensor([[-1.0, 0.0, 3.0]]),
            "zero": torch.zeros(4),
            "nan\x1b": torch.tensor([torch.nan, 1.0]),
        }
    }
    library.save(tensors, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_table_of_tensors_ends_with_what_is_wrong(holdfast: Holdfast, file: Path) -> None:
    code, out, _ = holdfast("stats", file)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("net.good"))
    assert row.split()[-5:] == ["-1", "3", "0.6667", "1.7", "33.3%"]
    assert out.splitlines()[-2:] == ["net.zero: all zero", r"net.nan\x1b: 1 NaN"]


def test_a_file_without_faults_says_so(holdfast: Holdfast, file: Path) -> None:
    assert holdfast("stats", file, "--keys", "*.good").out.endswith("1 tensor: no NaN, no infinities, none dead\n")


@pytest.mark.parametrize(("fails", "code"), [(["nan"], 1), (["inf"], 0), (["dead"], 1), (["inf", "dead"], 1), ([], 0)])
def test_the_exit_code_follows_what_is_asked_for(holdfast: Holdfast, file: Path, fails: list[str], code: int) -> None:
    options = [option for fail in fails for option in ("--fail-on", fail)]
    assert holdfast("stats", file, *options).code == code
    assert holdfast("stats", file, *options, "--keys", "*good").code == 0


def test_json_has_every_number(holdfast: Holdfast, file: Path) -> None:
    _, out, _ = holdfast("stats", file, "--json", "--fail-on", "nan")
    assert out.isascii()
    said = json.loads(out, parse_constant=pytest.fail)
    assert said["failed"] == ["net.nan\x1b"]
    good = said["tensors"][0]
    assert (good["name"], good["shape"], good["min"], good["zeros"]) == ("net.good", [1, 3], -1.0, 1)
    assert good["histogram"] == {"first": 0, "negative": [1, 0], "positive": [0, 1]}


def test_damage_is_an_error(holdfast: Holdfast, tmp_path: Path) -> None:
    library.save({"w": torch.ones(1000)}, tmp_path / "w.safetensors")
    flip(tmp_path / "w.safetensors", 2000)
    code, _, err = holdfast("stats", tmp_path / "w.safetensors")
    assert code == 2
    assert "`w`" in err


def test_without_torch_it_says_what_to_install(file: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, "stats", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert 'stats needs torch, which is not installed: pip install "holdfast[torch]"' in done.stderr
