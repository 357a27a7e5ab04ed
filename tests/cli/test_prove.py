from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast as library

Holdfast = Callable[..., Any]
SCRIPT = Path(__file__).parents[1] / "training" / "proved_script.py"


@pytest.fixture(autouse=True)
def children_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(library.__file__).parents[1]))


def test_prove_says_the_same_and_leaves_the_run_alone(
    holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes, loader workers, and a run of the same name that was there before."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    theirs = tmp_path / "mine"
    theirs.mkdir()
    (theirs / "note").write_text("theirs")
    arguments = ("--kills", "1", "--seed", "5", "--save", "4step", "--keep-folders", SCRIPT, theirs, "--workers", "1")
    code, out, err = holdfast("prove", "--json", *arguments)
    found = json.loads(out)
    assert (code, err, found["verdict"]) == (0, "", "same")
    assert [(run["root"], run["step"], run["differences"]) for run in found["runs"]] == [(str(theirs), 18, [])]
    assert len(found["kills"]) == 1
    assert found["save"] == "4step"
    kept = Path(found["folder"])
    assert kept.parent == tmp_path
    assert sorted(one.name for one in kept.iterdir() if one.is_dir()) == ["killed", "whole"]
    assert [one.name for one in theirs.iterdir()] == ["note"]


def test_prove_of_scripts_that_are_none(holdfast: Holdfast, tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    assert holdfast("prove", file).code == 4
    file.write_text("print('hello')")
    code, _, err = holdfast("prove", file)
    assert (code, err) == (3, f"holdfast: `{file}`: makes no holdfast.Run, so there is nothing to resume\n")
    file.write_text("raise SystemExit('out of luck')")
    code, _, err = holdfast("prove", file, "--json", "--kills")  # what follows the script is the script's
    assert code == 5
    assert err.endswith("out of luck\n")
    assert holdfast("prove", "--kills", "many", file).code == 3
    assert holdfast("prove", "--timeout", "soon", file).code == 3
    assert "--timeout 3ep: a time is wanted, such as 90s" in holdfast("prove", "--timeout", "3ep", file).err


def test_the_report_names_everything() -> None:
    from holdfast.training.proof.comparing import Difference
    from holdfast.training.proof.verdict import Cause, Killed, Proof, RunProof

    differences = [Difference(f"model.{n}", "1 of 2 float32 elements, the first at 0") for n in range(7)]
    proof = Proof(
        script="train.py",
        verdict="differs",
        runs=[RunProof("runs/a", 18, 640, 1234, differences, 6)],
        kills=[Killed("inside a save", "runs/a", 5, 4), Killed("at some time", "runs/a", None, None)],
        causes=[Cause("rng", "the random state is in no checkpoint")],
        audit=[{"name": "ema", "line": "holdfast.Run(..., ema=ema)"}],
        seed=5,
        save="3step 1ep",
        seconds=2.0,
        notes=["python was not compared"],
        folder="/tmp/kept",
    )
    assert str(proof).splitlines() == [
        "train.py: killed and resumed, it ends with other bits",
        "  killed inside a save after item 5 of runs/a; resumed from step 4",
        "  killed at some time; began anew",
        "  runs/a: step 18, 640 values and 1,234 bytes in tensors compared: 7 differ",
        "    from step 6 on",
        *(f"    `model.{n}`: 1 of 2 float32 elements, the first at 0" for n in range(5)),
        "    ... 2 more",
        "  likely cause (rng): the random state is in no checkpoint",
        "  alive and stateful, and not in the run: 1",
        "    `ema`: holdfast.Run(..., ema=ema)",
        "  note: python was not compared",
        "  2 s; the same places again: --seed 5 --save 3step,1ep",
        "  kept in /tmp/kept",
    ]
