"""``holdfast average``: the average of several checkpoints' weights."""

from __future__ import annotations

from typing import Literal

import click

from holdfast.cli.progress import progress
from holdfast.cli.surgery import at_option, output_options, tell
from holdfast.errors import ArgumentError
from holdfast.state.paths import printable


@click.command("average", epilog="Example: holdfast average runs/a@-1 runs/a@-2 runs/a@-3 -o mean.safetensors")
@click.argument("files", metavar="F F...", nargs=-1, required=True)
@click.option("-o", "--output", "out", required=True, metavar="OUT", help="The file to write.")
@click.option("--weights", metavar="W,W,...", help="How much each counts, such as 1,1,2; equally by default.")
@click.option(
    "--nonfinite",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="What to do with files that hold NaN or infinities.",
)
@at_option
@output_options
def command(
    files: tuple[str, ...],
    out: str,
    weights: str | None,
    nonfinite: Literal["refuse", "keep"],
    at: str | None,
    wanted: str | None,
    as_json: bool,
) -> None:
    """Write the average of the model's weights in several files, checkpoints or references of one model.

    Exits 1 when names, shapes or dtypes differ.
    """
    from holdfast.surgery import average

    shares = None if weights is None else [_number(text) for text in weights.split(",")]
    with progress(f"averaging {len(files)} files", quiet=as_json):
        report = average(files, out, weights=shares, nonfinite=nonfinite, at=at, format=wanted)
    tell(report, as_json=as_json)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"--weights takes numbers with commas between, not {printable(text)!r}") from None
