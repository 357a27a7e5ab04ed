"""Metrics outlive the checkpoints that retention deletes."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from holdfast.runs import history
from holdfast.runs.catalog import Catalog, Listed
from holdfast.runs.history import gone_back, remember
from holdfast.runs.manifest import Manifest
from holdfast.runs.retention import Decision
from holdfast.runs.run_file import EpochMetrics, RunFile, read_run_file

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
RUN = RunFile("0123456789abcdef", NOW, uncommitted=(EpochMetrics(15, 1, {"loss": 4.0}),))


def listed(step: int, epoch: int | None = None, batch: int | None = 0, **metrics: float) -> Listed:
    return Listed(step, f"step-{step}", Manifest(RUN.run, step, NOW, epoch, batch, dict(metrics)))


def catalog(*checkpoints: Listed) -> Catalog:
    return Catalog("run", checkpoints)


def let_go(*steps: int) -> list[Decision]:
    return [Decision(step, keep=False, reasons=()) for step in steps]


def test_what_is_pruned_leaves_its_metrics(tmp_path: Path) -> None:
    there = catalog(listed(10, 1, loss=5.0), listed(20, 2), listed(30, 2, 4, loss=3.0), listed(40, 4, loss=2.0))
    run = remember(str(tmp_path), RUN, there, [*let_go(10, 20, 30), Decision(40, keep=True, reasons=("newest",))])
    assert run == read_run_file(tmp_path)
    assert run.pruned == (EpochMetrics(10, 0, {"loss": 5.0}), EpochMetrics(30, 2, {"loss": 3.0}))
    assert [line.step for line in history.history(run, catalog(listed(40, 4, loss=2.0)))] == [10, 15, 30]


def test_a_step_is_told_once(tmp_path: Path) -> None:
    there = catalog(listed(10, 1, loss=5.0), listed(40, 4, loss=2.0))
    run = remember(str(tmp_path), RUN, there, let_go(10))
    assert [line.step for line in history.history(run, there)] == [15], "a kill came before the deletion"
    assert remember(str(tmp_path), run, there, let_go(10)) is run


def test_nothing_is_written_for_checkpoints_without_metrics(tmp_path: Path) -> None:
    assert remember(str(tmp_path), RUN, catalog(listed(10, 1), listed(40, 4)), let_go(10)) is RUN
    assert list(tmp_path.iterdir()) == []


def test_what_lies_behind_the_step_gone_back_to_is_forgotten(tmp_path: Path) -> None:
    there = catalog(*(listed(step, loss=1.0) for step in (10, 20, 30)))
    back = gone_back(remember(str(tmp_path), RUN, there, let_go(10, 20)), 12)
    assert (back.branch, [line.step for line in back.pruned], back.uncommitted) == (12, [10], ())


def test_a_run_that_saves_for_ever_keeps_a_bounded_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LINES", 8)
    run = RUN
    for step in range(1, 41):
        run = remember(str(tmp_path), run, catalog(listed(step, loss=1.0)), let_go(step))
        assert len(run.pruned) <= 8
    steps = [line.step for line in run.pruned]
    assert steps[0] == 1
    assert steps[-4:] == [37, 38, 39, 40]
