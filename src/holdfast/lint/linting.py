"""One script from its file to the mistakes in it."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Collection
from typing import NamedTuple

from holdfast.errors import ArgumentError, RefusedFile
from holdfast.lint.checkpoints import Checkpoints
from holdfast.lint.fixing import fixed
from holdfast.lint.rule import Edit, Rule, Seen
from holdfast.lint.rules import RULES
from holdfast.lint.script import Placed, Script
from holdfast.lint.source import read_source
from holdfast.state.paths import printable

MOST_CHECKPOINTS = 2_000
_IGNORE = re.compile(r"#\s*holdfast:\s*ignore(?:\[([\w\s,-]*)\])?")


class Finding(NamedTuple):
    """One mistake in a script: which rule, where, what goes wrong, and what to type instead.

    ``place`` is ``train.py:12``, or ``notes.ipynb:cell 3:12``; ``line`` and ``column`` count from 1.
    """

    rule: Rule
    place: str
    line: int
    column: int
    what: str
    instead: str
    edit: Edit | None


class Linted(NamedTuple):
    """What was found in one script.

    ``diff`` is the change that types the fixes, "" where there is none; ``encoding`` is that of the script.
    """

    file: str
    findings: tuple[Finding, ...]
    diff: str
    encoding: str


def lint(file: str, *, select: Collection[str] = (), ignore: Collection[str] = ()) -> Linted:
    """Reads a script and finds the mistakes in it. Nothing of it is imported or run.

    Args:
        file: path of a script or a notebook.
        select: codes or names of the only rules to apply; all of them by default.
        ignore: codes or names of rules to leave out.

    Raises:
        NotFound: there is no such file.
        UnknownFormat: it is no Python; the message has the line.
        RefusedFile: it is larger or nested deeper than scripts are.
        ArgumentError: there is no rule of that name.
    """
    rules = _chosen(select, ignore)
    source = read_source(file)
    try:
        script = Script(source)
        seen = Seen(script, _checkpoints(script))
        found = [(one, found) for one in rules for found in one.find(seen)]
    except RecursionError as error:
        raise RefusedFile(f"`{printable(file)}`: is nested too deep to be read", file=file) from error
    ignored = _ignored(source.text)
    findings = []
    for one, item in found:
        line, column = item.node.lineno, item.node.col_offset + 1
        lines = range(line, _end(script, item.node) + 1) if ignored else ()
        if not any(_covers(ignored.get(at, ()), one) for at in lines):
            findings.append(Finding(one, source.place(line), line, column, item.what, item.instead, item.edit))
    findings.sort(key=lambda one: (one.line, one.column, one.rule.code))
    edits = [one.edit for one in findings if one.edit is not None and source.takes_diffs]
    return Linted(file, tuple(findings), fixed(script, edits), source.encoding)


def _checkpoints(script: Script) -> Checkpoints:
    """What a script saves and restores; each of these is looked for in all of the script, so they are counted first."""
    found = Checkpoints(script)
    count = len(script.calls_by["save"]) + len(script.calls_by["load"]) + len(script.calls_by["load_state_dict"])
    if count > MOST_CHECKPOINTS:
        problem = f"saves and loads in {count:,} places, and no script does in more than {MOST_CHECKPOINTS:,}"
        raise RefusedFile(f"`{printable(script.source.file)}`: {problem}", file=script.source.file)
    return found


def _chosen(select: Collection[str], ignore: Collection[str]) -> list[Rule]:
    known = {name for one in RULES for name in (one.code, one.name)}
    for name in (*select, *ignore):
        if name not in known:
            raise ArgumentError(f"no rule `{printable(name)}`: there are {RULES[0].code} to {RULES[-1].code}")
    return [r for r in RULES if (not select or {r.code, r.name} & {*select}) and not {r.code, r.name} & {*ignore}]


def _end(script: Script, node: Placed) -> int:
    """The last line of the statement that a node is in; the first of one that has others inside."""
    statement = script.statement(node)
    whole = statement is not None and not hasattr(statement, "body")
    return statement.end_lineno or node.lineno if whole and statement is not None else node.lineno


def _ignored(text: str) -> dict[int, tuple[str, ...]]:
    """For each line with ``# holdfast: ignore[HF001]`` what it names; ``("*",)`` where it names nothing."""
    found: dict[int, tuple[str, ...]] = {}
    if "holdfast:" not in text:
        return found
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            match = _IGNORE.search(token.string) if token.type == tokenize.COMMENT else None
            if match:
                names = match[1].replace(",", " ").split() if match[1] is not None else ["*"]
                found[token.start[0]] = tuple(names)
    except (tokenize.TokenError, SyntaxError):
        pass  # what the parser read and this does not: no comment of ours is in it
    return found


def _covers(names: Collection[str], one: Rule) -> bool:
    return bool({"*", one.code, one.name} & {*names})
