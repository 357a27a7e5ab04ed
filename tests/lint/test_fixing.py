"""A diff of --fix applies, parses, takes its finding away, and does what it says."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.lint.linting import lint
from holdfast.lint.rules import RULES
from tests.lint.test_rules import CODES, SETUP, before_and_after
from tests.tutorials.running import Program

Fix = Callable[..., str]
FIXED_ON_THE_PAGE = {"HF001", "HF002", "HF003", "HF004", "HF005", "HF009", "HF011", "HF023", "HF024", "HF026", "HF029"}


@pytest.fixture
def fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fix:
    """fix(text) writes a script, applies its diff with git, and gives the new text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def run(text: str | bytes) -> str:
        file = Path("train.py")
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        linted = lint("train.py")
        if linted.diff:
            diff = linted.diff.encode(linted.encoding)
            subprocess.run(["git", "apply", "-"], input=diff, check=True, timeout=60)
        return file.read_bytes().decode(linted.encoding)

    return run


@pytest.mark.parametrize("code", CODES)
def test_a_diff_takes_its_finding_away(code: str, fix: Fix, found: Callable[..., Any]) -> None:
    before, _ = before_and_after(code)
    after = fix(before)
    ast.parse(after)
    assert (after != before) == (code in FIXED_ON_THE_PAGE)
    if after != before:
        assert code not in {one.rule.code for one in found(after)}


def test_the_page_says_nothing_of_rules_that_are_not_there() -> None:
    assert {rule.code for rule in RULES} >= FIXED_ON_THE_PAGE


def ran(code: str) -> dict[str, Any]:
    program = Program()
    assert program.run(SETUP.partition("with holdfast.Run")[0]).word == "OK"
    outcome = program.run(code)
    assert outcome.word == "OK", outcome
    return vars(program.module)


def test_the_fixed_best_is_the_best(fix: Fix) -> None:
    script = (
        "for epoch in range(3):\n"
        "    model.fc.bias.data.fill_(epoch)\n"
        "    if epoch == 1:\n"
        "        best = {k: v for k, v in model.state_dict().items()}\n"
    )
    assert ran(script)["best"]["fc.bias"].tolist() == [2.0, 2.0]
    assert ran(fix(script))["best"]["fc.bias"].tolist() == [1.0, 1.0]


def test_the_fixed_checkpoint_is_whole_and_readable(fix: Fix) -> None:
    script = (
        "args = argparse.Namespace(lr=0.1)\n"
        "for epoch in range(2):\n"
        "    loss = criterion(model(x), y)\n"
        "    loss.backward()\n"
        "    torch.save({'model': model.state_dict(), 'loss': loss, 'args': args}, 'new/last.pt')\n"
    )
    fixed = fix(script)
    assert fixed.count("import holdfast") == 1
    ran(fixed)
    tree = torch.load("new/last.pt", weights_only=True)
    assert isinstance(tree["loss"], float)
    assert tree["args"] == {"lr": 0.1}


def test_the_fixed_names_keep_their_middle(fix: Fix) -> None:
    script = "state = {k.replace('module.', ''): 1 for k in ('module.a', 'submodule.b')}\nmodel.state_dict()\n"
    assert list(ran(fix(script))["state"]) == ["a", "submodule.b"]


def test_the_fixed_load_tells_what_it_loaded(fix: Fix, capsys: pytest.CaptureFixture[str]) -> None:
    script = 'model.load_state_dict(torch.load("net.pt", map_location="cpu"), strict=False)\n'
    fixed = fix(script)
    assert 'print(holdfast.restore("net.pt", model=model, match=holdfast.Warm()))' in fixed
    program = Program()
    program.run(SETUP)
    assert program.run(fixed).printed.startswith("loaded 2 tensors")


def test_the_fixed_model_predicts_in_eval_mode(fix: Fix) -> None:
    script = 'if True:\n    model.load_state_dict(torch.load("net.pt"))\n    print(model(x).shape)\n'
    assert '    model.load_state_dict(torch.load("net.pt"))\n    model.eval()\n' in fix(script)
    assert ran(fix(script))["model"].training is False


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_end_as_they_did(newline: str, end: str, fix: Fix) -> None:
    script = f"import torch\n# 最佳模型\nfor 轮 in range(3):\n    最佳 = '好'; best = model.state_dict(){end}"
    fixed = fix(script.replace("\n", newline))
    wanted = "import holdfast\n" + script.replace("model.state_dict()", "holdfast.snapshot(model)")
    assert fixed == wanted.replace("\n", newline)


def test_a_script_in_another_encoding_gets_a_diff_in_it(fix: Fix) -> None:
    script = "# -*- coding: gbk -*-\n# 最佳模型\nbest = model.state_dict()\n".encode("gbk")
    assert fix(script) == "# -*- coding: gbk -*-\n# 最佳模型\nimport holdfast\nbest = holdfast.snapshot(model)\n"


def test_a_script_with_a_mark_gets_findings_and_no_diff(fix: Fix) -> None:
    script = b"\xef\xbb\xbfbest = model.state_dict()\n"
    assert fix(script) == "best = model.state_dict()\n"
    assert [one.rule.code for one in lint("train.py").findings] == ["HF001"]


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ("", "import holdfast\n"),
        ('"""Says."""\n', '"""Says."""\nimport holdfast\n'),
        ("from __future__ import annotations\n", "from __future__ import annotations\nimport holdfast\n"),
        (
            "from __future__ import annotations\nimport os\n",
            "from __future__ import annotations\nimport holdfast\nimport os\n",
        ),
        ("import holdfast\n", "import holdfast\n"),
        ("import holdfast as hf\n", "import holdfast\nimport holdfast as hf\n"),
    ],
)
def test_holdfast_is_imported_once_and_where_it_may_be(head: str, wanted: str, fix: Fix) -> None:
    assert fix(f"{head}best = model.state_dict()\n") == f"{wanted}best = holdfast.snapshot(model)\n"
    compile(fix(f"{head}best = model.state_dict()\n"), "train.py", "exec")


def test_fixes_that_overlap_are_made_one_after_the_other(fix: Fix) -> None:
    script = "model = nn.DataParallel(model)\nfor epoch in range(3):\n    torch.save(model.state_dict(), 'last.pt')\n"
    fixed = fix(script)
    assert "holdfast.save(model, 'last.pt')" in fixed
    assert fix(fixed) == fixed


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("torch.save(model, 'a.pt', pickle_protocol=4)", None),
        ("torch.save(model, 'a.pt', None)", None),
        ("torch.save(obj=model, f='a.pt')", "holdfast.save(obj=model, f='a.pt')"),
        ("model.load_state_dict(state, strict=False, assign=True)", None),
        ("model.load_state_dict(state, False)", "print(holdfast.restore(state, model=model, match=holdfast.Warm()))"),
        ("x = torch.load((file))  # cuda", None),
        (
            "x = torch.load(file, weights_only=True)  # cuda",
            'x = torch.load(file, map_location="cpu", weights_only=True)  # cuda',
        ),
        ("x = torch.load(\n    file,\n)  # cuda", 'x = torch.load(\n    file, map_location="cpu",\n)  # cuda'),
    ],
)
def test_what_a_diff_can_not_say_it_does_not_say(line: str, wanted: str | None, fix: Fix) -> None:
    fixed = fix(f"import holdfast\n{line}\nx = y.replace('module.', '')  # state_dict\n")
    assert fixed.startswith(f"import holdfast\n{line if wanted is None else wanted}\n")
    assert "removeprefix" in fixed  # what is beside it is fixed all the same
