"""``holdfast pin``: a name for a checkpoint, under which retention keeps it."""

from __future__ import annotations

import os

import click

from holdfast.cli.output import say, say_json
from holdfast.cli.path import checkpoint_folder
from holdfast.errors import ArgumentError
from holdfast.runs.catalog import is_run
from holdfast.runs.layout import QUARANTINE, SUPERSEDED, parse_step
from holdfast.runs.run_file import read_pins, write_pin
from holdfast.state.paths import printable


@click.command("pin", epilog="Example: holdfast pin runs/a@best paper")
@click.argument("ref")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(ref: str, name: str, as_json: bool) -> None:
    """Pin the checkpoint REF as NAME: no retention rule deletes it, and runs/a@pin:NAME means it.

    A pin of that name on another checkpoint moves here. A training that is writing the run sees the pin at once.
    """
    root, step = _run_and_step(checkpoint_folder(ref))
    before = read_pins(root).get(name)
    write_pin(root, name, step)
    if as_json:
        say_json({"run": root, "name": name, "step": step, "before": before})
    else:
        moved = "" if before is None or before == step else f" (it was step {before})"
        say(f"{printable(root)}: step {step} is pinned as {name}{moved}")


def _run_and_step(folder: str) -> tuple[str, int]:
    root, name = os.path.split(os.path.abspath(folder) if os.path.dirname(folder) == "" else folder.rstrip(os.sep))
    step = parse_step(name)
    moved = os.path.basename(root) in (QUARANTINE, SUPERSEDED) and is_run(os.path.dirname(root))
    if step is None or moved:
        raise ArgumentError(
            f"`{printable(folder)}`: is no step of a run, which step-00001000 beside a run.json would be: only those "
            "can be pinned",
            file=folder,
        )
    return root, step
