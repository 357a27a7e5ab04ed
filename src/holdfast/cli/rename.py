"""``holdfast rename``: a file with other names for its weights."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.progress import progress
from holdfast.cli.surgery import at_option, output_options, tell


@click.command("rename", epilog='Example: holdfast rename old.pt new.pt --rename "^backbone\\." "encoder."')
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--strip-prefix", metavar="PREFIX", help="Take leading segments off the names that have them.")
@click.option("--add-prefix", metavar="PREFIX", help="Put segments before every name.")
@click.option(
    "--rename",
    nargs=2,
    multiple=True,
    metavar="REGEX TEXT",
    help="Replace what the expression finds; may be repeated, in this order.",
)
@click.option("--drop", multiple=True, metavar="GLOB", help="Leave out what has a matching name; may be repeated.")
@at_option
@output_options
def command(a: str, b: str, wanted: str | None, as_json: bool, **rules: Any) -> None:
    """Write A (a file, checkpoint or reference) as B with other names for the model's weights.

    The prefixes change first, then what --rename says, then what --drop says is left out. All else in A stays; the
    names that an optimizer has for its parameters follow. Exits 1 when no name changes or two become one.
    """
    from holdfast.surgery import rename

    rules["rename"] = dict(rules["rename"])
    with progress(f"writing {b}", quiet=as_json):
        report = rename(a, b, format=wanted, **rules)
    tell(report, as_json=as_json)
