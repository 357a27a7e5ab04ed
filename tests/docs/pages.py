"""Fenced blocks of a Markdown page, and how each is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

FENCE = re.compile(
    r"^```([\w{}-]*)[ \t]*\n(.*?)^```[ \t]*$|^<!-- preamble -->$|^#+ ([^\n]+)$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """One fenced block, heading or mark: its kind (``python``, ``console``, ``text``, ``heading``), text and line."""

    kind: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        """Whether there is something to run in it."""
        return self.kind == "python" or any(command.arguments[0] == "holdfast" for command in commands(self))


def pages() -> list[str]:
    """All pages: the READMEs and docs/, without what was built of it."""
    found = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page.relative_to(ROOT).as_posix() for page in found if "_build" not in page.parts)


def translated() -> list[tuple[str, str]]:
    """The pages of docs/ that are there in two languages."""
    return [(page.replace(".zh-CN", ""), page) for page in pages() if page.startswith("docs/") and ".zh-CN" in page]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, top to bottom. ``<!-- preamble -->`` asks for tests/docs/preamble.py."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match[0].startswith("```"):
            found.append(Block(match[1], match[2], line + 1))
        elif match[3]:
            found.append(Block("heading", match[3], line))
        else:
            found.append(Block("preamble", "", line))
    return found


def recipes(page: str) -> list[tuple[str, list[Block]]]:
    """Each recipe's name (``R2``) with the blocks under its heading, in the page's order."""
    found: list[tuple[str, list[Block]]] = []
    for block in blocks(page):
        if block.kind == "heading":
            match = re.match(r"R\d+", block.text)
            found.append((match[0] if match else "", []))
        elif found:
            found[-1][1].append(block)
    return found


class Command(NamedTuple):
    """One ``$`` line of a console block with the output shown below it."""

    arguments: list[str]
    shown: str


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for line in block.text.splitlines() if block.kind == "console" else ():
        if line.startswith("$ "):
            found.append(Command(shlex.split(line[2:], comments=True), ""))
        elif found:
            found[-1] = found[-1]._replace(shown=found[-1].shown + line + "\n")
    return found
