"""What the verbs that make one file out of others have in common: options, a sign of life, the report."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from holdfast.cli.output import say, say_json
from holdfast.formats.writing import FORMATS
from holdfast.state.paths import printable

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


@contextlib.contextmanager
def working(what: str, *, quiet: bool) -> Iterator[None]:
    """A sign of life on a terminal while files are read and written; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(what))):
        yield


def tell(report: Rewritten, *, as_json: bool) -> None:
    """Prints what was written."""
    if as_json:
        say_json(report.to_dict())
    else:
        say(str(report))
