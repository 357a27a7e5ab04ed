from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.output import size_text
from holdfast.runs.catalog import scan
from holdfast.runs.layout import step_name
from holdfast.runs.listing import age_text
from holdfast.runs.moves import quarantine, supersede
from tests.runs.hand_made import commit, flip, tensor

Holdfast = Callable[..., Any]


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# ---- ls --------------------------------------------------------------------------------------------------------------


def test_ls_shows_position_age_metrics_best_pins_and_why_kept(holdfast: Holdfast, run: Path) -> None:
    out = holdfast("ls", run).out
    header, ten, twenty, thirty, total, trend = out.splitlines()
    assert header.split() == ["step", "epoch", "age", "size", "val_loss", "kept", "by"]
    assert ten.split()[:5] == ["10", "1.10", "1", "h", "ago"]
    assert "0.5" in ten.split()
    assert "pin paper" in ten
    assert "pinned as paper" in ten
    assert "  best by val_loss:min  best: 1 of 1 by val_loss:min (0.25)" in twenty
    assert "best" not in ten + thirty
    assert total == "3 checkpoints, 15.8 kB"
    assert trend == "val_loss  █▁   0.5 -> 0.25"
    assert thirty.split()[:2] == ["30", "3.10"]
    assert "nan" in thirty
    assert "last: 1 of 1; the newest: always kept" in thirty


@pytest.mark.parametrize(("encoding", "line"), [("utf-8", "█▁ "), ("ascii", "#_ "), ("cp437", "#_ ")])
def test_ls_draws_with_what_the_terminal_has(run: Path, encoding: str, line: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "holdfast", "ls", str(run)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=environment)
    assert f"val_loss  {line}  0.5 -> 0.25" in done.stdout.decode(encoding)


def test_ls_json(holdfast: Holdfast, run: Path) -> None:
    found = json.loads(holdfast("ls", run, "--json").out)
    assert [one["step"] for one in found["checkpoints"]] == [10, 20, 30]
    assert [one["best"] for one in found["checkpoints"]] == [[], ["val_loss:min"], []]
    assert found["size"] == sum(one["size"] for one in found["checkpoints"])
    assert found["budget"] is None
    assert found["checkpoints"][2]["metrics"] == {"val_loss": "nan"}
    assert found["checkpoints"][0]["pins"] == ["paper"]
    assert found["notes"] == []


def test_ls_shows_what_is_damaged_or_partial_and_does_not_stop_at_it(holdfast: Holdfast, run: Path) -> None:
    flip(run / step_name(20) / "manifest.json", 40)
    (run / ".step-00000040.partial").mkdir()
    (run / "quarantine" / step_name(5)).mkdir(parents=True)
    (run / "run.json").write_text("{}")
    code, out, _ = holdfast("ls", run)
    assert code == 0
    assert ["20", "damaged"] in lines(out)
    assert f"damaged: step 20: `{run / step_name(20) / 'manifest.json'}`" in out
    assert "partial: step 40 was never committed" in out
    assert "quarantined: step-00000005: has no reason.json that can be read\n" in out
    assert "run.json`: is damaged" in out
    assert out.splitlines()[1].split()[0] == "10"


