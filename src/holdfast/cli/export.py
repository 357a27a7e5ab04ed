"""``holdfast export``: a saved model for another runtime, compared with itself before it is in its place."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.factory import load_factory
from holdfast.cli.inputs import random_inputs
from holdfast.cli.output import say, say_json
from holdfast.cli.progress import progress
from holdfast.errors import ArgumentError, MismatchError
from holdfast.state.paths import printable

FORMATS = ("onnx", "torch-export", "torchscript", "torchscript-script", "torchscript-trace")


@click.command(
    "export",
    epilog="Example: holdfast export runs/a@best net.onnx --factory model.py:Net --input 1x3x32x32",
)
@click.argument("f", metavar="F")
@click.argument("out", metavar="OUT")
@click.option("--factory", metavar="PKG.MOD:NET", help="What makes the model; not for one of torch.nn's own layers.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SHAPE[:DTYPE[:N]]",
    help="An input, 1x3x32x32 or 1x16:int64:1000 (below 1000), in the order of forward; by default the file's probe.",
)
@click.option("--dynamic", multiple=True, metavar="INPUT:AXIS=NAME", help="An axis whose size is left open.")
@click.option("--format", "wanted", type=click.Choice(FORMATS), help="By default by OUT's suffix: .onnx, .pt2, .ts.")
@click.option("--input-name", "input_names", multiple=True, metavar="NAME", help="The inputs' names, in order.")
@click.option("--output-name", "output_names", multiple=True, metavar="NAME", help="The outputs' names, in order.")
@click.option("--tolerance", type=float, help="How far an output may be off, over its largest value.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(f: str, out: str, factory: str | None, inputs: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Write the model in F (a file, checkpoint or reference) for another runtime, and try it there.

    OUT is run by onnxruntime, torch.export or torch.jit in a process of its own, and its answers are compared with the
    model's, on random inputs that are the same each time. It is written only when they are the same; else the exit code
    is 1. PKG.MOD:NET or path/to/file.py:Net is your code, and runs.
    """
    dynamic = _dynamic(options["dynamic"])
    from holdfast.api import export

    try:
        with progress(f"exporting {f}", quiet=as_json):
            report: Any = export(
                f,
                out,
                example=random_inputs(inputs),
                format=options["wanted"],
                dynamic=dynamic or None,
                input_names=options["input_names"] or None,
                output_names=options["output_names"] or None,
                factory=load_factory(factory) if factory else None,
                tolerance=options["tolerance"],
            )
    except MismatchError as error:
        differing: Any = error.report
        if differing is None or not as_json:
            raise
        say_json({"same": False, "message": str(error), **differing.to_dict()})
        return error.exit_code
    if as_json:
        say_json({"same": True, "message": None, **report.to_dict()})
    else:
        say(str(report))
    return 0


def _dynamic(given: tuple[str, ...]) -> dict[str | int, dict[int, str]]:
    """``images:0=batch`` as ``{"images": {0: "batch"}}``."""
    axes: dict[str | int, dict[int, str]] = {}
    for text in given:
        place, _, name = text.partition("=")
        key, _, axis = place.rpartition(":")
        if not key or not name or not axis.isdecimal():
            raise ArgumentError(f"--dynamic {printable(text)!r}: write INPUT:AXIS=NAME, such as images:0=batch")
        axes.setdefault(key, {})[int(axis)] = name
    return axes
