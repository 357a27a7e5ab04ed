"""``holdfast extract``: one part of a file."""

from __future__ import annotations

import click

from holdfast.cli.progress import progress
from holdfast.cli.surgery import output_options, tell


@click.command("extract", epilog="Example: holdfast extract last.ckpt model.encoder -o encoder.safetensors")
@click.argument("f", metavar="F")
@click.argument("part")
@click.option("-o", "--output", "out", required=True, metavar="OUT", help="The file to write.")
@output_options
def command(f: str, part: str, out: str, wanted: str | None, as_json: bool) -> None:
    """Write PART of F (a file, checkpoint or reference), named by its dotted path, as a file of its own.

    A path that several names of weights begin with, such as model.encoder, takes these, without it.
    """
    from holdfast.surgery import extract

    with progress(f"writing {out}", quiet=as_json):
        report = extract(f, out, part, format=wanted)
    tell(report, as_json=as_json)
