"""Every message of an error is seen by a test: some literal of the tests can come from that message alone."""

from __future__ import annotations

import ast
import builtins
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest

from tests.house.raised import CLASSES, Parts, Site, shown, sites, sites_of, words
from tests.house.source_tree import PACKAGE, ROOT, modules, parse

RUN = 10
"""So many letters in a row, in a literal and in one message alone, tell the message."""

NOT_OURS = ("NotExchanged", "NothingTaken")
"""Errors of the disk that are caught by who knows the file."""
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
            for text in _texts(parts):
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
                length = _common(literal[start:], text[at:])
                begins = start == 0 or at == 0
                ends = start + length == len(literal) or at + length == len(text)
                if begins and ends and self.owners(literal[start : start + length]) == {parts}:
                    yield parts

    def owners(self, run: str) -> set[Parts]:
        """The templates that have a run of letters."""
        return {parts for parts, text, at in self._places[run[:RUN]] if text.startswith(run, at)}

    def literal_for(self, parts: Parts) -> str:
        """A literal that would tell a template, for the author of the test that is missing."""
        own = [text.strip() for text in _texts(parts) if len(text.strip()) >= RUN]
        own = [text for text in own if self.owners(text) == {parts}]
        return max(own, key=len) if own else shown(parts, ".*").strip("`: ")


def _texts(parts: Parts) -> list[str]:
    return [part for part in parts if isinstance(part, str)]


def _common(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike)


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
    return not words(parts) and (bool(site.parts) or site.where.split(":")[0] in OF_A_TABLE)


def _pattern(parts: Parts) -> re.Pattern[str]:
    """All the text of a template, around anything: what tells one that shares its words with others."""
    said = [re.escape(text.strip(" :`;.")) for text in words(parts)]
    return re.compile(r"\b" + ".*".join(said) + r"(?!\w)" if said else "(?!)", re.DOTALL)


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


def test_every_raise_was_followed_to_its_message() -> None:
    """A call in a raise makes a known error, or belongs to a function of which the messages are known."""
    assert len(sites()) > 700
    makers = {
        node.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.returns is not None
        if set(re.findall(r"\w+", ast.unparse(node.returns))) & {*CLASSES, "NoReturn"}
    }
    known = {*CLASSES, *makers, *dir(builtins), "type", *NOT_OURS}
    found = [
        f"{module.at(node)}: raises {name}(), whose message the checks here can't read"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for name in [ast.unparse(node.exc.func).split("(")[0].rsplit(".", 1)[-1]]
        if name not in known and module.room != "compat"
    ]
    assert not found, "\n".join(found)


def test_few_errors_say_nothing_of_their_own() -> None:
    """They tell the text of another error, with more said."""
    silent = {site.where.split(":")[0] for site in sites() if not any(map(words, (*site.templates, *site.parts)))}
    passed_on = {
        "src/holdfast/formats/programs/schema.py",
        "src/holdfast/formats/programs/text.py",
        "src/holdfast/runs/manifest.py",
        "src/holdfast/runs/standing.py",
        "src/holdfast/serialization/reading.py",
    }
    assert silent <= passed_on | set(OF_A_TABLE)


# -- the checks can fail

SAMPLE = """
LIMIT = "at most ten"

def check(file, size, deep):
    if size > 10:
        raise RefusedFile(f"`{file}`: has {size} bytes, " + LIMIT)
    what = "begins with a byte of nonsense" if deep else "ends in the middle of a word"
    if deep is None:
        raise _lie(file, f"the head {what}")
    raise _lie(file, "two heads where one is wanted")

def _lie(file, what) -> CorruptFile:
    return CorruptFile(f"`{printable(file)}`: {what}: corrupt", file=file)
"""
TEMPLATES = [
    "`<file>`: has <size> bytes, at most ten",
    "`<file>`: the head <what>: corrupt",
    "begins with a byte of nonsense",
    "ends in the middle of a word",
    "`<file>`: two heads where one is wanted: corrupt",
]


def sample() -> list[Site]:
    return list(sites_of((parse(SAMPLE, PACKAGE / "formats" / "sample.py"),)))


def test_messages_are_read_through_constants_choices_and_makers() -> None:
    found = [shown(parts) for site in sample() for parts in (*site.templates, *site.parts)]
    assert found == TEMPLATES
    assert [site.kind for site in sample()] == ["RefusedFile", "CorruptFile", "CorruptFile"]
    assert [int(site.where.split(":")[1]) for site in sample()] == [6, 9, 10]


@pytest.mark.parametrize(
    ("literal", "told"),
    [
        ("has 12 bytes, at most ten", [0]),
        (r"a\.pt`: has \d+ bytes, at most", [0]),
        ("the head begins with a byte of nonsense: corrupt", [1, 2]),
        ("begins with a byte", [2]),
        ("two heads where one is", [4]),
        (r"two .* where one is wanted", [4]),
        ("corrupt", []),  # of both
        ("a byte of", []),  # too little
        ("is in the middle of nowhere", []),  # goes on otherwise
        ("where one is named", []),
        ("has two heads where one is enough", []),
    ],
)
def test_a_literal_tells_the_message_that_it_can_only_be_of(literal: str, told: list[int]) -> None:
    missing = {shown(parts) for _, parts in unseen(sample(), [literal])}
    assert [at for at, one in enumerate(TEMPLATES) if one not in missing] == told


def test_what_is_missing_is_said_with_a_literal_that_would_do() -> None:
    texts = Texts(parts for site in sample() for parts in (*site.templates, *site.parts))
    for template in texts.templates:
        assert template not in {parts for _, parts in unseen(sample(), [texts.literal_for(template)])}
