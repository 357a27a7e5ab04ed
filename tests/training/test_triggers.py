"""When a save is due: the pure decision."""

from __future__ import annotations

import pytest

from holdfast.errors import ArgumentError
from holdfast.training.triggers import EveryEpochs, EverySeconds, EverySteps, is_due, parse_save


def test_rules_from_text() -> None:
    assert parse_save("500step 1ep 15min 2h 30s") == [
        EverySteps(500),
        EveryEpochs(1),
        EverySeconds(900),
        EverySeconds(7200),
        EverySeconds(30),
    ]


@pytest.mark.parametrize("text", ["0ep", "ep", "1.5step", "-1step", "1 ep", "signal"])
def test_words_that_are_no_rule(text: str) -> None:
    with pytest.raises(ArgumentError, match="a number above 0 and a unit are wanted"):
        parse_save(text)


@pytest.mark.parametrize(
    ("step", "last", "due"), [(6, 5, False), (7, 6, True), (8, 7, False), (15, 6, True), (7, 7, False), (0, 0, False)]
)
def test_a_multiple_of_steps_since_the_last_question(step: int, last: int, due: bool) -> None:
    assert (is_due([EverySteps(7)], step=step, last_step=last) is not None) is due


def test_epochs_count_only_at_their_end() -> None:
    rules = [EveryEpochs(2)]
    assert is_due(rules, step=1, last_step=0) is None
    assert is_due(rules, step=1, last_step=0, epochs_done=1) is None
    assert is_due(rules, step=1, last_step=0, epochs_done=2) == "every 2 epochs"


def test_seconds_since_the_last_commit() -> None:
    assert is_due([EverySeconds(60)], step=1, last_step=0, seconds=59.9) is None
    assert is_due([EverySeconds(60)], step=1, last_step=0, seconds=60.0) == "every 60 seconds"
