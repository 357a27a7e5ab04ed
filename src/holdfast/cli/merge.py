"""``holdfast merge``: several files as one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from holdfast.cli.progress import progress
from holdfast.cli.surgery import output_options, tell
from holdfast.errors import ArgumentError
from holdfast.state.paths import printable


@click.command("merge", epilog="Example: holdfast merge model=net.pt optimizer=opt.pt -o checkpoint.pt")
@click.argument("files", metavar="[NAME=]F...", nargs=-1, required=True)
@click.option("-o", "--output", "out", required=True, metavar="OUT", help="The file to write.")
@output_options
def command(files: tuple[str, ...], out: str, wanted: str | None, as_json: bool) -> None:
    """Write several files as one: NAME=F puts each under its name, F alone puts the keys of all side by side.

    Exits 1 when two files have the same key.
    """
    from holdfast.surgery import merge

    with progress(f"writing {out}", quiet=as_json):
        report = merge(_sources(files), out, format=wanted)
    tell(report, as_json=as_json)


def _sources(files: Sequence[str]) -> dict[str, str] | list[str]:
    """Files by name when all have one; a file whose own name has a = in it, or a reference, is none of these."""
    named = [_named(one) for one in files]
    found = [one for one in named if one is not None]
    if not found:
        return list(files)
    names = [name for name, _ in found]
    if len(found) < len(files) or len(set(names)) < len(names):
        raise ArgumentError(f"give every file a name of its own, or none: {', '.join(map(printable, files))}")
    return dict(found)


def _named(text: str) -> tuple[str, str] | None:
    name, sign, file = text.partition("=")
    if not sign or not name or os.path.lexists(text) or "/" in name or "@" in name:
        return None
    return name, file
