"""``holdfast path``: the folder that a reference names, for scripts."""

from __future__ import annotations

import click

from holdfast.cli.output import say, say_json
from holdfast.errors import NotFound
from holdfast.runs.reference import FORMS, locate
from holdfast.state.paths import printable
from holdfast.storage.places import absolute


@click.command("path", epilog='Example: cp "$(holdfast path runs/a@best)/model.safetensors" best.safetensors')
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(ref: str, as_json: bool) -> None:
    """Print the folder of the checkpoint that REF names: runs/a@best, runs/a@step=1000, runs/a (its last)."""
    folder = checkpoint_folder(ref)
    if as_json:
        say_json({"path": folder, "absolute": absolute(folder)})
    else:
        say(printable(folder))


def checkpoint_folder(ref: str) -> str:
    """The folder that a reference, a run or a checkpoint's own folder names.

    Raises:
        NotFound: it names no checkpoint.
    """
    folder = locate(ref)
    if folder is None:
        raise NotFound(
            f"`{printable(ref)}`: no checkpoint; name a run's folder, one of its steps, or a run's folder and {FORMS}",
            file=ref,
        )
    return folder
