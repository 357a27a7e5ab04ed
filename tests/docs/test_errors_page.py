"""docs/errors.md is what the source says, and can be read."""

from __future__ import annotations

import re

from tests.house import errors_page
from tests.house.raised import CLASSES, shown, sites


def test_the_page_is_up_to_date() -> None:
    written = errors_page.PAGE.read_text(encoding="utf-8")
    assert written == errors_page.page(), "run python -m tests.house.errors_page"


def test_each_class_says_what_to_do() -> None:
    assert set(errors_page.TO_DO) == set(CLASSES)
    page = errors_page.page()
    assert all(f"\n## {name}\n" in page for name in CLASSES)
    assert {site.room for site in sites()} <= set(errors_page.ROOMS)


def test_every_message_is_on_the_page_as_it_is_printed() -> None:
    page = errors_page.page()
    missing = [
        one for site in sites() for parts in site.templates if (one := " ".join(shown(parts).split())) not in page
    ]
    assert not missing


def test_no_text_of_a_message_is_taken_for_markdown() -> None:
    for line in errors_page.page().splitlines():
        if message := re.fullmatch(r" *- (?:with )?(.*)", line):
            ticks = re.match("`+", message[1])
            assert ticks is not None, line
            inside = message[1][len(ticks[0]) : -len(ticks[0])]
            assert message[1].endswith(ticks[0])
            assert ticks[0] not in inside, line
