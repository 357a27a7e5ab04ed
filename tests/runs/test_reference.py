from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, CorruptFile, NotFound
from holdfast.runs.layout import step_name
from holdfast.runs.reference import Reference, parse, resolve
from holdfast.runs.run_file import RunFile, write_pin, write_run_file
from tests.runs.hand_made import commit, flip

TREE = {"epoch": 1}


@pytest.fixture
def run(root: Path) -> Path:
    """Four steps; loss is best at 20, accuracy at 30."""
    for step, loss, accuracy in ((10, 0.9, 0.1), (20, 0.1, 0.2), (30, 0.5, 0.9), (40, float("nan"), 0.3)):
        commit(root, step, TREE, metrics={"loss": loss, "accuracy": accuracy})
    return root


def found(run: Path, form: str) -> str:
    reference = parse(f"{run}@{form}")
    assert reference is not None
    return Path(resolve(reference)).name


def with_best(run: Path, rule: str) -> None:
    write_run_file(run, RunFile("abc", datetime.datetime.now(datetime.UTC), best=rule))


def test_forms() -> None:
    assert parse("runs/a@last") == Reference("runs/a", "last")
    assert parse("runs/a@best") == Reference("runs/a", "best")
    assert parse("runs/a@best:val_acc") == Reference("runs/a", "best", "val_acc")
    assert parse("runs/a@best:val_acc:max") == Reference("runs/a", "best", "val_acc:max")
    assert parse("runs/a@step=1000") == Reference("runs/a", "step", "1000")
    assert parse("runs/a@-2") == Reference("runs/a", "back", "2")
    assert parse("runs/a@pin:paper") == Reference("runs/a", "pin", "paper")
    assert parse("@last") == Reference(".", "last")
    assert parse("user@host@last") == Reference("user@host", "last")


@pytest.mark.parametrize("text", ["model.pt", "me@example.org/model.pt", "a@lost", "a@", "a@step=x", "a@-", "a@pin:"])
def test_plain_paths(text: str) -> None:
    assert parse(text) is None


def test_a_path_that_exists_wins(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run@last").write_text("a file")
    assert parse(f"{run}@last") is None


def test_a_typo_after_a_run_is_an_error(run: Path) -> None:
    with pytest.raises(ArgumentError, match=r"after a run come @last, @best, .* not '@lst'"):
        parse(f"{run}@lst")


def test_steps(run: Path) -> None:
    assert found(run, "last") == step_name(40)
    assert found(run, "-1") == step_name(40)
    assert found(run, "-2") == step_name(30)
    assert found(run, "step=20") == step_name(20)
    assert found(run, "step=000020") == step_name(20)
    with pytest.raises(NotFound, match="has no step 21; its steps: 10, 20, 30, 40"):
        found(run, "step=21")
    with pytest.raises(NotFound, match="@-5 is further back than its 4 checkpoints"):
        found(run, "-5")
    with pytest.raises(ArgumentError, match="there is no @-0"):
        found(run, "-0")


def test_last_is_the_newest_that_can_be_read_but_a_named_step_is_that_one(run: Path) -> None:
    flip(run / step_name(40) / "manifest.json", 30)
    assert found(run, "last") == step_name(30)
    assert found(run, "step=40") == step_name(40)


def test_best(run: Path) -> None:
    with_best(run, "loss:min")
    assert found(run, "best") == step_name(20)
    assert found(run, "best:loss") == step_name(20)
    assert found(run, "best:accuracy:max") == step_name(30)
    assert found(run, "best:accuracy:min") == step_name(10)


def test_several_bests(run: Path) -> None:
    with_best(run, "accuracy:max loss:min")
    assert found(run, "best") == step_name(30)
    assert found(run, "best:accuracy") == step_name(30)
    assert found(run, "best:loss") == step_name(20)
    assert found(run, "best:loss:max") == step_name(10)
    with pytest.raises(ArgumentError, match="does not say which f1 is best: write @best:f1:min or @best:f1:max"):
        found(run, "best:f1")


def test_best_without_a_rule_names_the_metrics(run: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"write @best:accuracy:min or @best:accuracy:max \(its metrics: accuracy, loss"
    ):
        found(run, "best")
    with_best(run, "loss:min")
    with pytest.raises(ArgumentError, match="does not say which accuracy is best"):
        found(run, "best:accuracy")
    with pytest.raises(NotFound, match="no checkpoint has a number for f1; its steps: "):
        found(run, "best:f1:max")


def test_best_of_a_run_without_metrics(root: Path) -> None:
    commit(root, 1, TREE)
    with pytest.raises(ArgumentError, match="none of its checkpoints has a metric"):
        found(root, "best")


def test_pins(run: Path) -> None:
    write_pin(run, "paper", 20)
    assert found(run, "pin:paper") == step_name(20)
    with pytest.raises(NotFound, match="no pin 'thesis'; pins: paper"):
        found(run, "pin:thesis")
    (run / "pins" / "paper").write_text("step 20")
    with pytest.raises(CorruptFile, match="not a step such as step-00001000"):
        found(run, "pin:paper")


def test_an_empty_or_missing_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such run"):
        resolve(Reference(str(tmp_path / "gone"), "last"))
    with pytest.raises(NotFound, match="no checkpoint yet"):
        resolve(Reference(str(tmp_path), "last"))


def test_many_steps_are_not_all_listed(root: Path) -> None:
    for step in range(1, 31):
        commit(root, step, TREE)
    with pytest.raises(NotFound, match=r"its steps: \.\.\. 20 more, 21, 22, .*, 30$"):
        found(root, "step=99")
