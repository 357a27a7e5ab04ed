from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from holdfast.runs.listing import listing, metric_names, sparkline, trend_text
from holdfast.runs.run_file import EpochMetrics, RunFile, write_run_file
from holdfast.runs.standing import Standing, scan_run, standing
from tests.runs.hand_made import NOON, commit

NAN, INF = float("nan"), float("inf")


def run_with(root: Path, *metrics: dict[str, float | None], best: str | None = None) -> Standing:
    for step, one in enumerate(metrics, 1):
        commit(root, step, {"epoch": step}, metrics=one)
    write_run_file(root, RunFile("abc123", NOON, best=best))
    return standing(scan_run(root), NOON + datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "▅"),
        ([1.0, 1.0], "▅▅"),
        ([0.0, 1.0], "▁█"),
        ([0.0, 0.5, 1.0], "▁▅█"),
        ([NAN, 0.0, INF, None, 1.0], " ▁  █"),
        ([NAN, NAN], "  "),
        ([-1.7e308, 1.7e308], "▁█"),
        ([0.0, 5e-324], "▅▅"),
        ([float(number) for number in range(8)], "▁▂▃▄▅▆▇█"),
    ],
)
def test_numbers_as_heights(values: list[float | None], line: str) -> None:
    assert sparkline(values) == line


def test_many_numbers_share_places_and_the_last_one_shows() -> None:
    line = sparkline([*(0.0 for _ in range(6000)), 1.0])
    assert len(line) == 60
    assert (line[0], line[-1]) == ("▁", "█")
    assert sparkline([0.0, 1.0, *(NAN for _ in range(118))])[0] == "▅"  # the only span with a number


def test_the_metric_that_decides_comes_first(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"acc": 0.1, "loss": 2.0}, {"acc": 0.4, "loss": 1.0}, best="loss:min")
    assert metric_names(run) == ["loss", "acc"]
    assert trend_text(run) == "loss  █▁  2 -> 1"
    assert trend_text(run, blocks=False) == "loss  #_  2 -> 1"
    assert listing(run, NOON).header[4:6] == ["loss", "acc"]


def test_without_a_rule_the_first_metric_with_two_numbers_is_drawn(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"a": NAN, "b": 1.0, "c": None}, {"a": 1.0, "b": NAN, "c": 3.0}, {"b": 0.5})
    assert trend_text(run) == "b  █ ▁  1 -> 0.5"


def test_epochs_whose_checkpoints_are_gone_are_drawn_too(tmp_path: Path) -> None:
    commit(tmp_path, 3, {"epoch": 3}, metrics={"loss": 1.0})
    commit(tmp_path, 4, {"epoch": 4}, metrics={"loss": 2.0})
    gone = (EpochMetrics(1, 0, {"loss": 3.0}), EpochMetrics(3, 2, {"loss": 9.0}))
    write_run_file(tmp_path, RunFile("abc123", NOON, uncommitted=(EpochMetrics(2, 1, {"loss": 2.0}),), pruned=gone))
    run = standing(scan_run(tmp_path), NOON)
    assert [line.step for line in run.history] == [1, 2]
    assert trend_text(run) == "loss  █▅▁▅  3 -> 2"
    assert len(listing(run, NOON).rows) == 2


def test_one_number_makes_no_line(tmp_path: Path) -> None:
    assert trend_text(run_with(tmp_path / "one", {"loss": 1.0})) is None
    assert trend_text(run_with(tmp_path / "none", {}, {})) is None
    assert trend_text(run_with(tmp_path / "nan", {"loss": NAN}, {"loss": NAN})) is None


def test_hostile_names_of_metrics_are_escaped(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"\x1b[2J\u202e": 1.0}, {"\x1b[2J\u202e": 2.0})
    assert trend_text(run) == "\\x1b[2J\\u202e  ▁█  1 -> 2"
