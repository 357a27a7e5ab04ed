"""What the 67 blocks of five tutorials do with torch of today, and what holdfast does instead: both are run."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.docs.test_code_blocks import as_shown
from tests.tutorials.blocks import WORDS, Block, Entry, blocks, entries
from tests.tutorials.running import Program

BLOCKS = blocks()
TALLY = {"OK": 35, "RAISES": 10, "SYNTAX": 4, "GPU": 5, "SILENT": 6, "WARNS": 6, "EMPTY": 1}
AS = {"GPU": "RAISES", "SILENT": "OK", "EMPTY": "OK"}
"""What a block's code does, for those words that say more about it."""


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> Iterator[None]:
    """Each block runs in a folder of its own; what it does to logging is undone."""
    monkeypatch.chdir(tmp_path)
    yield
    logging.disable(logging.NOTSET)


def named(entry: Block | Entry) -> str:
    return entry.key if isinstance(entry, Block) else entry.fields[0]


def prepared(block: Block, *parts: str) -> Program:
    """A program that has run what stands before the block."""
    program = Program()
    for name in parts:
        outcome = program.run(block.part(name))
        assert outcome.word in ("OK", "WARNS"), f"{block.key}: what is given {outcome}"
    return program


def test_there_are_67_blocks_with_the_results_of_the_table() -> None:
    assert len(BLOCKS) == len({block.key for block in BLOCKS}) == 67
    assert collections.Counter(block.result for block in BLOCKS) == TALLY
    assert set(TALLY) == set(WORDS)


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_torch_does_today_what_the_page_says(block: Block) -> None:
    if block.result == "GPU" and torch.cuda.is_available():
        pytest.skip("shows what a machine without a GPU does")
    outcome = prepared(block, "given").run(block.part("typed"))
    assert outcome.word == AS.get(block.result, block.result), f"{block.key}: {outcome}"
    assert as_shown(block.part("shows"), outcome.printed), f"{block.key} prints\n{outcome.printed}"


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_holdfast_does_what_is_meant(block: Block) -> None:
    outcome = prepared(block, "given", "also given").run(block.part("type"))
    assert outcome.word == "OK", f"{block.key}: {outcome}"
    assert as_shown(block.part("gives"), outcome.printed), f"{block.key} prints\n{outcome.printed}"


@pytest.mark.parametrize("exercise", entries("exercises.txt"), ids=named)
def test_the_exercises_are_solved(exercise: Entry) -> None:
    outcome = Program().run(exercise.part("code"))
    assert outcome.word == "OK", outcome
    assert as_shown(exercise.part("gives"), outcome.printed), outcome.printed


@pytest.mark.parametrize("statement", entries("statements.txt"), ids=named)
def test_statements_are_wrong_as_the_page_says(statement: Entry) -> None:
    outcome = Program().run(statement.part("check"))
    assert outcome.word in ("OK", "WARNS"), outcome


def test_all_statements_but_one_are_checked_by_code() -> None:
    unchecked = [entry.fields[0] for entry in entries("statements.txt") if not entry.part("check")]
    assert unchecked == ["001 L269-287"]  # a heading that does not fit the code below it


def test_a_block_that_does_something_else_is_seen() -> None:
    program = Program()
    assert program.run("1 / 0") == ("RAISES", "ZeroDivisionError: division by zero\n")
    assert program.run("def").word == "SYNTAX"
    assert program.run("import warnings\nwarnings.warn('old', DeprecationWarning)").word == "WARNS"
    assert program.run("print(net.training)") == ("OK", "True\n")
