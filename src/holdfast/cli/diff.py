"""``holdfast diff``: what two files, checkpoints or runs do not have in common."""

from __future__ import annotations

from contextlib import ExitStack

import click

from holdfast.cli.output import coloured, say, say_json
from holdfast.cli.progress import progress
from holdfast.runs.comparing import Contents, compare, opened
from holdfast.state.diff import Diff
from holdfast.state.diff_text import diff_lines

DIFFERS = 1


@click.command("diff", epilog="Example: holdfast diff runs/a@best runs/a@last")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--keys", "glob", metavar="GLOB", help="Only what has a matching path; * also crosses dots.")
@click.option("--quick", is_flag=True, help="Only whether bytes differ, not by how much: torch is not loaded.")
@click.option("--all", "everything", is_flag=True, help="Every line: no list is cut.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(a: str, b: str, glob: str | None, quick: bool, everything: bool, as_json: bool) -> int:
    """Compare A with B (files, checkpoints, runs or references): every tensor, every plain value, every name.

    Tensors are changed (with the norm of B - A, that norm relative to A, the largest difference and the cosine; without
    torch only that they differ), recast, reshaped, renamed, or on one side only. Names that only wrappers such as
    'module.' tell apart are the same. Exits 1 when anything differs.
    """
    with ExitStack() as stack, progress(f"{a} -> {b}", quiet=as_json):
        left, right = (stack.enter_context(opened(one)) for one in (a, b))
        found = compare(left, right, glob)
        if (found.changed or found.recast) and not quick:
            found = _measured(found, left, right)
    if as_json:
        say_json(found.to_dict())
    else:
        head, *rest = diff_lines(found, everything=everything)
        say(coloured(head, "green" if found.identical else "yellow"))
        for line in rest:
            say(line)
    return 0 if found.identical else DIFFERS


def _measured(found: Diff, left: Contents, right: Contents) -> Diff:
    """With numbers where torch is installed; what differs is known without it."""
    try:
        from holdfast.api import measured
    except ModuleNotFoundError:
        found.notes.append("torch is not installed, so it is not said by how much tensors differ")
        return found
    return measured(found, left, right)
