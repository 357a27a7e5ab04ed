"""``holdfast prove``: whether a training script that is killed and resumed ends with the same bits."""

from __future__ import annotations

import sys

import click

from holdfast.cli.output import coloured, say, say_json
from holdfast.errors import ArgumentError
from holdfast.runs.retention import SECONDS, parse_amount


@click.command(
    "prove",
    epilog="Example: holdfast prove --kills 5 train.py --epochs 2",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("script")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--kills", type=int, default=3, show_default=True, help="How often the script is killed.")
@click.option("--seed", type=int, default=None, help="Of the places where it is killed; the report says it.")
@click.option(
    "--save",
    default=None,
    help="A save rule to add while it is killed, such as 7step, so that it resumes inside an epoch. By default one is "
    "chosen by the script's length, with about five saves between two kills; none adds none.",
)
@click.option("--timeout", default="1h", show_default=True, help="Time in all: 90s, 10min, 2h.")
@click.option("--keep-folders", is_flag=True, help="Keep the runs of the proof, and say where they are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    script: str,
    arguments: tuple[str, ...],
    kills: int,
    seed: int | None,
    save: str | None,
    timeout: str,
    keep_folders: bool,
    as_json: bool,
) -> int:
    """Run SCRIPT to its end; run it again, kill it at random places, resume it each time; compare the last checkpoints.

    SCRIPT is your code, with its arguments after it, and it runs as Python would run it: twice, or three times when
    something differs. Its runs are made in a temporary folder (TMPDIR says where), and the folders that it names are
    not touched; whatever else it writes, it writes. Keep it short: two epochs of a part of the data prove as much.

    Exits 0 when every bit is the same, 1 when one differs, 3 when SCRIPT makes no run, 5 when it fails by itself.
    """
    from holdfast.training.proof.proving import Options, prove

    number, unit = parse_amount(timeout)
    if unit not in SECONDS:
        raise ArgumentError(f"--timeout {timeout}: a time is wanted, such as 90s, 10min or 2h")
    seconds = float(number * SECONDS[unit])
    terminal = sys.stderr.isatty()
    proof = prove(
        script,
        arguments,
        Options(kills, seed, save.replace(",", " ") if save else None, seconds, keep_folders),
        lambda line: click.echo(line, err=True) if terminal else None,
    )
    good = proof.verdict == "same"
    if as_json:
        say_json(proof.to_dict())
    else:
        head, *rest = str(proof).splitlines()
        say(coloured(head, "green" if good else "red"))
        for line in rest:
            say(line)
    return 0 if good else 1
