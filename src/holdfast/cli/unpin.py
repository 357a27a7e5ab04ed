"""``holdfast unpin``: takes a name off a checkpoint again."""

from __future__ import annotations

import click

from holdfast.cli.output import say, say_json
from holdfast.runs.run_file import read_pins, remove_pin
from holdfast.runs.standing import scan_run
from holdfast.state.paths import printable


@click.command("unpin", epilog="Example: holdfast unpin runs/a paper")
@click.argument("folder", metavar="DIR")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, name: str, as_json: bool) -> None:
    """Remove the pin NAME of the run DIR. Its checkpoint stays until the next prune finds no rule that keeps it."""
    scan_run(folder)
    remove_pin(folder, name)
    left = read_pins(folder)
    if as_json:
        say_json({"run": folder, "name": name, "pins": left})
    else:
        pins = ", ".join(f"{pin} (step {step})" for pin, step in left.items()) or "none"
        say(f"{printable(folder)}: {name} is no pin any more; pins: {pins}")
