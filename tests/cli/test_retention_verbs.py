"""pin, unpin, prune and explain, over runs made by hand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.runs.catalog import scan
from holdfast.runs.layout import step_name
from holdfast.runs.moves import quarantine
from holdfast.runs.run_file import RunFile, read_pins, read_run_file, write_pin, write_run_file
from tests.runs.hand_made import NOON, commit, flip

Holdfast = Callable[..., Any]


def steps(root: Path) -> list[int]:
    return [one.step for one in scan(root).checkpoints]


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# ---- pin, unpin ------------------------------------------------------------------------------------------------------


def test_pin_names_a_checkpoint_and_moves(holdfast: Holdfast, run: Path) -> None:
    assert holdfast("pin", f"{run}@best", "talk").out == f"{run}: step 20 is pinned as talk\n"
    assert holdfast("path", f"{run}@pin:talk").out == f"{run / step_name(20)}\n"
    assert holdfast("pin", run, "talk").out == f"{run}: step 30 is pinned as talk (it was step 20)\n"
    found = json.loads(holdfast("pin", run / step_name(10), "talk", "--json").out)
    assert found == {"run": str(run), "name": "talk", "step": 10, "before": 30}
    assert read_pins(run) == {"paper": 10, "talk": 10}


def test_pin_inside_the_runs_own_folder(holdfast: Holdfast, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert holdfast("pin", step_name(20), "here").code == 0
    assert holdfast("pin", f"{step_name(30)}{os.sep}", "there").code == 0
    assert read_pins(run) == {"here": 20, "paper": 10, "there": 30}


def test_pin_works_while_a_training_writes(holdfast: Holdfast, run: Path, live: object) -> None:
    assert holdfast("pin", f"{run}@best", "talk").code == 0


def test_pin_refuses_what_it_can_not_keep(holdfast: Holdfast, run: Path) -> None:
    code, _, err = holdfast("pin", run, "../up")
    assert code == 3
    assert "can't be the name of a pin" in err
    moved = quarantine(run, 10, "for the test")
    (run / step_name(20)).rename(run / "copy")
    for folder in (moved, run / "copy"):
        code, _, err = holdfast("pin", folder, "lost")
        assert code == 3
        assert f"`{folder}`: is no step of a run" in err
    assert "lost" not in read_pins(run)


def test_unpin(holdfast: Holdfast, run: Path) -> None:
    write_pin(run, "talk", 20)
    assert holdfast("unpin", run, "paper").out == f"{run}: paper is no pin any more; pins: talk (step 20)\n"
    assert json.loads(holdfast("unpin", run, "talk", "--json").out)["pins"] == {}
    code, _, err = holdfast("unpin", run, "talk")
    assert code == 4
    assert "no pin talk; there is: no pins" in err
    assert holdfast("unpin", run / "gone", "talk").code == 4


# ---- prune -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_become_of_each_and_deletes_nothing(
    holdfast: Holdfast, run: Path, live: object
) -> None:
    commit(run, 15, {"epoch": 1}, metrics={"val_loss": 9.0})
    code, out, _ = holdfast("prune", run, "--dry-run")
    assert code == 0
    assert [[row[0], row[3]] for row in lines(out)[1:5]] == [
        ["10", "kept"],
        ["15", "would"],
        ["20", "kept"],
        ["30", "kept"],
    ]
    assert "pinned as paper" in out
    assert "would be deleted  no rule keeps it" in out
    assert "1 of 4 checkpoints would be deleted, 102 B; 15.8 kB would stay\n" in out
    assert out.endswith("the newest is verified before the first is deleted\n")
    assert steps(run) == [10, 15, 20, 30]


def test_prune_by_the_runs_own_rules(holdfast: Holdfast, run: Path) -> None:
    holdfast("unpin", run, "paper")
    size = scan(run).checkpoints[0].size
    found = json.loads(holdfast("prune", run, "--json").out)
    assert found["deleted"] == [10]
    assert found["bytes"] == size > 0
    assert [one["keep"] for one in found["decisions"]] == [False, True, True]
    assert found["decisions"][1]["reasons"] == ["best: 1 of 1 by val_loss:min (0.25)"]
    assert steps(run) == [20, 30]
    assert "0 of 2 checkpoints deleted, 0 B" in holdfast("prune", run).out
    left = read_run_file(run)
    assert left is not None
    assert [line.step for line in left.pruned] == [10], "its metrics stay"


def test_prune_by_other_rules_still_keeps_the_best_and_the_pinned(holdfast: Holdfast, run: Path) -> None:
    commit(run, 40, {"epoch": 4}, metrics={"val_loss": 7.0})
    out = holdfast("prune", run, "--keep", "last:1").out
    assert "1 of 4 checkpoints deleted" in out
    assert steps(run) == [10, 20, 40]


def test_prune_clears_what_a_killed_writer_left(holdfast: Holdfast, run: Path) -> None:
    (run / ".step-00000040.partial").mkdir()
    assert holdfast("prune", run, "--dry-run").code == 0
    assert scan(run).partial == (40,)
    assert holdfast("prune", run).code == 0
    assert scan(run).partial == ()


def test_a_live_training_is_never_pruned_under_its_feet(
    holdfast: Holdfast, run: Path, live: subprocess.Popen[str]
) -> None:
    code, out, err = holdfast("prune", run, "--keep", "last:1")
    assert (code, out) == (5, "")
    assert f"`{run}`: pid {live.pid} on " in err
    assert "writes this run" in err
    assert steps(run) == [10, 20, 30]


def test_prune_refuses_an_empty_policy(holdfast: Holdfast, run: Path) -> None:
    code, _, err = holdfast("prune", run, "--keep", " ")
    assert code == 3
    assert "a retention policy without rules would delete everything" in err
    write_run_file(run, RunFile("abc123", NOON))
    code, _, err = holdfast("prune", run)
    assert code == 3
    assert "the run has no retention rules, so all its checkpoints stay; give some, such as --keep" in err
    assert holdfast("prune", run, "--keep", "best:1").code == 3
    assert holdfast("prune", run, "--keep", "newest").code == 3
    assert steps(run) == [10, 20, 30]


def test_prune_refuses_when_the_one_that_stays_is_damaged(holdfast: Holdfast, run: Path) -> None:
    holdfast("unpin", run, "paper")
    flip(run / step_name(30) / "model.safetensors", 700)
    code, _, err = holdfast("prune", run, "--keep", "last:1")
    assert code == 2
    assert f"`{run}`: step 30, the newest, is damaged, so nothing was deleted: " in err
    assert "holdfast verify says which steps are good" in err
    assert steps(run) == [10, 20, 30]


def test_prune_never_deletes_the_last_that_can_be_read(holdfast: Holdfast, run: Path) -> None:
    holdfast("unpin", run, "paper")
    write_run_file(run, RunFile("abc123", NOON))
    for step in (20, 30):
        flip(run / step_name(step) / "manifest.json", 40)
    code, out, _ = holdfast("prune", run, "--keep", "pinned")
    assert code == 0
    assert "the newest: always kept" in out
    assert out.count("can't be read, so it is not judged") == 2
    assert steps(run) == [10, 20, 30]


def test_prune_stops_when_it_does_not_know_what_is_protected(holdfast: Holdfast, run: Path) -> None:
    (run / "pins" / "paper").write_text("the good one")
    code, _, err = holdfast("prune", run)
    assert code == 2
    assert "says 'the good one', not a step such as step-00001000" in err
    (run / "pins" / "paper").unlink()
    write_run_file(run, RunFile("abc123", NOON, best="val_loss:min", keep="[KeepLast(n=2)]"))
    code, _, err = holdfast("prune", run)
    assert code == 2
    assert f"`{run / 'run.json'}`: '[KeepLast(n=2)]' is no retention rule" in err
    assert steps(run) == [10, 20, 30]


def test_prune_makes_no_folder_of_a_name_that_was_mistyped(holdfast: Holdfast, tmp_path: Path) -> None:
    code, _, err = holdfast("prune", tmp_path / "gone", "--keep", "last:1")
    assert code == 4
    assert "no such folder" in err
    assert not (tmp_path / "gone").exists()
    code, _, err = holdfast("prune", tmp_path, "--keep", "last:1")
    assert code == 4
    assert "is no run" in err
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_said_and_kept_to(holdfast: Holdfast, run: Path) -> None:
    holdfast("unpin", run, "paper")
    for step in (12, 14, 16):
        commit(run, step, {"epoch": 1})
    write_run_file(run, RunFile("abc123", NOON, best="val_loss:min", keep="last:1 size:15kB"))
    assert "6 checkpoints, 16.1 kB of 15 kB\n" in holdfast("ls", run).out
    found = json.loads(holdfast("prune", run, "--dry-run", "--json").out)
    assert (found["keep"], found["budget"]) == ("last:1 size:15kB best:1:val_loss:min", 15_000)
    assert sum(one["size"] for one in found["decisions"] if one["keep"]) == found["left"] <= 15_000
    assert sum(one["size"] for one in found["decisions"] if not one["keep"]) == found["bytes"]
    out = holdfast("prune", run).out
    assert " of 15 kB stay\n" in out
    assert "of 15 kB with all that must stay or is newer" in out
    assert steps(run) == [12, 14, 16, 20, 30]
    found = json.loads(holdfast("explain", run, "--json").out)
    assert (found["size"], found["budget"]) == (sum(one["size"] for one in found["checkpoints"]), 15_000)
    assert "no rule keeps it: with it" in holdfast("prune", run, "--keep", "size:1kB", "--dry-run").out
    assert "size: what must stay has" in holdfast("prune", run, "--keep", "size:1kB", "--dry-run").out
    assert holdfast("prune", run, "--keep", "size:50").code == 3


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_explain_says_which_resumes_which_is_best_and_why_each_stays(holdfast: Holdfast, run: Path) -> None:
    holdfast("unpin", run, "paper")
    code, out, _ = holdfast("explain", run)
    assert code == 0
    assert out.splitlines()[:4] == [
        f"{run}: a training would resume from step 30",
        "  step 30 is the newest of 3 checkpoints",
        "best by val_loss:min: step 20",
        "retention: last:1 best:1:val_loss:min",
    ]
    assert out.splitlines()[4] == "size: 3 checkpoints, 15.8 kB"
    assert "  10  goes with the next prune  no rule keeps it\n" in out
    assert "  20  kept                      best: 1 of 1 by val_loss:min (0.25)\n" in out


def test_each_best_is_marked(holdfast: Holdfast, run: Path) -> None:
    holdfast("unpin", run, "paper")
    commit(run, 15, {"epoch": 1}, metrics={"val_loss": 0.3, "acc": 0.9})
    write_run_file(run, RunFile("abc123", NOON, best="val_loss:min acc:max f1:max", keep="last:1"))
    out = holdfast("explain", run).out
    assert "best by val_loss:min: step 20\nbest by acc:max: step 15\nbest by f1:max: no checkpoint has a" in out
    assert "retention: last:1 best:1:val_loss:min best:1:acc:max best:1:f1:max\n" in out
    found = json.loads(holdfast("explain", run, "--json").out)
    assert found["best"] == [
        {"rule": "val_loss:min", "step": 20},
        {"rule": "acc:max", "step": 15},
        {"rule": "f1:max", "step": None},
    ]
    assert [one["best"] for one in found["checkpoints"]] == [[], ["acc:max"], ["val_loss:min"], []]
    assert "  best by acc:max       best: 1 of 1 by acc:max (0.9)\n" in holdfast("ls", run).out
    assert holdfast("path", f"{run}@best:acc").out == f"{run / step_name(15)}\n"
    holdfast("prune", run)
    assert steps(run) == [15, 20, 30]


def test_explain_says_what_is_damaged_partial_quarantined_and_superseded(holdfast: Holdfast, run: Path) -> None:
    flip(run / step_name(20) / "manifest.json", 40)
    (run / step_name(30) / "model.safetensors").chmod(0o644)
    with open(run / step_name(30) / "model.safetensors", "ab") as file:
        file.write(b"more")
    (run / ".step-00000040.partial").mkdir()
    commit(run, 5, {"epoch": 0})
    quarantine(run, 5, "bits \x1b[2J flipped")
    (run / "quarantine" / step_name(6)).mkdir()
    (run / "superseded" / step_name(50)).mkdir(parents=True)
    code, out, _ = holdfast("explain", run)
    assert code == 0
    assert out.startswith(f"{run}: a training would resume from step 10\n")
    assert "step 30 is passed over: " in out
    assert "the manifest says" in out
    assert "step 20 is passed over: " in out
    assert "quarantined  step-00000005  bits \\x1b[2J flipped\n" in out
    assert "quarantined  step-00000006  has no reason.json that can be read\n" in out
    assert (
        "superseded   step-00000050  the run went back to an earlier step, and this is the future that it left\n" in out
    )
    assert "partial      step 40        its save or its deletion did not finish" in out
    found = json.loads(holdfast("explain", run, "--json").out)
    assert found["resume"]["step"] == 10
    assert [one["kind"] for one in found["set_aside"]] == ["partial", "quarantined", "quarantined", "superseded"]
    assert found["checkpoints"][2]["standing"] == "kept"
    assert "can't be read" in found["checkpoints"][2]["reasons"][0]


def test_explain_a_run_that_can_not_go_on(holdfast: Holdfast, run: Path) -> None:
    for step in (10, 20, 30):
        quarantine(run, step, "worn out")
    out = holdfast("explain", run).out
    assert out.startswith(f"{run}: a training would stop\n  no checkpoint can be read: a training stops here")
    assert "step-00000010 is in quarantine/" in out
    assert "best by val_loss:min: no checkpoint has a number for it" in out


def test_explain_without_rules_or_checkpoints(holdfast: Holdfast, run: Path, tmp_path: Path) -> None:
    write_run_file(run, RunFile("abc123", NOON))
    out = holdfast("explain", run).out
    assert "retention: no rules, all are kept" in out
    assert "the run has no retention rules: all are kept; pinned as paper" in out
    write_run_file(run, RunFile("abc123", NOON, best="val_loss:min"))
    assert "the run has no retention rules: all are kept; best by val_loss:min" in holdfast("explain", run).out
    (run / "run.json").write_text("{}")
    assert "run.json`: is damaged" in holdfast("explain", run).out
    (tmp_path / "new").mkdir()
    write_run_file(tmp_path / "new", RunFile("abc124", NOON))
    assert holdfast("explain", tmp_path / "new").out.startswith(f"{tmp_path / 'new'}: a training would begin anew\n")
    assert holdfast("explain", tmp_path / "gone").code == 4


# ---- a run that a training wrote -------------------------------------------------------------------------------------


def test_rules_that_a_program_gave_as_objects_are_read_again(holdfast: Holdfast, tmp_path: Path) -> None:
    from holdfast import KeepEvery, KeepLast, Run

    with Run(tmp_path / "run", best="loss:min", keep=[KeepLast(1), KeepEvery(steps=10)]) as own:
        for step in range(1, 4):
            own.save(step=step, metrics={"loss": float(step)})
    assert steps(tmp_path / "run") == [1, 3]
    assert "retention: last:1 every:10step best:1:loss:min\n" in holdfast("explain", tmp_path / "run").out
    assert "0 of 2 checkpoints deleted" in holdfast("prune", tmp_path / "run").out


def test_a_trainings_own_checkpoints_verify_and_are_pruned(holdfast: Holdfast, tmp_path: Path) -> None:
    """Its random state holds numpy arrays, which checkpoints made by hand do not."""
    from holdfast import Run

    with Run(tmp_path / "run", best="loss:min") as own:
        for step in range(1, 4):
            own.save(step=step, metrics={"loss": float(step)})
    assert holdfast("verify", tmp_path / "run").code == 0
    assert "1 of 3 checkpoints deleted" in holdfast("prune", tmp_path / "run", "--keep", "last:1").out
    assert steps(tmp_path / "run") == [1, 3]
