"""Writes docs/tutorials.md and docs/tutorials.zh-CN.md out of blocks/: ``python -m tests.tutorials.page``."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.docs.pages import ROOT
from tests.docs.pages import blocks as blocks_of
from tests.tutorials.blocks import WORDS, Block, Entry, blocks, entries, preamble


class Language(NamedTuple):
    """One page: the language of its prose, its file, and the page of recipes that it leads to."""

    code: str
    page: str
    recipes: str

    def word(self, name: str) -> str:
        """Something that the page says beside the blocks."""
        return WORDS_OF_PAGE[name].part(self.code).strip()


ENGLISH = Language("en", "docs/tutorials.md", "recipes.md")
CHINESE = Language("zh", "docs/tutorials.zh-CN.md", "recipes.zh-CN.md")
WORDS_OF_PAGE = {entry.fields[0]: entry for entry in entries("words.txt")}
"""What the pages say beside the blocks."""


def write_page(language: Language) -> str:
    """The whole page."""
    return "\n\n".join(_sections(language)).rstrip() + "\n"


def _sections(language: Language) -> Iterator[str]:
    word, found = language.word, blocks()
    anchors = recipe_anchors(language)
    yield f"# {word('title')}\n\n<!-- written by `python -m tests.tutorials.page` -->"
    yield word("intro")
    yield f"## {word('tally')}\n\n{_tally(language, found)}"
    yield f"## {word('preamble')}\n\n{_fenced('python', preamble())}"
    yield f"## {word('all')}\n\n{_index(language, found)}"
    tutorial = ""
    for block in found:
        if block.key.split()[0] != tutorial:
            tutorial = block.key.split()[0]
            yield f"## {word(tutorial)}"
        yield from _block(language, block, anchors)
    yield f"## {word('exercises')}"
    for exercise in entries("exercises.txt"):
        title, text = _prose(exercise, language.code)
        yield f"### {exercise.fields[0]} {title}\n\n{text}"
        yield _fenced("python", exercise.part("code"))
        yield _fenced("text", exercise.part("gives"))
    yield f"## {word('statements')}\n\n{_statements(language)}"


def _block(language: Language, block: Block, anchors: dict[str, str]) -> Iterator[str]:
    word, code = language.word, language.code
    title, text = _prose(block, code)
    yield f'<a id="{_anchor(block)}"></a>\n\n### {block.key} {title}'
    if text:
        yield text
    if block.part("given"):
        yield f"{word('before')}\n\n{_fenced('python', block.part('given'))}"
    yield f"{word('typed')}\n\n{_fenced('python', block.part('typed'))}"
    yield word("now").format(block.result, block.part(f"{code} today").strip())
    if block.part("shows"):
        yield _fenced("text", block.part("shows"))
    links = ", ".join(f"[{name}]({anchors[name]})" for name in block.recipes)
    yield word("type").format(links, block.part(f"{code} type").strip()).rstrip()
    if block.part("also given"):
        yield f"{word('also')}\n\n{_fenced('python', block.part('also given'))}"
    yield _fenced("python", block.part("type"))
    if block.part("gives"):
        yield _fenced("text", block.part("gives"))


def _prose(entry: Block | Entry, code: str) -> tuple[str, str]:
    """The heading of an entry and the text below it."""
    title, _, text = entry.part(code).strip().partition("\n")
    return title, text.strip()


def _fenced(kind: str, text: str) -> str:
    return f"```{kind}\n{text.strip(chr(10))}\n```"


def _tally(language: Language, found: list[Block]) -> str:
    word, counts = language.word, collections.Counter(block.result for block in found)
    rows = [f"| {one} | {word(one)} | {counts[one]} |" for one in WORDS]
    return _table([word("word"), word("means"), word("blocks")], rows)


def _index(language: Language, found: list[Block]) -> str:
    word = language.word
    rows = []
    for block in found:
        lint = ", ".join(f"[{code}](lint.md#{code.lower()})" for code in block.lint)
        title, _ = _prose(block, language.code)
        rows.append(
            f"| [{block.key}](#{_anchor(block)}) | {title} | {block.result} | {' '.join(block.recipes)} | {lint} |"
        )
    return _table([word(name) for name in ("block", "said", "today", "recipe", "lint")], rows)


def _statements(language: Language) -> str:
    word, code = language.word, language.code
    rows = [
        f"| {entry.fields[0]} | {entry.part(code).strip()} | {entry.part(f'{code} today').strip()} |"
        for entry in entries("statements.txt")
    ]
    return _table([word("where"), word("said"), word("today")], rows)


def _table(header: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *rows])


def _anchor(block: Block) -> str:
    return block.key.lower().replace(" ", "-")


def recipe_anchors(language: Language) -> dict[str, str]:
    """Where each recipe stands on the page of recipes: ``recipes.md#r2-save-and-load-the-parameters``."""
    headings = [block.text for block in blocks_of(f"docs/{language.recipes}") if re.match(r"R\d+ ", block.text)]
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {heading.split()[0]: f"{language.recipes}#{slug}" for heading, slug in zip(headings, slugs, strict=True)}


if __name__ == "__main__":
    for one in (ENGLISH, CHINESE):
        (ROOT / one.page).write_text(write_page(one), encoding="utf-8")
