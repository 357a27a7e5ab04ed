"""Every message of an error is seen by a test: some literal of the tests can come from that message alone."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.house.raised import CLASSES, Parts, Site, shown, sites, sites_of
from tests.house.source_tree import PACKAGE, ROOT, parse

RUN = 10
"""So many letters in a row, in a literal and in one message alone, tell the message."""

OF_A_TABLE = {
    "src/holdfast/formats/detect.py": "what a file is, row by row: tests/formats/test_detect.py",
    "src/holdfast/runs/reference.py": "the reasons of choose_resume: tests/runs/test_catalog.py",
}
"""Messages without a word of their own, where the words are, and who tests those."""


class Texts:
    """The constant texts of all templates, and which template a literal tells."""

    def __init__(self, templates: Iterable[Parts]) -> None:
        self.templates = tuple(dict.fromkeys(templates))
        self._places: dict[str, list[tuple[Parts, str, int]]] = defaultdict(list)
        for parts in self.templates:
            for text in filter(None, parts):
                for at in range(len(text) - RUN + 1):
                    self._places[text[at : at + RUN]].append((parts, text, at))

    def told_by(self, literal: str) -> Iterator[Parts]:
        """The templates of which a run of letters stands in the literal, and in no other template.

        At each of its ends, the run reaches an end of the literal or a value that is put in: a literal that goes on
        otherwise than the message is of something else.
        """
        for start in range(len(literal) - RUN + 1):
            for parts, text, at in self._places.get(literal[start : start + RUN], ()):
                if start and at and literal[start - 1] == text[at - 1]:
                    continue  # a longer run was tried
                length = len(os.path.commonprefix((literal[start:], text[at:])))
                begins = start == 0 or at == 0
                ends = start + length == len(literal) or at + length == len(text)
                if begins and ends and self.owners(literal[start : start + length]) == {parts}:
                    yield parts

    def owners(self, run: str) -> set[Parts]:
        """The templates that have a run of letters."""
        return {parts for parts, text, at in self._places[run[:RUN]] if text.startswith(run, at)}

    def literal_for(self, parts: Parts) -> str:
        """A literal that would tell a template, for the author of the test that is missing."""
        own = [text.strip() for text in parts if text and len(text.strip()) >= RUN]
        own = [text for text in own if self.owners(text) == {parts}]
        return max(own, key=len) if own else shown(parts, ".*").strip("`: ")


def unseen(every: Iterable[Site], literals: Iterable[str]) -> list[tuple[Site, Parts]]:
    """The templates that no literal tells, each with its place."""
    found = [(site, parts) for site in every for parts in (*site.templates, *site.parts) if not _told_by(site, parts)]
    texts, known = Texts(parts for _, parts in found), list(literals)
    seen = {parts for literal in known for piece in _pieces(literal) for parts in texts.told_by(piece)}
    plain = [_plain(literal) for literal in known]
    rest = [parts for parts in texts.templates if parts not in seen]
    seen |= {parts for parts in rest if any(map(_pattern(parts).search, plain))}
    return [(site, parts) for site, parts in found if parts not in seen]


OPEN = re.compile(r"(?<!\\)(?:\\[dSsw]|[.*+?|^$]|\[[^]]*\]|\(\?:?)+")
"""Where a regular expression leaves open what stands there."""


def _pieces(literal: str) -> set[str]:
    """A literal as text, and cut where it is a regular expression that leaves something open."""
    return {_plain(piece) for piece in (literal, *OPEN.split(literal))}


def _plain(text: str) -> str:
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text)


def _told_by(site: Site, parts: Parts) -> bool:
    """Whether a template has no word of its own, and its parts or a table have all of them."""
    silent = not any(re.search("[a-z]", text or "") for text in parts)
    return silent and (bool(site.parts) or site.where.split(":")[0] in OF_A_TABLE)


def _pattern(parts: Parts) -> re.Pattern[str]:
    """All the text of a template, around anything: what tells one that shares its words with others."""
    words = [re.escape(text.strip(" :`;.")) for text in parts if text and re.search("[a-z]", text)]
    return re.compile(r"\b" + ".*".join(words) + r"(?!\w)" if words else "(?!)", re.DOTALL)


@functools.cache
def literals() -> tuple[str, ...]:
    """Every string of the tests outside of this folder, docstrings aside and regular expressions unescaped."""
    found: list[str] = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        if file.parent.name != "house":
            found += _strings(ast.parse(file.read_text(encoding="utf-8")))
    return tuple(dict.fromkeys(found))


def _strings(tree: ast.Module) -> list[str]:
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    return [text for text in texts if isinstance(text, str)]


def test_every_message_is_seen_by_a_test() -> None:
    texts = Texts(parts for site in sites() for parts in (*site.templates, *site.parts))
    missing = [
        f"{site.where}: {site.kind}: no test sees {shown(parts)!r}\n"
        f"    a test with the literal {texts.literal_for(parts)!r} would"
        for site, parts in unseen(sites(), literals())
    ]
    assert not missing, "\n".join(missing)


def test_every_error_has_a_message() -> None:
    """Each call of a class was followed to its text; a class that is passed around to be called later is not."""
    assert len(sites()) > 700
    silent = [site.where for site in sites() if site.kind in CLASSES and not (site.templates or site.parts)]
    assert len(silent) < 10, silent  # the text of another error, with more said
