"""``holdfast verify``: every digest and CRC of a file, a checkpoint or a run."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, size_text
from holdfast.cli.progress import progress
from holdfast.errors import ArgumentError
from holdfast.runs.catalog import is_run
from holdfast.runs.layout import MANIFEST, parse_step
from holdfast.runs.lock import lock_run
from holdfast.runs.moves import quarantine
from holdfast.runs.verify import Verified, VerifyReport, verify
from holdfast.state.paths import printable
from holdfast.storage.places import is_folder, is_there

_COLOURS = {"OK": "green", "CORRUPT": "red", "NOT VERIFIABLE": "yellow"}
_CODES = {"OK": 0, "CORRUPT": 2, "NOT VERIFIABLE": 0}
NOT_VERIFIABLE_STRICT = 1


@click.command("verify", epilog="Example: holdfast verify runs/a@best")
@click.argument("f", metavar="F")
@click.option("--strict", is_flag=True, help="Exit with 1 when something is NOT VERIFIABLE.")
@click.option("--set-aside", is_flag=True, help="Move the damaged steps of the run F to quarantine/.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(f: str, strict: bool, set_aside: bool, as_json: bool) -> int:
    """Read every stored byte of F (a file, a checkpoint, a whole run) and compare it with its digest or CRC.

    OK: all of it matches. CORRUPT: the damaged tensors and bytes are named; exit code 2. NOT VERIFIABLE: the format
    holds no digests for some of it, and nothing contradicts it.

    A training that resumes sets a damaged step aside by itself; --set-aside does it now.
    """
    whole_run = is_folder(f) and is_run(f) and not is_there(os.path.join(f, MANIFEST))
    if set_aside and not whole_run:
        raise ArgumentError(f"`{printable(f)}`: is no run's folder: only steps of a run can be set aside", file=f)
    with lock_run(f) if set_aside else contextlib.nullcontext():
        with progress(f, quiet=as_json) as meter:
            report = verify(f, progress=meter.turn_to)
        damaged = [one for one in report.items if whole_run and one.status == "CORRUPT"]
        moved = [quarantine(f, _step(one), _reason(one)) for one in damaged] if set_aside else []
    if as_json:
        say_json({**_as_json(report), "set_aside": moved})
    else:
        _print_report(report, damaged, moved)
    return NOT_VERIFIABLE_STRICT if strict and report.status == "NOT VERIFIABLE" else _CODES[report.status]


def _step(item: Verified) -> int:
    """The step of a damaged item by its folder's name: its manifest may say another, or none."""
    return parse_step(os.path.basename(item.file)) or 0


def _reason(item: Verified) -> str:
    """What reason.json says: the first damage, and how much more there is."""
    first, more = item.findings[0], len(item.findings) - 1
    text = first.problem if first.problem.startswith("`") else f"{first.file}: {first.name}: {first.problem}"
    return f"{text}; {more} more" if more else text


def _print_report(report: VerifyReport, damaged: list[Verified], moved: list[str]) -> None:
    for item in report.items:
        _print(item)
    if not report.items:
        say(f"{printable(report.file)}: no checkpoint to verify")
    for folder in moved:
        say(coloured(f"set aside: {printable(folder)}", "yellow"))
    if damaged and not moved:
        steps = ", ".join(str(_step(item)) for item in damaged)
        root = printable(report.file)
        say(f"to set aside step {steps}, as a training that resumes does: holdfast verify {root} --set-aside")


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
