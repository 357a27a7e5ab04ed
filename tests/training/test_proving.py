"""The proof that a script resumes: sound ones pass, each flaw is found and named."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.errors import ArgumentError, MachineError, MissingExtra, NotFound
from holdfast.training.proof.comparing import Difference, compare_checkpoints
from holdfast.training.proof.proving import (
    Options,
    Trace,
    draw_kills,
    first_other_item,
    not_deterministic,
    prove,
    read_trace,
    unseeded,
)
from holdfast.training.proof.proving_process import digest
from holdfast.training.proof.verdict import Facts, likely_causes
from tests.runs.hand_made import commit, small_tree

HERE = Path(__file__).parent
SRC = Path(holdfast.__file__).parents[1]


def proofs(root: Path, *flaws: str) -> dict[str, dict[str, Any]]:
    """Each flaw's proof, in processes that are forked from one that has loaded torch."""
    command = [sys.executable, HERE / "forked_proofs.py", HERE / "proved_script.py", root, *flaws]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    if os.path.isdir("/dev/shm"):  # where waiting for the disk costs nothing; other tests are about that
        environment["TMPDIR"] = "/dev/shm"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any(one["left"] for one in found), "a proof touched the run of the script"
    return {one["flaw"]: one for one in found}


def test_a_sound_script_passes_and_flaws_are_named(tmp_path: Path) -> None:
    found = proofs(tmp_path, "two", "rng", "sched", "ema", "counter")
    assert found["two"]["verdict"] == "same", found["two"]
    assert [(run["root"], run["step"]) for run in found["two"]["runs"]] == [
        (str(tmp_path / "0" / "a"), 18),
        (str(tmp_path / "0" / "b"), 18),
    ]
    assert all(run["leaves"] > 600 and run["bytes"] > 5000 for run in found["two"]["runs"])
    assert len(found["two"]["kills"]) == 2
    assert found["two"]["kills"][-1]["resumed"] is not None
    assert (found["two"]["causes"], found["two"]["audit"]) == ([], [])
    first = {
        flaw: [cause["kind"] for cause in found[flaw]["causes"]][:1] for flaw in ("rng", "sched", "ema", "counter")
    }
    assert first == {"rng": ["rng"], "sched": ["scheduler"], "ema": ["object"], "counter": ["object"]}
    assert "`parts.sched` is not in the run" in found["sched"]["causes"][0]["text"]
    assert [one["path"] for one in found["ema"]["runs"][0]["differences"]] == ["metrics.loss"]
    assert found["ema"]["runs"][0]["first_step"] >= 6
    assert [one["name"] for one in found["ema"]["audit"]] == ["parts.ema"]
    assert found["counter"]["runs"][0]["differences"][0]["path"] == "position.step"
    assert "counts in counter" in found["counter"]["causes"][0]["text"]


def test_scripts_that_can_not_be_judged_and_data_in_another_order(tmp_path: Path) -> None:
    found = proofs(tmp_path, "order", "clock", "restart", "nothing", "anew", "never")
    assert found["order"]["verdict"] == "differs"
    assert found["order"]["causes"][0]["kind"] == "loader"
    assert "`parts.loader.sampler.draws[0]` is not in the run" in found["order"]["causes"][0]["text"]
    assert found["clock"]["verdict"] == "not deterministic"
    assert "torch.manual_seed(0)" in found["clock"]["causes"][0]["text"]
    assert found["restart"]["verdict"] == "fails when resumed"
    assert found["restart"]["output"][-1] == "RuntimeError: this script can't go on"
    assert "started again failed after it resumed from step" in found["restart"]["causes"][0]["text"]
    assert "nothing was committed before it was killed" in found["anew"]["message"]
    assert found["nothing"]["error"] == found["never"]["error"] == "ArgumentError"
    assert "commits nothing to compare" in found["nothing"]["message"]
    assert "is over before it could be killed; let it train longer" in found["never"]["message"]


def script(folder: Path, text: str) -> str:
    file = folder / "script.py"
    file.write_text(text)
    return str(file)


def refused(file: str, **options: Any) -> str:
    with pytest.raises((ArgumentError, MachineError, NotFound)) as caught:
        prove(file, [], Options(**options), lambda _: None)
    return str(caught.value)


