"""docs/tutorials.md and its Chinese twin are what the blocks say, and both languages have the same code."""

from __future__ import annotations

import ast
import re

import pytest

from holdfast.lint.rules import RULES
from tests.docs.pages import ROOT
from tests.docs.pages import blocks as blocks_of
from tests.tutorials.blocks import blocks, entries
from tests.tutorials.page import CHINESE, ENGLISH, Language, recipe_anchors, write_page


@pytest.mark.parametrize("language", [ENGLISH, CHINESE], ids=lambda language: language.code)
def test_the_page_is_what_the_blocks_say(language: Language) -> None:
    written = (ROOT / language.page).read_text(encoding="utf-8")
    assert written == write_page(language), f"{language.page} is stale: python -m tests.tutorials.page"


def test_both_pages_have_the_same_code() -> None:
    english, chinese = (
        [(b.kind, b.text) for b in blocks_of(one.page) if b.kind != "heading"] for one in (ENGLISH, CHINESE)
    )
    assert english == chinese
    assert len(english) > 2 * 67


def test_every_block_is_told_in_both_languages() -> None:
    for entry in (*blocks(), *entries("exercises.txt"), *entries("statements.txt")):
        for part in ("", " today", " type"):
            english, chinese = entry.part(f"en{part}"), entry.part(f"zh{part}")
            assert bool(english) == bool(chinese), entry
            assert english.count("\n") == chinese.count("\n"), entry
            assert not english or re.search(r"[\u4e00-\u9fff]", chinese), entry
            assert not re.search(r"[\u4e00-\u9fff]", english), entry


def test_every_block_names_recipes_and_rules_that_there_are() -> None:
    known = recipe_anchors(ENGLISH).keys()
    assert known == recipe_anchors(CHINESE).keys()
    codes = {rule.code for rule in RULES}
    for block in blocks():
        assert block.recipes, block.key
        assert set(block.recipes) <= known, block.key
        assert set(block.lint) <= codes, block.key


def test_every_answer_is_python() -> None:
    for block in blocks():
        ast.parse(block.part("type"))
