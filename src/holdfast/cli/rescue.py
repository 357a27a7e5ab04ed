"""``holdfast rescue``: the weights out of a file that holds a whole pickled module."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.output import say, say_json, size_text
from holdfast.errors import ArgumentError
from holdfast.formats.base import StoredTensor
from holdfast.runs.opening import open_any
from holdfast.state.modules import modules_at
from holdfast.state.paths import printable
from holdfast.state.skeleton import skeleton as skeleton_of


@click.command("rescue", epilog="Example: holdfast rescue old_model.pth -o weights.safetensors")
@click.argument("f", metavar="F")
@click.option("-o", "--out", metavar="OUT", help="The file to write: .safetensors, or .pt and others for torch.")
@click.option("--at", metavar="PATH", help="One module of several, or a part of one, such as model.encoder.")
@click.option("--skeleton", is_flag=True, help="Print the structure of the module as Python source.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(f: str, out: str | None, at: str | None, skeleton: bool, as_json: bool) -> None:
    """Take the weights out of F, a whole pickled module, without its class and without running anything of it."""
    if out is None and not skeleton:
        raise ArgumentError("say where the weights go with -o OUT, or ask for the structure with --skeleton")
    report: dict[str, Any] = {}
    if out is not None:
        from holdfast.api import rescue_file

        saved = rescue_file(f, out, at=at)
        report |= {"file": saved.file, "tensors": saved.tensors, "bytes": saved.bytes, "notes": saved.notes}
    if skeleton:
        report["skeleton"] = _skeleton(f, at)
    if as_json:
        say_json(report)
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    mark = "# " if "skeleton" in report else ""  # what is printed stays Python
    if "file" in report:
        say(f"{mark}{printable(report['file'])}: {report['tensors']} tensors, {size_text(report['bytes'])}")
        for note in report["notes"]:
            say(f"{mark}{printable(note)}")
    if "skeleton" in report:
        say(report["skeleton"])


def _skeleton(f: str, at: str | None) -> str:
    with open_any(f) as container:
        modules = modules_at(container.document().tree, at, f)
    named = {"" if len(modules) == 1 else name: module for name, module in modules.items()}
    return skeleton_of(named, lambda leaf: leaf.spec if isinstance(leaf, StoredTensor) else None)