def test_scripts_that_fail_or_make_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert "no such script" in refused(str(tmp_path / "gone.py"))
    assert "makes no holdfast.Run" in refused(script(tmp_path, "print('hello')"))
    said = refused(script(tmp_path, "print('before')\nraise ValueError('wrong')"))
    assert "fails by itself, with exit code 1; its last lines:\nbefore\n" in said
    assert said.endswith("ValueError: wrong")
    assert "the time is up (0.3 s), in process 1" in refused(
        script(tmp_path, "import time\ntime.sleep(60)"), timeout=0.3
    )
    assert "--kills: at least 1" in refused(script(tmp_path, ""), kills=0)
    assert "a number above 0 and a unit are wanted" in refused(script(tmp_path, ""), save="often")
    assert [one.name for one in tmp_path.iterdir()] == ["script.py"]


def test_the_script_runs_as_python_would_run_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'")
    text = "import beside, os, sys\nprint(__name__, beside.WORD, sys.argv[1:], os.path.isabs(__file__))\nsys.exit(9)"
    assert "exit code 9; its last lines:\n__main__ found [] True" in refused(script(tmp_path, text))


# -- decisions -------------------------------------------------------------------------------------------------------


def test_kills_fall_in_each_part_of_the_training() -> None:
    trace = Trace(calls=40, commits=4, seconds=6.0)
    for seed in range(50):
        kills = draw_kills({0: 10, 1: 20}, trace, 3, random.Random(seed))
        places = [kill.step + (10 if kill.run else 0) for kill in kills]
        assert [place // 10 for place in places] == [0, 1, 2]
        assert places[0] >= 5
        assert {kill.where for kill in kills} == {"inside an item", "inside a save", "between items"}
        assert all(1 <= kill.calls <= 10 for kill in kills)
    assert len(draw_kills({0: 2}, trace, 5, random.Random(1))) == 2
    own = draw_kills({}, trace, 3, random.Random(1))
    assert [kill.where for kill in own] == ["inside a save", "at some time", "inside a save"]
    assert draw_kills({0: 9}, trace, 3, random.Random(4)) == draw_kills({0: 9}, trace, 3, random.Random(4))


def test_a_loop_of_its_own_is_first_killed_when_something_is_committed() -> None:
    trace = Trace(calls=100, commits=10, seconds=6.0)
    firsts = {draw_kills({}, trace, 3, random.Random(seed))[0].calls for seed in range(200)}
    assert min(firsts) == 20
    assert max(firsts) == 33
    assert draw_kills({}, Trace(calls=5, commits=1), 3, random.Random(1))[0].calls == 1


def test_a_torn_trace_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    whole = b'{"run":0,"root":"runs/a","generators":{"python":"1"}}\n{"item":0,"step":0,"digest":"d"}\n'
    file.write_bytes(whole + b'{"item":0,"st')
    trace = read_trace(str(file))
    assert (trace.roots, trace.items, trace.killed) == ({0: "runs/a"}, [(0, 0, "d")], False)


def test_the_first_other_item_and_generators_without_a_seed() -> None:
    whole = Trace(
        roots={0: "a"}, items=[(0, 0, "x"), (0, 1, "y")], generators={"python": "1", "numpy": "2", "torch": "3"}
    )
    other = Trace(items=[(0, 1, "z"), (0, 5, "w")], generators={"python": "9", "numpy": "2", "torch": "3"})
    assert first_other_item(whole, [whole, other]) == "item 1 of a"
    assert first_other_item(whole, [whole]) is None
    assert unseeded([whole, other]) == ["python"]
    assert unseeded([whole, Trace(killed=True), other]) == ["python"], "killed before its run was made, it knows none"
    assert unseeded([whole, Trace(killed=True), whole]) == []
    assert "random.seed(0)" in not_deterministic(True, ["python"]).text
    assert "use_deterministic_algorithms" in not_deterministic(True, []).text
    assert "the clock" in not_deterministic(False, []).text


def facts(*paths: str, **known: Any) -> Facts:
    wanted: dict[str, Any] = {"keeps_rng": True, "kinds": {"sched": "scheduler"}, "item": None}
    found = {"differences": [Difference(path, "") for path in paths], "findings": [], "notes": []}
    return Facts(**{**wanted, **found, **known})


def finding(kind: str) -> dict[str, str]:
    return {"kind": kind, "name": "it", "reason": "counts", "line": "Run(it=it)"}


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        (facts("model.w", keeps_rng=False, item="item 3 of a"), "rng", "rng=False"),
        (facts("model.w", item="item 3 of a"), "loader", "from item 3 of a on: the dataset, a sampler"),
        (facts("model.w", item="item 3 of a", notes=["workers draw"]), "loader", "workers draw"),
        (facts("model.w", item="item 3 of a", findings=[finding("generator")]), "loader", "`it` is not in the run"),
        (facts("opt.param_groups.0.lr"), "scheduler", "construct the scheduler before the run resumes"),
        (facts("sched.last_epoch"), "scheduler", "`sched.last_epoch` differs"),
        (facts("model.w", findings=[finding("scheduler")]), "scheduler", "`it` is not in the run"),
        (facts("metrics.loss", findings=[finding("scaler")]), "object", "Run(it=it)"),
        (facts("rng.torch"), "rng", "only when it resumes"),
        (facts("model.w", findings=[finding("generator")]), "rng", "`it` is not in the run"),
        (facts("model.w", "opt.state.0"), "unknown", "what differs is in model, opt"),
    ],
)
def test_the_likely_cause(given: Facts, kind: str, says: str) -> None:
    first = likely_causes(given)[0]
    assert first.kind == kind
    assert says in first.text


