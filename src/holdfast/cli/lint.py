"""``holdfast lint``: the mistakes in a training script, found by reading it."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json
from holdfast.errors import HoldfastError, NotFound
from holdfast.lint.linting import Finding, Linted, lint
from holdfast.lint.rules import RULES
from holdfast.state.paths import printable

FINDINGS = 1


@click.command("lint", epilog="Example: holdfast lint train.py --fix | patch -p1")
@click.argument("scripts", metavar="SCRIPT...", nargs=-1, required=True)
@click.option("--select", metavar="HF001,...", default="", help="Apply these rules and no others.")
@click.option("--ignore", metavar="HF001,...", default="", help="Leave these rules out.")
@click.option("--fix", is_flag=True, help="Print a diff that types the fixes. Nothing is written.")
@click.option("--why", is_flag=True, help="Say with each finding why it is a mistake.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(scripts: tuple[str, ...], select: str, ignore: str, fix: bool, why: bool, as_json: bool) -> int:
    """Find what goes wrong with checkpoints in SCRIPT: a .py, an .ipynb or a folder of them. Nothing of it is run.

    Each finding has the line to type instead. Exit code 1 when there are any, 2 when a script is no Python.
    A comment `# holdfast: ignore[HF001]` on the line says that it is meant.
    """
    linted: list[Linted] = []
    problems: list[HoldfastError] = []
    for file in _files(scripts):
        try:
            linted.append(lint(file, select=_names(select), ignore=_names(ignore)))
        except HoldfastError as error:
            if len(scripts) == 1 and file == scripts[0]:
                raise
            problems.append(error)
    if as_json:
        say_json({"files": [_as_json(one) for one in linted], "problems": [str(one) for one in problems]})
    elif fix:
        for one in linted:
            click.echo(_shown_diff(one), nl=False)
    else:
        for one in linted:
            _print(one, why)
    for problem in problems:
        click.echo(f"holdfast: {problem}", err=True)
    found = FINDINGS if any(one.findings for one in linted) else 0
    return max([found, *(one.exit_code for one in problems)])


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _files(scripts: tuple[str, ...]) -> list[str]:
    """The scripts that are named, and those in the folders that are; what a folder links to is left alone."""
    found: list[str] = []
    for script in scripts:
        if not os.path.isdir(script):
            found.append(script)
            continue
        inside = [os.path.join(top, name) for top, _, names in os.walk(script) for name in names]
        inside = sorted(one for one in inside if one.endswith((".py", ".ipynb")) and not os.path.islink(one))
        if not inside:
            raise NotFound(f"`{printable(script)}`: has no .py or .ipynb in it", file=script)
        found += inside
    return found


def _as_json(one: Linted) -> dict[str, Any]:
    return {
        "file": one.file,
        "findings": [
            {
                "code": found.rule.code,
                "name": found.rule.name,
                "place": found.place,
                "line": found.line,
                "column": found.column,
                "what": found.what,
                "instead": found.instead,
                "fixable": found.edit is not None,
            }
            for found in one.findings
        ],
        "diff": one.diff,
    }


def _print(one: Linted, why: bool) -> None:
    for found in one.findings:
        _print_finding(found, why)
    file, count = printable(one.file), len(one.findings)
    if not count:
        say(f"{file}: nothing found; {len(RULES)} rules looked")
        return
    fixes = sum(found.edit is not None for found in one.findings) if one.diff else 0
    more = f"; `holdfast lint {file} --fix` prints a diff for {fixes}" if fixes else ""
    say(f"{file}: {count} finding{'s' if count > 1 else ''}{more}")


def _print_finding(found: Finding, why: bool) -> None:
    code = coloured(found.rule.code, "yellow")
    say(f"{printable(found.place)}: {code} {found.rule.name}: {printable(found.what)}")
    if why:
        for line in found.rule.why.splitlines():
            say(f"    {line}".rstrip())
    say(f"    type: {printable(found.instead)}")


def _shown_diff(one: Linted) -> str | bytes:
    """The diff in the script's own bytes, for ``patch``; on a terminal without what could move its cursor."""
    if not sys.stdout.isatty():
        return one.diff.encode(one.encoding, "surrogateescape")
    return "".join(f"{printable(line.expandtabs())}\n" for line in one.diff.split("\n")[:-1])
