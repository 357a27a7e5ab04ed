"""``holdfast adopt``: a run that resumes, out of a folder of old checkpoints."""

from __future__ import annotations

from typing import Literal

import click

from holdfast.cli.output import say, say_json
from holdfast.cli.progress import progress


@click.command("adopt", epilog="Example: holdfast adopt old_checkpoints runs/a --best val_loss:min --dry-run")
@click.argument("old", metavar="OLD_FOLDER")
@click.argument("run", metavar="RUN")
@click.option("--best", metavar="METRIC:min|max", help="The run's rule for the best one.")
@click.option(
    "--epoch-is",
    type=click.Choice(["done", "next"]),
    help="An epoch in the files is that just done (counted from 0), or how many are done. By default it is found out.",
)
@click.option("--steps-per-epoch", type=click.IntRange(min=1), metavar="N", help="Batches of an epoch.")
@click.option("--weights-only", is_flag=True, help="Take files without an optimizer as steps too.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    old: str,
    run: str,
    best: str | None,
    epoch_is: Literal["done", "next"] | None,
    steps_per_epoch: int | None,
    weights_only: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a run that resumes out of OLD_FOLDER, a folder of files such as checkpoint_epoch_10.pth and best_model.pth.

    Epochs, steps, metrics and the best one come from the contents of the files, else from their names. What can't be
    taken over is listed with the reason. Nothing of a file is run, and OLD_FOLDER is not changed.
    """
    from holdfast.surgery import adopt

    with progress(f"adopting {old}", quiet=as_json):
        report = adopt(
            old,
            run,
            best=best,
            epoch_is=epoch_is,
            steps_per_epoch=steps_per_epoch,
            weights_only=weights_only,
            dry_run=dry_run,
        )
    if as_json:
        say_json(report.to_dict())
    else:
        say(str(report))