# -- bits ------------------------------------------------------------------------------------------------------------


def test_checkpoints_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    one, same, other = small_tree(1), small_tree(1), small_tree(1)
    other["model"]["scale"] = -0.0
    one["model"]["scale"] = same["model"]["scale"] = 0.0
    for name, tree in (("a", one), ("b", same), ("c", other)):
        commit(tmp_path / name, 10, tree, metrics={"loss": float("nan") if name != "c" else 0.5})
    path = "step-00000010"
    good = compare_checkpoints(str(tmp_path / "a" / path), str(tmp_path / "b" / path))
    assert (good.differences, good.step) == ([], 10)
    assert good.leaves > 5
    bad = compare_checkpoints(str(tmp_path / "a" / path), str(tmp_path / "c" / path))
    assert [one.path for one in bad.differences] == ["metrics.loss", "model.scale"]
    assert bad.differences[1].what == "0.0 in the uninterrupted run, -0.0 in the resumed one"


def test_one_bit_of_a_tensor_and_another_shape(tmp_path: Path) -> None:
    import torch

    for name, value in (("a", 1.0), ("b", 1.0000001)):
        weights = torch.full((3, 4), 1.0)
        weights[1, 2] = value
        holder = torch.nn.Module()
        holder.register_buffer("w", weights)
        holder.register_buffer("only", torch.zeros(2 if name == "a" else 3))
        with holdfast.Run(tmp_path / name, model=holder, rng=False) as run:
            run.save(step=5)
    found = compare_checkpoints(*(str(tmp_path / name / "step-00000005") for name in ("a", "b")))
    told = {one.path: one.what for one in found.differences}
    assert told["model.w"] == "1 of 12 float32 elements, the first at 6"
    assert told["model.only"] == "tensor (2,) float32 in the uninterrupted run, tensor (3,) float32 in the resumed one"


def test_items_have_digests_of_their_content() -> None:
    import numpy as np
    import torch

    item = [torch.ones(2), {"label": np.arange(3), "name": "a"}]
    assert digest(item) == digest([torch.ones(2), {"label": np.arange(3), "name": "a"}])
    others = [[torch.ones(3)], [torch.ones(2, dtype=torch.float64), item[1]], [torch.ones(2), {**item[1], "name": "b"}]]
    assert len({digest(one) for one in (item, *others)}) == 4


def test_without_torch_no_script_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (tmp_path / "train.py").write_text("open('ran', 'w')")
    with pytest.raises(
        MissingExtra, match=r"^prove needs torch, which is not installed: pip install .holdfast\[torch\]"
    ):
        prove(str(tmp_path / "train.py"), [], Options(), lambda _: None)
    assert not (tmp_path / "ran").exists()
