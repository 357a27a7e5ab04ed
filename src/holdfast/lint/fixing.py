"""Edits as a unified diff. Nothing is written: who likes the diff gives it to ``patch``."""

from __future__ import annotations

import ast
import difflib
import io
import warnings
from collections.abc import Iterable

from holdfast.lint.rule import Edit
from holdfast.lint.script import Script
from holdfast.state.paths import printable

MOST_TRIED = 100
"""Edits that are tried one by one where all together are no Python."""


def fixed(script: Script, edits: Iterable[Edit]) -> str:
    """The diff that makes as many of the edits as do not overlap; "" where there is none to make."""
    taken: list[Edit] = []
    for one in sorted(set(edits), key=lambda one: (one.start, -one.end)):  # the larger of two that begin together
        if not taken or one.start >= taken[-1].end:
            taken.append(one)
    if not taken:
        return ""
    if not _parses(_edited(script, taken)):  # parentheses around an argument, say: each by itself
        taken = [one for one in taken[:MOST_TRIED] if _parses(_edited(script, [one]))]
    after = io.StringIO(_edited(script, taken), newline="").readlines()
    return _diff(script.source.file, script.lines, after)


def _edited(script: Script, edits: list[Edit]) -> str:
    """The text with edits that stand in their order and do not overlap."""
    text, newline = script.source.text, "\r\n" if script.lines[0].endswith("\r\n") else "\n"
    parts, at = [], 0
    for one in edits:
        parts += [text[at : one.start], one.text.replace("\n", newline)]
        at = one.end
    text = "".join([*parts, text[at:]])
    if any(one.needs for one in edits) and "holdfast" not in script.aliases:
        start = script.offset(_first_import(script), 0)
        text = f"{text[:start]}import holdfast{newline}{text[start:]}"
    return text


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except SyntaxError:
            return False
    return True


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
