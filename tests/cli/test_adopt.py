"""holdfast adopt: the plan, the table, exit codes; without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast as library
from tests.surgery.old_trainings import train

Holdfast = Callable[..., Any]
BLOCKED = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None      # importing them fails from here on
from holdfast.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three epochs, one of them damaged, and the best one."""
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "old"
    train(old, 4, lambda done, epoch: (f"epoch_{epoch}.pth", done.state(epoch=epoch, val_loss=1 / (epoch + 1))))
    torch.save(torch.load(old / "epoch_2.pth")["model_state_dict"], old / "best_model.pth")
    (old / "epoch_1.pth").write_bytes((old / "epoch_1.pth").read_bytes()[:900])
    return tmp_path


def test_a_plan_and_a_run(holdfast: Holdfast, folder: Path) -> None:
    code, out, err = holdfast("adopt", "old", "runs/a", "--dry-run", "--best", "val_loss:min")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "old would become 3 steps of the run runs/a; nothing was written"
    assert not os.path.exists("runs")
    code, out, _ = holdfast("adopt", "old", "runs/a", "--best", "val_loss:min")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("old became 3 steps of the run runs/a, ")
    assert lines[2].split() == ["file", "step", "epoch", "metrics", "holds", "notes"]
    assert lines[4].split()[:4] == ["epoch_2.pth", "12", "3", "val_loss=0.333333"]
    assert "pin best" in lines[4]
    assert "  best_model.pth: has the same weights as epoch_2.pth: step 12 is pinned as best" in lines
    assert any(line.startswith("  epoch_1.pth: ") and "cut short" in line for line in lines)
    assert any("the optimizer counts 4 steps an epoch" in line for line in lines)
    assert lines[-2:] == [
        "best: val_loss:min",
        "resume: holdfast.Run('runs/a', model=..., optimizer=..., scheduler=...)",
    ]
    assert "pin best" in holdfast("ls", "runs/a").out
    assert holdfast("path", "runs/a@best").out.strip() == "runs/a/step-00000016"
    assert holdfast("path", "runs/a@pin:best").out.strip() == "runs/a/step-00000012"
    assert holdfast("verify", "runs/a").code == 0


def test_json(holdfast: Holdfast, folder: Path) -> None:
    found = json.loads(holdfast("adopt", "old", "runs/a", "--json", "--epoch-is", "next").out)
    assert [(one["file"], one["step"], one["epoch"]) for one in found["steps"]] == [
        ("epoch_0.pth", 4, 0),
        ("epoch_2.pth", 12, 2),
        ("epoch_3.pth", 16, 3),
    ]
    assert [one["file"] for one in found["left_out"]] == ["best_model.pth", "epoch_1.pth"]
    assert found["resume"].startswith("holdfast.Run(")
    assert found["dry_run"] is False


def test_exit_codes(holdfast: Holdfast, folder: Path) -> None:
    assert holdfast("adopt", "missing", "runs/a").code == 4
    os.mkdir("empty")
    code, _, err = holdfast("adopt", "empty", "runs/a")
    assert code == 4
    assert "holds no checkpoint that a training can go on from" in err
    assert holdfast("adopt", "old", "runs/a", "--best", "val_loss").code == 3
    assert holdfast("adopt", "old", "runs/a", "--best", "acc:max").code == 3
    assert holdfast("adopt", "old", "runs/a", "--epoch-is", "last").code == 3
    assert holdfast("adopt", "old", "runs/a", "--steps-per-epoch", "0").code == 3
    assert holdfast("adopt", "old", "old/run").code == 3
    assert holdfast("adopt", "old", "runs/a").code == 0
    code, _, err = holdfast("adopt", "old", "runs/a")
    assert code == 3
    assert err.startswith("holdfast: `runs/a`: is a run already, with 3 checkpoints")


def test_names_move_no_cursor(holdfast: Holdfast, folder: Path) -> None:
    hostile = "epoch_7\x1b[2J\u202e.pth"
    state = torch.load("old/epoch_3.pth", weights_only=True)
    state["epoch"], state["\x1b]0;title\x07acc"], state["\u202ex"] = 7, 0.5, 1
    state["model_state_dict"]["head.weight"] += 1
    torch.save(state, f"old/{hostile}")
    Path("old/\x1b[31mstray").write_bytes(b"x")
    Path(os.fsdecode(b"old/\xff.pth")).write_bytes(b"")
    for more in ([], ["--json"]):
        code, out, err = holdfast("adopt", "old", "runs/b", "--steps-per-epoch", "4", "--dry-run", *more)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "epoch_7\\" in out
    assert holdfast("adopt", "old", "runs/b", "--steps-per-epoch", "4").code == 0
    assert library.load("runs/b@last")["epoch"] == 7


def test_it_needs_no_torch(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(library.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", BLOCKED, "adopt", "old", "runs/a"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "old became 3 steps" in done.stdout


def test_help_has_an_example(holdfast: Holdfast) -> None:
    code, out, _ = holdfast("adopt", "--help")
    assert code == 0
    assert "Example: holdfast adopt " in " ".join(out.split())
