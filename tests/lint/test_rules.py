"""Each rule finds its mistake and lets the right line pass: docs/lint.md has both, and the answers on it run."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import holdfast
from holdfast.lint.rules import RULES
from tests.docs.pages import ROOT, blocks, commands
from tests.docs.test_code_blocks import as_shown

PAGE = (ROOT / "docs/lint.md").read_text(encoding="utf-8")
SETUP = """
import argparse
import glob
import os

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x)


def validate(model):
    return 0.5


def train(model):
    pass


best_acc = 0.0
x, y = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
dataset = TensorDataset(x, y)
model, criterion = Net(), nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
for name in ("last.pt", "checkpoint.pt"):
    torch.save({"epoch": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, name)
torch.save(model.state_dict(), "net.pt")
torch.save(model, "whole.pt")
with holdfast.Run("runs/a", model=model) as run:
    run.save(step=1)
"""
"""What the page's reader has already, and what the answers run with."""

Found = Callable[..., Any]


def section(code: str) -> str:
    """What the page says about a rule."""
    match = re.search(rf"^### {code} .*?(?=^### |^## |^<a id|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/lint.md has no {code}"
    return match[0]


def before_and_after(code: str) -> tuple[str, str]:
    """Both sides of a rule's diff."""
    match = re.search(r"^```diff\n(.*?)^```", section(code), re.MULTILINE | re.DOTALL)
    assert match, f"{code} has no diff on the page"
    lines = [(line[:1], line[1:]) for line in match[1].splitlines()]
    return tuple("".join(f"{text}\n" for mark, text in lines if mark != other) for other in "+-")  # type: ignore[return-value]


CODES = [rule.code for rule in RULES]


def test_rules_have_codes_in_a_row_and_names_of_their_own() -> None:
    assert [f"HF{number:03}" for number in range(1, len(RULES) + 1)] == CODES
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert re.findall(r"^### (HF\d+)", PAGE, re.MULTILINE) == CODES


@pytest.mark.parametrize("rule", RULES, ids=CODES)
def test_the_page_says_why(rule: Any) -> None:
    told = " ".join(section(rule.code).split())
    assert told.startswith(f"### {rule.code} {rule.name} {' '.join(rule.why.split())} ```diff")
    assert f'<a id="{rule.code.lower()}"></a>' in PAGE


@pytest.mark.parametrize("code", CODES)
def test_the_mistake_is_found_and_the_answer_is_clean(code: str, found: Found) -> None:
    before, after = before_and_after(code)
    assert {one.rule.code for one in found(before)} == {code}
    assert found(after) == ()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> Callable[[str], dict[str, Any]]:
    """program(code) runs code after the setup, as ``__main__`` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def run(code: str) -> dict[str, Any]:
        module = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about quantizing and TorchScript
            exec(compile(SETUP + code, "page.py", "exec"), vars(module))
        return vars(module)

    return run


@pytest.mark.parametrize("code", CODES)
def test_the_answer_runs(code: str, program: Callable[[str], dict[str, Any]]) -> None:
    program(before_and_after(code)[1])


def test_workers_really_draw_the_same_and_of_torch_they_do_not() -> None:
    """HF020: the figure behind the rule."""
    code = before_and_after("HF020")
    for side, same in zip(code, (True, False), strict=True):
        names: dict[str, Any] = {}
        exec(SETUP.split("class Net")[0] + side, names)
        names["loader"].multiprocessing_context = "fork"
        first, second, *_ = [float(one) for one in names["loader"]]
        assert (first == second) is same


def test_the_page_shows_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in blocks("docs/lint.md"):
        if block.kind == "python":
            exec(block.text, {})
        for command in commands(block) if block.kind == "console" else ():
            assert f"{' '.join(command.arguments)}  # exit code 1\n" in block.text
            environment = {"PYTHONPATH": str(Path(holdfast.__file__).parents[1]), "NO_COLOR": "1"}
            line = [sys.executable, "-m", *command.arguments]
            done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (1, "")
            assert as_shown(command.shown, done.stdout), done.stdout
            ran += 1
    assert ran == 2


def test_the_rules_are_about_what_holdfast_does() -> None:
    """Every name of holdfast that the page says to type is there."""
    for name in set(re.findall(r"holdfast\.([A-Za-z]\w*)", PAGE)):
        assert hasattr(holdfast, name), name