def test_ls_of_a_run_without_checkpoints_and_of_what_is_no_run(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert f"{tmp_path}: no checkpoint yet" in holdfast("ls", tmp_path).out
    (tmp_path / "other").mkdir()
    code, _, err = holdfast("ls", tmp_path / "other")
    assert code == 4
    assert "is no run: it has no run.json and no step-00001000" in err


def test_ls_with_many_metrics(holdfast: Holdfast, tmp_path: Path) -> None:
    commit(tmp_path, 1, {"epoch": 1}, metrics={f"m{index}": 1.0 for index in range(9)})
    assert "3 more metrics: holdfast show REF, or --json" in holdfast("ls", tmp_path).out


# ---- show, path ------------------------------------------------------------------------------------------------------


def test_show(holdfast: Holdfast, run: Path) -> None:
    out = holdfast("show", f"{run}@best").out
    assert out.splitlines()[0] == str(run / step_name(20))
    assert "  step 20, epoch 2, batch 0," in out
    rows = lines(out)
    assert ["val_loss", "0.25"] in rows
    assert ["model.class", "'my.Net'"] in rows
    assert ["torch", "'2.13.0'"] in rows
    assert any(row[:1] == ["model.safetensors"] for row in rows)
    found = json.loads(holdfast("show", run / step_name(20), "--json").out)
    assert found["step"] == 20
    assert found["size"] == sum(record["size"] for record in found["files"].values())
    assert found["objects"] == {"model": {"kind": "module", "class": "my.Net"}}
    assert found["files"]["state.json"]["digest"].startswith("xxh3-128:")


@pytest.mark.parametrize(("form", "step"), [("", 30), ("@last", 30), ("@best", 20), ("@-3", 10), ("@pin:paper", 10)])
def test_path(holdfast: Holdfast, run: Path, form: str, step: int) -> None:
    assert holdfast("path", f"{run}{form}").out == f"{run / step_name(step)}\n"


def test_show_says_what_becomes_of_it(holdfast: Holdfast, run: Path) -> None:
    assert "  kept: best: 1 of 1 by val_loss:min (0.25)\n" in holdfast("show", f"{run}@best").out
    commit(run, 15, {"epoch": 1})
    assert "  goes with the next prune: no rule keeps it\n" in holdfast("show", run / step_name(15)).out
    moved = quarantine(run, 30, "bits \x1b[2J flipped")
    assert "  quarantined: bits \\x1b[2J flipped\n" in holdfast("show", moved).out
    supersede(run, 15)
    found = json.loads(holdfast("show", run / "superseded" / step_name(20), "--json").out)
    assert found["standing"] == "superseded"
    assert found["reasons"] == ["the run went back to an earlier step, and this is the future that it left"]
    copy = shutil.copytree(run / step_name(10), run.parent / "alone")
    assert json.loads(holdfast("show", copy, "--json").out)["standing"] is None


def test_path_of_what_is_no_checkpoint(holdfast: Holdfast, tmp_path: Path) -> None:
    code, _, err = holdfast("path", tmp_path)
    assert code == 4
    assert "no checkpoint; name a run's folder, one of its steps" in err


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_verify_names_the_tensor_and_the_bytes(holdfast: Holdfast, run: Path) -> None:
    file = run / step_name(30) / "model.safetensors"
    flip(file, len(file.read_bytes()) - 1)
    code, out, _ = holdfast("verify", run)
    assert code == 2
    *items, hint = [line.split() for line in out.splitlines() if not line.startswith(" ")]
    assert [item[0] for item in items] == ["OK", "OK", "CORRUPT"]
    assert hint[-2:] == [str(run), "--set-aside"]
    assert f"  {file}: model." in out
    assert "expected" in out
    (item,) = [one for one in json.loads(holdfast("verify", run, "--json").out)["items"] if one["status"] != "OK"]
    assert item["step"] == 30
    assert item["findings"][0]["name"].startswith("model.")
    assert item["findings"][0]["expected"] != item["findings"][0]["found"]


def test_verify_offers_to_set_aside_what_is_damaged(holdfast: Holdfast, run: Path) -> None:
    flip(run / step_name(30) / "model.safetensors", -1)
    flip(run / step_name(10) / "manifest.json", 40)
    code, out, _ = holdfast("verify", run)
    assert code == 2
    assert out.endswith(
        f"to set aside step 10, 30, as a training that resumes does: holdfast verify {run} --set-aside\n"
    )
    assert json.loads(holdfast("verify", run, "--json").out)["set_aside"] == []
    code, out, _ = holdfast("verify", run, "--set-aside")
    assert code == 2
    assert f"set aside: {run / 'quarantine' / step_name(30)}\n" in out
    assert [one.step for one in scan(run).checkpoints] == [20]
    assert holdfast("verify", run).code == 0
    found = json.loads(holdfast("ls", run, "--json").out)
    assert [one["name"] for one in found["quarantined"]] == [step_name(10), step_name(30)]
    assert "manifest.json`: " in found["quarantined"][0]["reason"]
    assert "model.safetensors: model." in found["quarantined"][1]["reason"]


def test_verify_sets_aside_whole_steps_of_runs_that_nobody_writes(
    holdfast: Holdfast, run: Path, live: subprocess.Popen[str]
) -> None:
    flip(run / step_name(30) / "model.safetensors", -1)
    code, _, err = holdfast("verify", run, "--set-aside")
    assert code == 5
    assert f"pid {live.pid}" in err
    for other in (run / step_name(30), run / step_name(30) / "model.safetensors", run / "gone"):
        code, _, err = holdfast("verify", other, "--set-aside")
        assert code == 3
        assert "is no run's folder: only steps of a run can be set aside" in err
    assert [one.step for one in scan(run).checkpoints] == [10, 20, 30]


def test_verify_strict(holdfast: Holdfast, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / step_name(30) / "model.safetensors", tmp_path)
    file = tmp_path / "model.safetensors"
    code, out, _ = holdfast("verify", file)
    assert code == 0
    assert out.startswith("NOT VERIFIABLE")
    assert "without digest" in out
    assert holdfast("verify", file, "--strict").code == 1
    assert holdfast("verify", run, "--strict").code == 0


def test_verify_of_a_run_without_checkpoints(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert holdfast("verify", tmp_path) == (0, f"{tmp_path}: no checkpoint to verify\n", "")


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_a_run(holdfast: Holdfast, run: Path) -> None:
    out = holdfast("inspect", run).out
    rows = lines(out)
    assert out.startswith(f"{run / step_name(30)}: run-checkpoint, 11 tensors, ")
    assert "  safe: tensors and plain values" in out
    assert "  step 30, epoch 3, batch 10 of run abc123" in out
    assert ["layers.{0..5}.weight", "(8,", "8)", "float32", "x6", "1.54", "kB"] in rows
    assert "  model.embed.weight = model.head.weight" in out
    assert ["args.name", "'r\u00e9sum\u00e9'"] in rows
    assert ["optimizer.param_groups.0.lr", "0.1"] in rows


def test_inspect_keys_and_state(holdfast: Holdfast, run: Path) -> None:
    out = holdfast("inspect", run, "--keys", "*.bias").out
    assert "1 tensor, 16 B" in out
    assert "layers" not in out
    out = holdfast("inspect", run, "--state").out
    assert [row[0] for row in lines(out) if row and row[0].startswith("model.layers.")] == [
        f"model.layers.{index}.weight" for index in range(6)
    ]


def test_inspect_json(holdfast: Holdfast, run: Path) -> None:
    found = json.loads(holdfast("inspect", f"{run}@step=10", "--json").out)
    assert found["format"] == "run-checkpoint"
    assert found["shared"] == [["model.embed.weight", "model.head.weight"]]
    assert found["opaque"] == []
    by_name = {one["name"]: one for one in found["tensors"]}
    assert by_name["model.head.bias"]["shape"] == [4]
    assert by_name["optimizer.state.0.exp_avg"]["path"] == ["optimizer", "state", 0, "exp_avg"]


def test_inspect_a_single_file(holdfast: Holdfast, run: Path) -> None:
    out = holdfast("inspect", run / step_name(30) / "model.safetensors").out
    assert "safetensors, 8 tensors" in out.splitlines()[0]


def test_many_values_are_cut_and_can_be_had(holdfast: Holdfast, tmp_path: Path) -> None:
    commit(tmp_path, 1, {"args": {f"v{index}": index for index in range(100)}})
    out = holdfast("inspect", tmp_path).out
    assert "... 60 more: --state" in out
    assert "args.v99" in holdfast("inspect", tmp_path, "--state").out


@pytest.mark.parametrize("verb", ["inspect", "ls", "show", "verify", "path"])
def test_no_name_from_a_file_reaches_the_terminal_as_it_is(holdfast: Holdfast, tmp_path: Path, verb: str) -> None:
    evil = "\x1b[2J\u202e[red]\r\nOK"
    commit(
        tmp_path / evil.replace("\n", ""),
        1,
        {"model": {evil: tensor(3)}, evil: evil},
        metrics={evil: 1.0},
        objects={evil: {"class": evil}},
        environment={evil: evil},
    )
    folder = tmp_path / evil.replace("\n", "")
    flip(folder / step_name(1) / "model.safetensors", -1)
    _, out, err = holdfast(verb, folder)
    for bad in ("\x1b", "\u202e", "\r"):
        assert bad not in out
        assert bad not in err
    assert "[red]" in out


def test_sizes_and_ages() -> None:
    assert [size_text(count) for count in (0, 999, 1000, 1536, 999_499, 1_490_000_000, 10**18)] == [
        "0 B", "999 B", "1 kB", "1.54 kB", "999 kB", "1.49 GB", "1e+03 PB",
    ]  # fmt: skip
    assert [age_text(seconds) for seconds in (0, 59, 60, 3599, 7200, 200_000, -5, -3600)] == [
        "0 s ago", "59 s ago", "1 min ago", "59 min ago", "2 h ago", "2 d ago", "0 s ago", "in the future",
    ]  # fmt: skip


def test_every_format_is_said_in_words() -> None:
    from holdfast.cli.inspect import WHAT
    from holdfast.formats import dcp, exported, index, legacy, npz, safetensors, tar, torchscript, torchzip
    from holdfast.runs.checkpoint import Checkpoint

    named = {one.NAME for one in (dcp, exported, legacy, npz, safetensors, tar, torchscript, torchzip)}
    assert set(WHAT) == named | {index.ShardedContainer.format, Checkpoint.format}


def test_inspect_says_who_wrote_it_in_words(holdfast: Holdfast, run: Path) -> None:
    out = holdfast("inspect", run).out
    assert "  a checkpoint of a run; holdfast wrote it, with a record of its objects\n" in out
    file = run / step_name(30) / "model.safetensors"
    assert "  a file of tensors and nothing that could run\n" in holdfast("inspect", file).out
    assert json.loads(holdfast("inspect", file, "--json").out)["what"] == "a file of tensors and nothing that could run"
