"""``holdfast verify``: every digest and CRC of a file, a checkpoint or a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, size_text
from holdfast.runs.verify import Verified, VerifyReport, verify
from holdfast.state.paths import printable

_COLOURS = {"OK": "green", "CORRUPT": "red", "NOT VERIFIABLE": "yellow"}
_CODES = {"OK": 0, "CORRUPT": 2, "NOT VERIFIABLE": 0}
NOT_VERIFIABLE_STRICT = 1


@click.command("verify", epilog="Example: holdfast verify runs/a@best")
@click.argument("f", metavar="F")
@click.option("--strict", is_flag=True, help="Exit with 1 when something is NOT VERIFIABLE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(f: str, strict: bool, as_json: bool) -> int:
    """Read every stored byte of F (a file, a checkpoint, a whole run) and compare it with its digest or CRC.

    OK: all of it matches. CORRUPT: the damaged tensors and bytes are named; exit code 2. NOT VERIFIABLE: the format
    holds no digests for some of it, and nothing contradicts it.
    """
    with _progress(quiet=as_json) as progress:
        report = verify(f, progress=progress)
    if as_json:
        say_json(_as_json(report))
    else:
        for item in report.items:
            _print(item)
        if not report.items:
            say(f"{printable(f)}: no checkpoint to verify")
    return NOT_VERIFIABLE_STRICT if strict and report.status == "NOT VERIFIABLE" else _CODES[report.status]


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """A line on a terminal that says what is being read; nothing elsewhere, where the results come line by line."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda name: status.update(Text(f"reading {printable(name)}"))


def _print(item: Verified) -> None:
    checked = f"{size_text(item.checked)} match" if item.status == "OK" else f"{size_text(item.checked)} compared"
    unchecked = f", {size_text(item.unchecked)} without digest" if item.unchecked else ""
    say(f"{coloured(item.status, _COLOURS[item.status])}  {printable(item.file)}  {checked}{unchecked}")
    for one in item.findings:
        place = "" if one.file == item.file or one.problem.startswith("`") else f"{printable(one.file)}: "
        name = "" if one.problem.startswith("`") else f"{printable(one.name)}: "
        say(f"  {place}{name}{one.problem}")


def _as_json(report: VerifyReport) -> dict[str, Any]:
    return {
        "file": report.file,
        "status": report.status,
        "items": [
            {
                "file": item.file,
                "step": item.step,
                "status": item.status,
                "checked": item.checked,
                "unchecked": item.unchecked,
                "findings": [
                    {
                        "file": one.file,
                        "name": one.name,
                        "problem": one.problem,
                        "offset": one.offset,
                        "length": one.length,
                        "expected": one.expected,
                        "found": one.found,
                    }
                    for one in item.findings
                ],
            }
            for item in report.items
        ],
    }
