"""holdfast lint on the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.lint.rules import RULES

Holdfast = Callable[..., Any]
WRONG = "for epoch in range(3):\n    torch.save(model.state_dict(), 'last.pt')\nbest = model.state_dict().copy()\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(WRONG, encoding="utf-8")
    return "train.py"


def test_findings_have_a_line_what_goes_wrong_and_what_to_type(holdfast: Holdfast, script: str) -> None:
    code, out, err = holdfast("lint", script)
    assert (code, err) == (1, "")
    first, typed, second, _, last = out.splitlines()
    assert first.startswith("train.py:2: HF009 saved-in-place: writes over `'last.pt'` in place")
    assert typed == "    type: holdfast.save(model.state_dict(), 'last.pt')"
    assert second.startswith("train.py:3: HF001 aliased-state: `best` holds the live tensors of `model`")
    assert last == "train.py: 2 findings; `holdfast lint train.py --fix` prints a diff for 2"


def test_nothing_found_is_said_and_exits_with_0(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("print('fine')\n", encoding="utf-8")
    code, out, _ = holdfast("lint", tmp_path / "fine.py")
    assert (code, out) == (0, f"{tmp_path}/fine.py: nothing found; {len(RULES)} rules looked\n")


def test_why_says_the_reason(holdfast: Holdfast, script: str) -> None:
    _, out, _ = holdfast("lint", script, "--why", "--select", "HF001")
    assert "    The optimizer goes on writing into them, so the best is the last, bit for bit.\n" in out


def test_fix_prints_a_diff_and_writes_nothing(holdfast: Holdfast, script: str) -> None:
    code, out, _ = holdfast("lint", script, "--fix")
    assert code == 1
    assert out.startswith("--- a/train.py\n+++ b/train.py\n@@ ")
    assert "+import holdfast\n" in out
    assert "+best = holdfast.snapshot(model)\n" in out
    assert Path(script).read_text(encoding="utf-8") == WRONG
    subprocess.run(["git", "apply", "-"], input=out, text=True, check=True, timeout=60)
    assert holdfast("lint", script)[0] == 0


def test_json_has_all_of_it(holdfast: Holdfast, script: str) -> None:
    code, out, _ = holdfast("lint", script, "--json")
    (file,) = json.loads(out)["files"]
    assert code == 1
    assert [(one["code"], one["line"], one["column"], one["fixable"]) for one in file["findings"]] == [
        ("HF009", 2, 5, True),
        ("HF001", 3, 8, True),
    ]
    assert file["diff"].startswith("--- a/train.py")


def test_rules_are_chosen(holdfast: Holdfast, script: str) -> None:
    assert holdfast("lint", script, "--select", "HF002,HF003")[0] == 0
    assert holdfast("lint", script, "--ignore", "HF009, aliased-state")[0] == 0
    code, _, err = holdfast("lint", script, "--select", "HF999")
    assert (code, err) == (3, f"holdfast: no rule `HF999`: there are HF001 to {RULES[-1].code}\n")


def test_a_folder_is_read_and_one_bad_script_does_not_stop_the_others(holdfast: Holdfast, tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "a.py").write_text(WRONG, encoding="utf-8")
    (folder / "b.py").write_text("print 'old'\n", encoding="utf-8")
    (folder / "notes.txt").write_text("torch.save(model, 'a.pt')", encoding="utf-8")
    os.symlink("/etc/passwd", folder / "c.py")
    code, out, err = holdfast("lint", folder)
    assert code == 2
    assert "a.py: 2 findings" in out
    assert err.count("\n") == 1
    assert f"holdfast: `{folder}/b.py:1`: is no Python" in err
    (tmp_path / "empty").mkdir()
    code, _, err = holdfast("lint", tmp_path / "empty")
    assert code == 4
    assert err.endswith("`: has no .py or .ipynb in it\n")


def test_exit_codes(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("x = 1\nprint 'old'\n", encoding="utf-8")
    code, out, err = holdfast("lint", tmp_path / "old.py")
    assert (code, out) == (2, "")
    assert err.startswith(f"holdfast: `{tmp_path}/old.py:2`: is no Python: Missing parentheses")
    assert holdfast("lint", tmp_path / "gone.py")[0] == 4
    assert holdfast("lint")[0] == 3


def test_what_a_script_says_moves_no_cursor(holdfast: Holdfast, tmp_path: Path) -> None:
    file = tmp_path / "evil\x1b[2J.py"
    file.write_text("best = model['\x1b[31m\u202e'].state_dict()\n", encoding="utf-8")
    _, out, _ = holdfast("lint", file)
    assert "HF001" in out
    assert not {"\x1b", "\u202e"} & set(out)


def test_a_diff_on_a_terminal_is_escaped_too(tmp_path: Path) -> None:
    file = tmp_path / "evil.py"
    file.write_text("x = '\x1b[31m'\nbest = model.state_dict()\n", encoding="utf-8")
    command = [sys.executable, "-m", "holdfast", "lint", str(file), "--fix"]
    parent, child = pty.openpty()
    subprocess.run(command, stdout=child, check=False, timeout=60)
    os.close(child)
    shown = os.read(parent, 10_000)
    os.close(parent)
    assert b"+best = holdfast.snapshot(model)" in shown
    assert b"\x1b[31m" not in shown
