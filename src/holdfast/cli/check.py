"""holdfast check: the dry run of a load into a model."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.factory import load_factory
from holdfast.cli.output import say, say_json
from holdfast.errors import MismatchError
from holdfast.state.paths import printable


@click.command("check", epilog="Example: holdfast check old.pth model.py:Net --warm")
@click.argument("ref")
@click.argument("factory")
@click.option("--at", default=None, help="Dotted path of the model's part in the file.")
@click.option("--warm", is_flag=True, help="Judge as holdfast.Warm() does: what fits is enough.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(ref: str, factory: str, at: str | None, warm: bool, as_json: bool) -> int:
    """Say whether REF fits the model that FACTORY makes; nothing is loaded.

    FACTORY is pkg.module:Net or path/to/file.py:Net, a class or function without arguments. It is your code, and runs.
    Exits 1 when the file does not fit.
    """
    from holdfast.api import Exact, Warm, restore

    model = load_factory(factory)()
    try:
        report: Any = restore(
            ref, model=model, match=Warm() if warm else Exact(), at={"model": at} if at else None, dry_run=True
        )
        message = None
    except MismatchError as error:
        if error.report is None:
            raise
        report, message = error.report, str(error)
    if as_json:
        say_json({"fits": message is None, "message": message, **report.to_dict()})
    else:
        say(f"{printable(ref)} {'fits' if message is None else 'does not fit'} {printable(factory)}")
        say(str(report))
    return 0 if message is None else 1
