"""The 67 blocks as data: files of blocks/, each a list of entries, each entry a heading and named parts.

An entry begins with ``## KEY | field | field``; a part begins with ``--- NAME``. The parts are prose in two languages
and code that both pages have in common.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "blocks"
PREAMBLE = Path(__file__).parent / "preamble.py"
WORDS = ("OK", "WARNS", "RAISES", "SYNTAX", "SILENT", "GPU", "EMPTY")


class Entry(NamedTuple):
    """One entry: the fields of its heading and its parts by name."""

    fields: tuple[str, ...]
    parts: dict[str, str]

    def part(self, name: str) -> str:
        return self.parts.get(name, "")


class Block(NamedTuple):
    """One block of a tutorial.

    ``key`` is the tutorial and the line of its fence: ``004 L74``. ``result`` is what torch does with it today,
    ``recipes`` and ``lint`` where it is answered and which rules of ``holdfast lint`` find it.
    """

    key: str
    result: str
    recipes: tuple[str, ...]
    lint: tuple[str, ...]
    parts: dict[str, str]

    def part(self, name: str) -> str:
        return self.parts.get(name, "")


def entries(name: str) -> list[Entry]:
    """The entries of a file of blocks/."""
    found: list[Entry] = []
    part = ""
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            found.append(Entry(tuple(field.strip() for field in line[3:].split("|")), {}))
            part = ""
        elif line.startswith("--- "):
            part = line[4:].strip()
            found[-1].parts[part] = ""
        elif found and part:
            found[-1].parts[part] += line + "\n"
    return [Entry(one.fields, {name: text.strip("\n") + "\n" for name, text in one.parts.items()}) for one in found]


def blocks() -> list[Block]:
    """All blocks, tutorial by tutorial."""
    return [
        Block(key, result, tuple(recipes.split()), tuple(lint.split()), entry.parts)
        for file in sorted(FOLDER.glob("0*.txt"))
        for entry in entries(file.name)
        for key, result, recipes, lint in [entry.fields]
    ]


def preamble() -> str:
    """The code that every block begins with, without its docstring."""
    text = PREAMBLE.read_text(encoding="utf-8").replace("  # noqa: F401", "")
    return re.sub(r'\A""".*?"""\n+', "", text, flags=re.DOTALL)
