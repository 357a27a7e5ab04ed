"""Whole scripts: seeded ones, where every mistake and nothing else is found, and right ones, where nothing is."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import UnknownFormat
from holdfast.lint.linting import lint
from holdfast.lint.rules import RULES
from tests.tutorials.blocks import Block, blocks

HERE = Path(__file__).parent
SEEDED = sorted((HERE / "scripts").glob("*.py"))
RIGHT = sorted((HERE / "idioms").glob("*.py"))
OWN = sorted((HERE.parents[1] / "examples").glob("*.py"))
CONTEXT = """
import torch
from torch import nn
class Net(nn.Module):
    pass
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
"""
"""What a tutorial has said by the time it comes to a block."""


def name(file: Path) -> str:
    return file.stem


@pytest.mark.parametrize("script", SEEDED, ids=name)
def test_every_seeded_mistake_is_found_on_its_line_and_nothing_else(script: Path) -> None:
    wanted = Counter(
        (number, code)
        for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1)
        for code in re.findall(r"HF\d+", line.partition("# finds")[2])
    )
    assert Counter((one.line, one.rule.code) for one in lint(str(script)).findings) == wanted
    assert wanted


def test_the_scripts_have_each_mistake_but_those_of_the_tutorials() -> None:
    seeded = {one.rule.code for script in SEEDED for one in lint(str(script)).findings}
    told = {code for block in blocks() for code in block.lint}
    assert seeded | told == {rule.code for rule in RULES}
    assert {rule.code for rule in RULES} - seeded == {"HF028"}  # only a tutorial writes both lines


@pytest.mark.parametrize("script", [*RIGHT, *OWN], ids=name)
def test_nothing_is_found_in_a_right_script(script: Path) -> None:
    assert [(one.place, one.rule.code, one.what) for one in lint(str(script)).findings] == []


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.key)
def test_blocks_of_tutorials(block: Block, tmp_path: Path) -> None:
    """The first corpus: a block's findings stand in its heading; what we say to type has none."""

    def codes(part: str, *before: str) -> set[str]:
        given = CONTEXT + "".join(block.part(name) for name in before)
        file = tmp_path / "block.py"
        file.write_text(given + block.part(part), encoding="utf-8")
        return {one.rule.code for one in lint(str(file)).findings if one.line > given.count("\n")}

    if block.result == "SYNTAX":
        with pytest.raises(UnknownFormat, match=r"block\.py:\d+`: is no Python"):
            codes("typed", "given")
    else:
        assert codes("typed", "given") == set(block.lint)
    assert codes("type", "given", "also given") == set()


def test_a_notebook_is_read_cell_by_cell(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# torch.save(model, 'a.pt')\n"]},
        {
            "cell_type": "code",
            "source": ["%matplotlib inline\n", "!pip install torch\n", "import torch\n", "torch.save?"],
        },
        {"cell_type": "code", "source": "%%bash\nls *.pt | head"},
        {"cell_type": "code", "source": "for epoch in range(3):\n    torch.save(model, 'a.pt')"},
    ]
    file = tmp_path / "notes.ipynb"
    file.write_text(json.dumps({"cells": cells, "nbformat": 4}), encoding="utf-8")
    linted = lint(str(file))
    assert [(one.place, one.rule.code) for one in linted.findings] == [
        (f"{file}:cell 4:2", "HF009"),
        (f"{file}:cell 4:2", "HF002"),
    ]
    assert linted.diff == ""


@pytest.mark.parametrize(
    ("comment", "left"),
    [
        ("", {"HF002", "HF009"}),
        ("  # holdfast: ignore[HF002]", {"HF009"}),
        ("  # why not # holdfast: ignore[saved-in-place, HF002]", set()),
        ("  # holdfast: ignore", set()),
        ("  # holdfast: ignore[HF001]", {"HF002", "HF009"}),
        ('; print("# holdfast: ignore")', {"HF002", "HF009"}),
    ],
)
def test_a_comment_says_that_a_line_is_meant(comment: str, left: set[str], found: Callable[..., Any]) -> None:
    script = f"for epoch in range(3):\n    torch.save(\n        model,\n        'a.pt',\n    ){comment}\n"
    assert {one.rule.code for one in found(script)} == left


def test_rules_are_selected_and_ignored_by_code_or_name(found: Callable[..., Any]) -> None:
    script = "for epoch in range(3):\n    torch.save(model, 'a.pt')\n"
    assert [one.rule.code for one in found(script, select=["HF009"])] == ["HF009"]
    assert [one.rule.code for one in found(script, select=["whole-module-saved"])] == ["HF002"]
    assert [one.rule.code for one in found(script, ignore=["saved-in-place"])] == ["HF002"]


@pytest.mark.parametrize(
    "line",
    [
        "best = model.state_dict()",
        "best = model.state_dict().copy()",
        "best = dict(model.state_dict())",
        "best = copy.copy(model.state_dict())",
        "best = collections.OrderedDict(model.state_dict())",
        "best = {**model.state_dict()}",
        "best = {k: v for k, v in model.state_dict().items()}",
        "best = {k: v.detach() for k, v in model.state_dict().items()}",
        "best, best_acc = model.state_dict(), acc",
        "self.best_state = self.model.state_dict()",
        "for e in range(3):\n    best_model = model",
        "for e in range(3):\n    states.append(model.state_dict())",
    ],
)
def test_every_way_to_alias_is_found(line: str, found: Callable[..., Any]) -> None:
    (one,) = found(line)
    assert one.rule.code == "HF001"
    assert "holdfast.snapshot(" in one.instead


@pytest.mark.parametrize(
    "line", ["x = x.to(y)", "x = x.float()", "x = y.eval()\ny = x.train()", "x.module = x.module.to(z)"]
)
def test_a_name_that_is_made_of_itself_is_followed_to_an_end(line: str, found: Callable[..., Any]) -> None:
    assert found(f"def f():\n    pass\n{line}\nx.load_state_dict(torch.load(f))\ntorch.save(x, y)\n") == ()
