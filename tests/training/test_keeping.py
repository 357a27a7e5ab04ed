"""What a run keeps and deletes behind its commits: several bests, budgets, and deletions that fail."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, MissingPart
from holdfast.runs.catalog import scan
from holdfast.runs.reference import locate
from holdfast.runs.run_file import read_run_file
from holdfast.storage.syscalls import Syscalls

NAN = float("nan")


def steps(root: Path) -> list[int]:
    return [one.step for one in scan(root).checkpoints]


def step_of(root: Path, reference: str) -> int:
    folder = locate(f"{root}{reference}")
    assert folder is not None
    return int(folder.rpartition("-")[2])


def train(root: Path, metrics: list[dict[str, float]], **options: Any) -> list[int | None]:
    """One epoch of one item for each row of metrics, from where the run stands; the step that each epoch committed."""
    committed = []
    with holdfast.Run(root, model=nn.Linear(1, 1), **options) as run:
        run.resume()
        for epoch in run.epochs(run.position.epoch + len(metrics)):
            for _ in run.batches([torch.ones(1)]):
                pass
            done = run.end(epoch, **metrics.pop(0))
            committed.append(done.step if done else None)
    return committed


@pytest.mark.parametrize("best", ["loss:min acc:max", ["loss:min", "acc:max"], ("loss:min acc:max",)])
def test_a_new_best_by_any_rule_is_committed_at_once_and_each_stays(best: Any, run_dir: Path) -> None:
    rows = [
        {"loss": 0.5, "acc": 0.5},
        {"loss": 0.6, "acc": 0.4},
        {"loss": 0.4, "acc": 0.3},  # a new best by loss
        {"loss": 0.9, "acc": 0.8},  # a new best by acc
        {"loss": 0.7, "acc": 0.7},
    ]
    assert train(run_dir, rows, best=best, save="100ep", keep="last:1") == [1, None, 3, 4, None]
    assert steps(run_dir) == [3, 4, 5]  # both bests, and the end
    found = read_run_file(run_dir)
    assert found is not None
    assert found.best == "loss:min acc:max"
    with holdfast.Run(run_dir, best=best, model=nn.Linear(1, 1)) as run:
        assert run.best.step == 3
    for reference, step in {"@best": 3, "@best:loss": 3, "@best:acc": 4, "@best:acc:min": 3}.items():
        assert step_of(run_dir, reference) == step


def test_a_restart_forgets_none_of_the_bests(run_dir: Path) -> None:
    rules = {"best": "loss:min acc:max", "save": "100ep", "keep": "last:1"}
    assert train(run_dir, [{"loss": 0.1, "acc": 0.2}, {"loss": 0.3, "acc": 0.9}], **rules) == [1, 2]
    rows = [{"loss": 0.2, "acc": 0.8}, {"loss": NAN, "acc": NAN}, {"loss": 0.1, "acc": 0.1}]
    assert train(run_dir, rows, **rules) == [None, None, 5]  # as good as step 1: of equals the later one is best
    assert steps(run_dir) == [2, 5]
    assert step_of(run_dir, "@best:loss") == 5
    assert step_of(run_dir, "@best:acc") == 2


@pytest.mark.parametrize("first", ["loss:min acc:max", "acc:max loss:min"])
def test_nan_and_zero_for_each_rule(first: str, run_dir: Path) -> None:
    rows = [
        {"loss": NAN, "acc": NAN},  # never best, not even as the first
        {"loss": NAN, "acc": -1.0},
        {"loss": 0.0, "acc": NAN},
        {"loss": 0.5, "acc": 0.0},
        {"acc": -0.5},
        {"loss": NAN, "acc": NAN},
    ]
    assert train(run_dir, rows, best=first, save="100ep", keep="last:1") == [None, 2, 3, 4, None, None]
    assert steps(run_dir) == [3, 4, 6]
    assert (step_of(run_dir, "@best:loss"), step_of(run_dir, "@best:acc")) == (3, 4)
    assert step_of(run_dir, "@best") == (3 if first.startswith("loss") else 4)


def test_best_rules_that_can_not_be_read(run_dir: Path) -> None:
    for best, message in (
        ("loss acc:max", "'loss' does not say which value is best"),
        ("loss:min loss:max", "has two rules for loss"),
        ([], "best= has no rule"),
    ):
        with pytest.raises(ArgumentError, match=message):
            holdfast.Run(run_dir, best=best, model=nn.Linear(1, 1))
    assert not run_dir.exists()
    train(run_dir, [{"acc": 1.0}], best="loss:min acc:max")
    run = holdfast.Run(run_dir, best="loss:min acc:max", model=nn.Linear(1, 1))
    with run, pytest.raises(MissingPart, match="no checkpoint has a number for the best= rule yet"):
        _ = run.best


def test_a_budget_in_text_and_as_a_rule(run_dir: Path, tmp_path: Path) -> None:
    train(run_dir, [{}], keep="size:1TB")
    size = scan(run_dir).size
    for root, keep in (
        (run_dir, f"size:{size * 3 + size // 2}B"),
        (tmp_path / "b", [holdfast.KeepSize(size * 7 // 2)]),
    ):
        train(root, [{}] * 6, keep=keep)
        assert len(steps(root)) == 3
        assert scan(root).size <= size * 7 // 2
        assert steps(root)[-1] == max(steps(root))
    found = read_run_file(tmp_path / "b")
    assert found is not None
    assert found.keep == f"size:{size * 7 // 2}B"


def test_a_deletion_that_fails_is_told_and_stops_no_save(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Syscalls.rename

    def rename(self: Syscalls, source: str, target: str) -> None:
        if source.endswith("step-00000002"):
            raise OSError(errno.EACCES, "Permission denied")
        real(self, source, target)

    with holdfast.Run(run_dir, model=nn.Linear(1, 1), keep="last:1") as run:
        run.save(step=1)
        assert run.save(step=2).pruned == [1]
        monkeypatch.setattr(Syscalls, "rename", rename)
        with caplog.at_level(logging.WARNING, "holdfast"):
            run.save(step=3)
            run.save(step=4)
        assert steps(run_dir) == [2, 4]  # the others go all the same
        assert "pruning stopped, nothing that must be kept is lost" in caplog.text
        assert (
            "step-00000002`: renaming it before removal failed: Permission denied; nothing was removed" in caplog.text
        )
        monkeypatch.undo()
        assert run.save(step=5).pruned == [2, 4]


def test_what_protects_can_not_be_read_so_nothing_goes(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), keep="last:1") as run:
        run.save(step=1)
        (run_dir / "pins").mkdir()
        (run_dir / "pins" / "paper").write_text("the good one")
        assert run.save(step=2).pruned == []
        assert "says 'the good one', not a step such as step-00001000" in caplog.text
        (run_dir / "pins" / "paper").unlink()
        assert run.save(step=3).pruned == [1, 2]


def test_a_step_behind_the_newest_is_refused(run_dir: Path) -> None:
    """Retention counts by steps: it would take the new checkpoint for an old one, and delete it at once."""
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), keep="last:1") as run:
        run.save(step=10)
        with pytest.raises(ArgumentError, match="step 3 lies behind step 10, which is saved; steps go up"):
            run.save(step=3)
        assert steps(run_dir) == [10]
        assert run.save(step=11).pruned == [10]
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), keep="last:1", resume=False) as run:
        assert run.save(step=3).pruned == []
    assert steps(run_dir) == [3]
