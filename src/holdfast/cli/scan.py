"""``holdfast scan``: what a pickle would import and call, found without running it."""

from __future__ import annotations

import os
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, say_table
from holdfast.errors import NotFound
from holdfast.formats.scan import Found, PickleFound, ScanReport, scan
from holdfast.state.paths import printable

DANGEROUS = 2
_LONG = 200
_COLOURS = {"dangerous": "red", "unknown": "yellow"}
_ADVICE = {
    "plain": "nothing in it asks to run code",
    "torch": "would make objects of torch's own classes",
    "unknown": "would import code that is not known to be harmless; holdfast rescue and restore need none of it",
    "dangerous": "could run any code if it were unpickled: do not",
}


@click.command("scan", epilog="Example: holdfast scan downloaded_model.pth")
@click.argument("f", metavar="F")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(f: str, as_json: bool) -> int:
    """Say what the pickles in F (a file, or every file of a folder) would import and call. Nothing is executed.

    Exit code 2 when a pickle would run code of its own, or can't be looked into.
    """
    reports = [scan(file) for file in _files(f)]
    if as_json:
        say_json([_as_json(report) for report in reports])
    else:
        for report in reports:
            _print(report)
    return DANGEROUS if any(report.is_dangerous for report in reports) else 0


def _files(f: str) -> list[str]:
    """The file, or the files of a folder and what is below it; links are not followed."""
    if not os.path.isdir(f):
        return [f]
    found = [os.path.join(top, name) for top, _, names in os.walk(f) for name in names]
    files = sorted(file for file in found if os.path.isfile(file) and not os.path.islink(file))
    if not files:
        raise NotFound(f"`{printable(f)}`: has no files", file=f)
    return files


def _as_json(report: ScanReport) -> dict[str, Any]:
    return {
        "file": report.file,
        "verdict": report.verdict,
        "dangerous": report.is_dangerous,
        "pickles": [
            {
                "where": one.where,
                "offset": one.offset,
                "problem": one.problem,
                "names": [
                    {"name": name.name, "verdict": name.verdict, "why": name.why, "calls": name.calls}
                    for name in one.names
                ],
            }
            for one in report.pickles
        ],
        "problems": report.problems,
        "program": None
        if report.program is None
        else [{"member": one.member, "what": one.what} for one in report.program],
    }


def _print(report: ScanReport) -> None:
    if not report.pickles and not report.problems and report.program is None:
        say(f"{printable(report.file)}: holds no pickle: nothing in it can run code")
        return
    verdict = coloured(report.verdict, _COLOURS.get(report.verdict, "green"))
    advice = _ADVICE[report.verdict]
    if report.program:
        advice = "its program may run code of its own in torch.export.load: do not; holdfast.load reads its weights"
    if report.unread and report.verdict != "dangerous":
        verdict, advice = coloured("not scanned", "red"), "a part of it could not be looked into: do not unpickle it"
    say(f"{printable(report.file)}: {verdict}: {advice}")
    if report.program is not None and not report.program:
        say("  its program of torch.export: every part is known to be harmless")
    for finding in report.program or ():
        say(f"  its program: {printable(finding.member)}: {printable(finding.what)}")
    for one in report.pickles:
        if len(report.pickles) > 1 and one.names:
            say(f"  {printable(one.where or 'pickle')} at byte {one.offset:,}")
        _print_names(one)
    for problem in report.unread:
        say(f"  can't be looked into: {printable(problem)}")


def _print_names(one: PickleFound) -> None:
    rows = [
        [f"  {name.verdict}", printable(name.name[:_LONG]), _times(name), printable(name.why[:_LONG])]
        for name in sorted(
            one.names, key=lambda name: (name.verdict != "dangerous", name.verdict != "unknown", name.name)
        )
    ]
    if rows:
        say_table(["  verdict", "would import", "calls", ""], rows, right=(2,))


def _times(name: Found) -> str:
    return str(name.calls) if name.calls else "-"
