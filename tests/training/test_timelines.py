"""Going back to an earlier step, starting anew, and starting from another's weights."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, MismatchError, NotFound
from holdfast.runs.catalog import scan
from holdfast.training.resuming import Position

ITEMS = [torch.ones(2), torch.zeros(2)]


def parts(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = nn.Linear(2, 1)
    return {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)}


def train(root: Path, epochs: int, **options: Any) -> dict[str, Any]:
    objects = parts()
    with holdfast.Run(root, **objects, best="loss:min", **options) as run:
        for epoch in run.epochs(epochs):
            for item in run.batches(ITEMS):
                objects["optimizer"].zero_grad()
                objects["model"](item).square().sum().backward()
                objects["optimizer"].step()
            run.end(epoch, loss=abs(epoch - 1))
    return objects


def steps(root: Path) -> list[int]:
    return [one.step for one in scan(root).checkpoints]


@pytest.mark.parametrize("reference", ["@step=4", "@best", "{root}@step=4", "{root}/step-00000004"])
def test_an_earlier_step_leaves_its_future_behind(reference: str, run_dir: Path) -> None:
    train(run_dir, 4)
    objects = parts(seed=5)
    with holdfast.Run(run_dir, best="loss:min", resume=reference.format(root=run_dir), **objects) as run:
        assert run.resume() == Position(epoch=2, step=4, batch=0)
    assert steps(run_dir) == [2, 4]
    assert sorted(os.listdir(run_dir / "superseded")) == ["step-00000006", "step-00000008"]
    assert torch.equal(objects["model"].weight, holdfast.load(run_dir / "step-00000004")["model"]["weight"])


def test_the_same_words_again_do_not_go_back_again(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(run_dir, 4)
    whole = holdfast.load(f"{run_dir}@last")["model"]["weight"]
    with caplog.at_level(logging.WARNING, "holdfast"):
        train(run_dir, 3, resume="@step=2")
    assert "goes back to step 2; what came later is in superseded/" in caplog.text
    assert steps(run_dir) == [2, 4, 6]
    again = train(run_dir, 4, resume="@step=2")  # killed and started by the same command
    assert steps(run_dir) == [2, 4, 6, 8]
    assert torch.equal(again["model"].weight, whole)
    assert len(os.listdir(run_dir / "superseded")) == 3  # of the first time


def test_a_fresh_start_keeps_what_was(run_dir: Path) -> None:
    train(run_dir, 2)
    train(run_dir, 1, resume=False)
    assert steps(run_dir) == [2]
    assert sorted(os.listdir(run_dir / "superseded")) == ["step-00000002", "step-00000004"]
    train(run_dir, 2, resume=False)
    assert steps(run_dir) == [2, 4]


def test_what_is_no_checkpoint_of_the_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    train(run_dir, 1)
    train(tmp_path / "other", 1)
    wanted = r"is no checkpoint of this run: .* or start_from= to begin a run"
    other = f"{tmp_path / 'other'}@last"
    with holdfast.Run(run_dir, resume=other, **parts()) as run, pytest.raises(ArgumentError, match=wanted):
        run.resume()
    with holdfast.Run(run_dir, resume="@step=99", **parts()) as run, pytest.raises(NotFound, match="has no step 99"):
        run.resume()
    assert steps(run_dir) == [2]


def test_a_damaged_one_is_refused_before_anything_moves(run_dir: Path) -> None:
    train(run_dir, 3)
    os.truncate(run_dir / "step-00000002" / "entries.json", 10)
    with holdfast.Run(run_dir, resume="@step=2", **parts()) as run, pytest.raises(CorruptFile):
        run.resume()
    assert steps(run_dir) == [2, 4, 6]


def test_a_new_run_begins_with_anothers_weights(run_dir: Path, tmp_path: Path) -> None:
    old = train(tmp_path / "old", 2)
    torch.save({"model_state_dict": old["model"].state_dict(), "epoch": 7}, tmp_path / "old.pth")
    for number, source in enumerate([f"{tmp_path / 'old'}@last", tmp_path / "old", tmp_path / "old.pth"]):
        objects = parts(seed=3)
        root = run_dir.with_name(f"run{number}")
        with holdfast.Run(root, start_from=source, **objects) as run:
            assert run.resume() is None
            assert run.position == Position(epoch=0, step=0, batch=0)
            assert torch.equal(objects["model"].weight, old["model"].weight)
            assert not objects["optimizer"].state
            run.save(step=1)
        with holdfast.Run(root, start_from=tmp_path / "gone.pth", **parts(seed=4)) as run:
            assert run.resume() == Position(epoch=0, step=1, batch=0)  # its own checkpoint wins from now on


def test_weights_that_do_not_fit_and_runs_without_a_model(run_dir: Path, tmp_path: Path) -> None:
    holdfast.save(nn.Linear(5, 5), tmp_path / "f.pt")
    with holdfast.Run(run_dir, start_from=tmp_path / "f.pt", **parts()) as run, pytest.raises(MismatchError):
        run.resume()
    generator = torch.Generator()
    wanted = "start_from= gives weights to modules, and the run has none"
    run = holdfast.Run(run_dir, start_from=tmp_path / "f.pt", g=generator)
    with run, pytest.raises(ArgumentError, match=wanted):
        run.resume()
