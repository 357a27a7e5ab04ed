from __future__ import annotations

import pytest

from holdfast.state.paths import dotted, matches, printable


def test_dotted_is_for_people() -> None:
    assert dotted(("model", "layers", 0, None)) == "model.layers.0.None"
    assert dotted(()) == "(root)"


def test_globs_cross_dots() -> None:
    assert matches(("head", "fc", "weight"), "head.*")
    assert matches(("layers", 0, "bias"), "*.bias")
    assert not matches(("ahead", "fc"), "head.*")
    assert not matches(("Head", "fc"), "head.*")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name", "plain name"),
        ("ünï", "ünï"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\ud800", "a\\ud800"),
        ("a\nb\r\x00", "a\\nb\\r\\x00"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("a\xa0b", "a\\xa0b"),
    ],
)
def test_nothing_that_moves_the_cursor_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown
