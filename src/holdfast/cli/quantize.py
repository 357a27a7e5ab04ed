"""``holdfast quantize``: the model of a file as a smaller one in another file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from holdfast.cli.factory import load_factory
from holdfast.cli.inputs import random_inputs
from holdfast.cli.output import say, say_json, size_text
from holdfast.cli.progress import progress
from holdfast.errors import ArgumentError
from holdfast.state.paths import printable

_BATCH = 32
"""Samples that are shown to the model at a time, when a file holds them in one tensor."""


@click.command(
    "quantize", epilog="Example: holdfast quantize net.pt q.pt --recipe dynamic-int8 --factory model.py:Net --input 1x4"
)
@click.argument("f", metavar="F")
@click.argument("out", metavar="OUT")
@click.option(
    "--recipe", required=True, help="dynamic-int8, static-int8, int8-weight-only, ...; a wrong one lists all."
)
@click.option("--factory", metavar="FACTORY", help="pkg.mod:Net or path/to/file.py:Net, as in holdfast check.")
@click.option("--calibration", metavar="FILE", help="What the model is shown: samples in one tensor, or batches.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SHAPE[:DTYPE[:N]]",
    help="A random input to compare answers on, 1x3x32x32 or 1x16:int64:1000 (below 1000), in the order of forward.",
)
@click.option("--backend", metavar="NAME", help="Engine to pack int8 layers for; by default this machine's.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    f: str,
    out: str,
    recipe: str,
    factory: str | None,
    calibration: str | None,
    inputs: tuple[str, ...],
    backend: str | None,
    as_json: bool,
) -> None:
    """Quantize the model of F by a recipe and write it to OUT, with what holdfast.build needs to make it again.

    FACTORY is your code, and runs; it can be left out when all of the model is torch.nn's own. What --calibration names
    is a .npz or a torch file: one tensor of samples, a list of batches, or several tensors under the names that the
    model's forward has for them.
    """
    from holdfast.api import quantize, quantize_report, save

    shown = None if calibration is None else _calls(calibration)
    with progress(f"quantizing {f}", quiet=as_json):
        made = quantize(
            f,
            recipe,
            calibration=shown,
            example=random_inputs(inputs),
            backend=backend,
            factory=None if factory is None else load_factory(factory),
        )
        saved = save(made, out)
    report: Any = quantize_report(made)
    if as_json:
        say_json({**report.to_dict(), "file": saved.file, "format": saved.format, "file_bytes": saved.bytes})
        return
    say(str(report))
    say(f"wrote {printable(saved.file)}, {saved.format}, {size_text(saved.bytes)}")


def _calls(file: str) -> Iterator[Any]:
    """The batches of a file of calibration data."""
    import torch

    from holdfast.api import load

    data = load(file, "cpu")
    if isinstance(data, list):
        return iter(data)
    named = data if isinstance(data, dict) else {"": data}
    inputs = {name: torch.as_tensor(one) for name, one in named.items() if not isinstance(one, str | bytes | None)}
    sizes = {len(one) if one.dim() else 0 for one in inputs.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ArgumentError(
            f"`{printable(file)}`: holds no calibration data: one tensor of samples, a list of batches, or a dict of "
            "tensors with the same number of samples"
        )
    parts = zip(*(torch.split(one, _BATCH) for one in inputs.values()), strict=True)
    return iter([part[0] if len(part) == 1 else dict(zip(inputs, part, strict=True)) for part in parts])
