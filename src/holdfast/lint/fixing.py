"""Edits as a unified diff. Nothing is written: who likes the diff gives it to ``patch``."""

from __future__ import annotations

import ast
import difflib
import io
from collections.abc import Iterable

from holdfast.lint.rule import Edit
from holdfast.lint.script import Script
from holdfast.state.paths import printable


def fixed(script: Script, edits: Iterable[Edit]) -> str:
    """The diff that makes as many of the edits as do not overlap; "" where there is none to make."""
    text = script.source.text
    taken: list[Edit] = []
    for one in sorted(set(edits), key=lambda one: (one.start, -one.end)):  # the larger of two that begin together
        if not taken or one.start >= taken[-1].end:
            taken.append(one)
    if not taken:
        return ""
    newline = "\r\n" if script.lines[0].endswith("\r\n") else "\n"
    for one in reversed(taken):
        text = text[: one.start] + one.text.replace("\n", newline) + text[one.end :]
    if any(one.needs for one in taken) and "holdfast" not in script.aliases:
        at = script.offset(_first_import(script), 0)
        text = f"{text[:at]}import holdfast{newline}{text[at:]}"
    return _diff(script.source.file, script.lines, io.StringIO(text, newline="").readlines())


def _first_import(script: Script) -> int:
    """The line that ``import holdfast`` goes before: the first import, else the first statement, of the module."""
    body = script.tree.body
    for node in body:
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if isinstance(node, ast.Import | ast.ImportFrom) and not is_future:
            return node.lineno
    skipped = 0
    for node in body:
        is_docstring = node is body[0] and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        skipped += 1
    first = body[min(skipped, len(body) - 1)]
    decorators = getattr(first, "decorator_list", [])
    return decorators[0].lineno if decorators else first.lineno


def _diff(file: str, before: list[str], after: list[str]) -> str:
    parts = []
    name = printable(file.lstrip("/"))
    for line in difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"):
        parts.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(parts)
