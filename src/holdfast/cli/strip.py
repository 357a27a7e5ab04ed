"""``holdfast strip``: the weights of a checkpoint alone."""

from __future__ import annotations

import click

from holdfast.cli.progress import progress
from holdfast.cli.surgery import at_option, output_options, tell


@click.command("strip", epilog="Example: holdfast strip runs/a@best net.safetensors")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@at_option
@output_options
def command(a: str, b: str, at: str | None, wanted: str | None, as_json: bool) -> None:
    """Write the model's weights of A (a file, checkpoint or reference) alone as B, and say what was left out."""
    from holdfast.surgery import strip

    with progress(f"writing {b}", quiet=as_json):
        report = strip(a, b, at=at, format=wanted)
    tell(report, as_json=as_json)
