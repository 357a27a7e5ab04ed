"""``holdfast convert``: one file as another or as several, proved equal, without torch."""

from __future__ import annotations

import click
import msgspec

from holdfast.cli.output import say, say_json, size_text
from holdfast.cli.progress import progress
from holdfast.formats.convert import SHARDED, ConvertReport, convert_container
from holdfast.formats.writing import FORMATS
from holdfast.runs.opening import open_any
from holdfast.runs.sizes import parse_cut
from holdfast.state.paths import printable

_SHOWN = 20


@click.command("convert", epilog='Example: holdfast convert runs/a@best weights.safetensors --drop "optimizer*"')
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--format",
    "wanted",
    type=click.Choice(list(FORMATS)),
    help="What to write; by default by B's suffix, pt for any that is unknown.",
)
@click.option("--drop", multiple=True, metavar="GLOB", help="Leave out what has a matching path; may be repeated.")
@click.option(
    "--shards",
    metavar="N|SIZE",
    help="Write the folder B with so many safetensors files (4), or files below a size (5GB), and their index.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(a: str, b: str, wanted: str | None, drop: tuple[str, ...], shards: str | None, as_json: bool) -> None:
    """Write A (a file, folder, checkpoint or reference) as the file B, read it again and compare all of it.

    What the format of B can't hold is listed and refused; --drop leaves it out. B is replaced only when every value
    and every bit of every tensor is the same. With --shards B is a folder, as transformers keeps large models.
    """
    with progress(b, quiet=as_json), open_any(a) as container:
        report = convert_container(container, b, format=wanted, drop=drop, cut=parse_cut(shards))
    if as_json:
        say_json(msgspec.to_builtins(report))
    else:
        _print(report)


def _print(report: ConvertReport) -> None:
    say(
        f"{printable(report.file)}: {_kind(report)}, {report.tensors} tensors, {size_text(report.bytes)}, "
        "read again and equal"
    )
    _print_list("dropped", report.dropped)
    _print_list("renamed", [f"{path} -> {name}" for path, name in report.renamed.items()])
    _print_list("shared memory", [" = ".join(group) for group in report.shared])
    _print_list("notes", report.notes)


def _kind(report: ConvertReport) -> str:
    if report.format != SHARDED:
        return report.format
    return f"{report.shards} safetensors {'file' if report.shards == 1 else 'files'} with an index"


def _print_list(title: str, lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        say(f"  {title}: {printable(line)}")
    if len(lines) > _SHOWN:
        say(f"  {title}: ... {len(lines) - _SHOWN} more: --json")
