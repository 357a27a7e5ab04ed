"""What the verbs that make one file out of others have in common: options, the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from holdfast.cli.output import say, say_json
from holdfast.formats.writing import FORMATS

if TYPE_CHECKING:
    from holdfast.surgery.report import Rewritten

Command = TypeVar("Command", bound=Callable[..., Any])


def at_option(command: Command) -> Command:
    """``--at``, where the model's weights are."""
    return click.option("--at", metavar="PATH", help="Dotted path of the state_dict, where it is not found by itself.")(
        command
    )


def output_options(command: Command) -> Command:
    """``--format`` and ``--json``."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return click.option(
        "--format",
        "wanted",
        type=click.Choice(list(FORMATS)),
        help="What to write; by default by the suffix, pt for any that is unknown.",
    )(command)


def tell(report: Rewritten, *, as_json: bool) -> None:
    """Prints what was written."""
    if as_json:
        say_json(report.to_dict())
    else:
        say(str(report))
