"""``holdfast export``: a saved model for another runtime, compared with itself before it is in its place."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.factory import load_factory
from holdfast.cli.output import say, say_json
from holdfast.errors import ArgumentError, MismatchError
from holdfast.state.paths import printable

FORMATS = ("onnx", "torch-export", "torchscript", "torchscript-script", "torchscript-trace")
_SEED = 0
_MOST = 1 << 31


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
        report: Any = export(
            f,
            out,
            example=_example(inputs) if inputs else None,
            format=options["wanted"],
            dynamic=dynamic or None,
            input_names=options["input_names"] or None,
            output_names=options["output_names"] or None,
            factory=load_factory(factory) if factory else None,
            tolerance=options["tolerance"],
        )
    except MismatchError as error:
        if error.report is None or not as_json:
            raise
        say_json({"same": False, "message": str(error), **error.report.to_dict()})  # type: ignore[attr-defined]
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


def _example(inputs: tuple[str, ...]) -> tuple[Any, ...]:
    """Random tensors, the same each time: normals, or integers from 0 to below what is given."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    made = []
    for text in inputs:
        shape, dtype, below = _input(text)
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ArgumentError(f"--input {printable(text)!r}: torch has no dtype {printable(dtype)!r}")
        if kind.is_floating_point or kind.is_complex:
            made.append(torch.randn(shape, generator=generator).to(kind))
        else:
            made.append(torch.randint(0, below, shape, generator=generator).to(kind))
    return tuple(made)


def _input(text: str) -> tuple[list[int], str, int]:
    """``1x16:int64:1000`` as its shape, dtype and bound."""
    shape, _, rest = text.partition(":")
    dtype, _, below = rest.partition(":")
    sizes = shape.split("x") if shape else []
    if not all(size.isdecimal() and int(size) < _MOST for size in sizes) or (below and not below.isdecimal()):
        raise ArgumentError(
            f"--input {printable(text)!r}: write SHAPE, SHAPE:DTYPE or SHAPE:DTYPE:N, as 1x16:int64:1000"
        )
    if below and not 0 < int(below) < _MOST:
        raise ArgumentError(f"--input {printable(text)!r}: integers are drawn from 0 to below N; N is at least 1")
    return [int(size) for size in sizes], dtype or "float32", int(below or 2)
