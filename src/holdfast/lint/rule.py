"""What a rule is, and what it finds."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

from holdfast.lint.checkpoints import Checkpoints, Save
from holdfast.lint.script import Placed, Script


class Edit(NamedTuple):
    """Characters ``start`` to ``end`` of a script become ``text``; ``needs`` is a module to import for it."""

    start: int
    end: int
    text: str
    needs: str | None = "holdfast"


class Found(NamedTuple):
    """One mistake: where, what goes wrong, what to type instead, and the edit that types it, where one can."""

    node: Placed
    what: str
    instead: str
    edit: Edit | None = None


class Seen(NamedTuple):
    """What a rule looks at."""

    script: Script
    checkpoints: Checkpoints

    def text(self, node: Placed) -> str:
        """The source of a node on one line."""
        return self.script.text(node)

    def file_of(self, save: Save) -> str:
        """The file of a save as the script writes it."""
        return self.text(save.file) if save.file is not None else "file"

    def replaced(self, node: ast.expr, text: str, needs: str | None = "holdfast") -> Edit:
        """The edit that puts ``text`` in the place of ``node``."""
        start = self.script.offset(node.lineno, node.col_offset)
        end = self.script.offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
        return Edit(start, end, text, needs)

    def by_holdfast(self, save: Save) -> Edit | None:
        """The edit that lets holdfast do a save; None where torch.save is given what holdfast.save does not take."""
        call = save.call.node
        plain = len(call.args) <= 2 and all(one.arg in ("obj", "f") for one in call.keywords) and save.file is not None
        return self.replaced(call.func, "holdfast.save") if plain else None


Find = Callable[[Seen], Iterator[Found]]


class Rule(NamedTuple):
    """A mistake that can be found: its code, its name, why it is one, and how it is found."""

    code: str
    name: str
    why: str
    find: Find


def rule(code: str, name: str) -> Callable[[Find], Rule]:
    """Makes a rule of a function; the function's docstring is the why."""

    def made(find: Find) -> Rule:
        return Rule(code, name, inspect.cleandoc(find.__doc__ or ""), find)

    return made
