from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, CorruptFile, NotFound, RefusedFile, StorageError, UnknownFormat
from holdfast.runs.run_file import (
    BestRule,
    EpochMetrics,
    RunFile,
    parse_best,
    parse_bests,
    read_pins,
    read_run_file,
    remove_pin,
    write_pin,
    write_run_file,
)
from tests.runs.hand_made import NOON, commit

RUN = RunFile(
    run="abc",
    created=NOON,
    best="val_loss:min",
    keep="last:2 best:1",
    save="1ep 15min",
    uncommitted=(EpochMetrics(10, 1, {"val_loss": math.inf}), EpochMetrics(20, None, {"acc": None})),
    branch=40,
)


def test_round_trip(root: Path) -> None:
    write_run_file(root, RUN)
    assert read_run_file(root) == RUN
    write_run_file(root, RunFile("abc", NOON))
    assert read_run_file(root) == RunFile("abc", NOON)
    assert [item.name for item in root.iterdir()] == ["run.json"]


def test_none_without_one(root: Path) -> None:
    assert read_run_file(root) is None


def test_damage_and_newer_versions(root: Path) -> None:
    write_run_file(root, RUN)
    good = json.loads((root / "run.json").read_text())
    for changes, message in (
        ({"created": "2025-01-01T12:00:00"}, "its time of creation has no time zone"),
        ({"run": 5}, "is damaged: Expected `str`"),
        ({"uncommitted": [{"step": 1, "epoch": 1, "metrics": {"a": "x"}}]}, "metric a is 'x', no number"),
    ):
        (root / "run.json").write_text(json.dumps({**good, **changes}))
        with pytest.raises(CorruptFile, match=message):
            read_run_file(root)
    (root / "run.json").write_text(json.dumps({**good, "version": 3}))
    with pytest.raises(UnknownFormat, match="format version 3"):
        read_run_file(root)
    (root / "run.json").write_bytes(b" " * (1 << 27))
    with pytest.raises(RefusedFile, match=r"run\.json`: has 134,217,728 bytes, at most [\d,]+ are read for this file"):
        read_run_file(root)
    (root / "run.json").write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"run\.json`: is damaged"):
        read_run_file(root)


def test_best_rules() -> None:
    assert parse_best("val_loss:min") == BestRule("val_loss", "min")
    assert str(parse_best(" a:b:max ")) == "a:b:max"
    for text in ("val_loss", "val_loss:low", ":min", "", "min"):
        with pytest.raises(ArgumentError, match="write METRIC:min or METRIC:max"):
            parse_best(text)


def test_several_best_rules() -> None:
    loss, acc = BestRule("val_loss", "min"), BestRule("val_acc", "max")
    assert parse_bests("val_loss:min") == (loss,)
    assert parse_bests("val_loss:min  val_acc:max ") == (loss, acc)
    assert parse_bests(["val_acc:max", "val_loss:min"]) == (acc, loss)
    assert parse_bests(("val_loss:min val_acc:max",)) == (loss, acc)
    nothing: tuple[str | list[str], ...] = ("", " ", [])
    for text in nothing:
        with pytest.raises(ArgumentError, match="best= has no rule: write METRIC:min or METRIC:max"):
            parse_bests(text)
    with pytest.raises(ArgumentError, match="'val_loss' does not say which value is best"):
        parse_bests("val_loss val_acc:max")
    with pytest.raises(ArgumentError, match="has two rules for val_loss: say which one is meant"):
        parse_bests("val_loss:min val_acc:max val_loss:max")


def test_pins(root: Path) -> None:
    assert read_pins(root) == {}
    commit(root, 1, {"epoch": 1})
    commit(root, 2, {"epoch": 2})
    write_pin(root, "paper", 1)
    write_pin(root, "Table-2.b", 2)
    assert read_pins(root) == {"Table-2.b": 2, "paper": 1}
    write_pin(root, "paper", 2)
    assert read_pins(root)["paper"] == 2
    remove_pin(root, "paper")
    assert read_pins(root) == {"Table-2.b": 2}
    with pytest.raises(NotFound, match=r"no pin paper; there is: Table-2\.b"):
        remove_pin(root, "paper")
    with pytest.raises(NotFound, match="has no step-00000009 to pin"):
        write_pin(root, "paper", 9)


@pytest.mark.parametrize("name", ["", "../x", ".x", "a/b", "a b", "é", "x" * 101, "a\n"])
def test_names_that_are_no_pin(root: Path, name: str) -> None:
    commit(root, 1, {"epoch": 1})
    with pytest.raises(ArgumentError, match="can't be the name of a pin"):
        write_pin(root, name, 1)


def test_a_time_with_another_zone_is_the_same_moment(root: Path) -> None:
    write_run_file(root, RunFile("abc", NOON.astimezone(datetime.timezone(datetime.timedelta(hours=5)))))
    found = read_run_file(root)
    assert found is not None
    assert found.created == NOON


def test_pins_that_can_not_be_listed_are_not_none(root: Path) -> None:
    commit(root, 1)
    (root / "pins").symlink_to("pins")
    with pytest.raises(StorageError, match="pins`: can't be listed: Too many levels"):
        read_pins(root)
