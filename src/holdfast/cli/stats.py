"""``holdfast stats``: what the values of each tensor are, and which tensors are broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, say_table
from holdfast.cli.progress import progress
from holdfast.formats.base import StoredTensor
from holdfast.report.subject import tensors_of
from holdfast.runs.opening import open_any
from holdfast.state.paths import dotted, matches, printable
from holdfast.state.statistics import TensorStats, to_plain
from holdfast.storage import meter

_FAILS: dict[str, Callable[[TensorStats], bool]] = {
    "nan": lambda stats: stats.nan > 0,
    "inf": lambda stats: stats.inf > 0,
    "dead": lambda stats: stats.dead is not None,
}


@click.command("stats", epilog='Example: holdfast stats runs/a@last --keys "model.*" --fail-on nan')
@click.argument("f", metavar="F")
@click.option("--keys", "glob", metavar="GLOB", help="Only tensors that have a matching path; * also crosses dots.")
@click.option(
    "--fail-on",
    "fails",
    type=click.Choice(list(_FAILS)),
    multiple=True,
    help="Exit with 1 when a tensor has NaN, infinities, or is dead: all zero or constant. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with a histogram of the magnitudes.")
def command(f: str, glob: str | None, fails: tuple[str, ...], as_json: bool) -> int:
    """Print the range, mean and deviation of each tensor of F, and name those with NaN or infinities and the dead.

    Every digest is checked on the way. Memory does not grow with the file.
    """
    from holdfast.serialization.statistics import tensor_stats

    with open_any(f) as container, progress(f, quiet=as_json):
        chosen = [item for item in tensors_of(container.document().tree) if glob is None or matches(item[0], glob)]
        meter.begin("counting", sum(leaf.spec.nbytes for _, leaf in chosen))
        checked: set[int] = set()
        found = [(dotted(path), leaf, tensor_stats(leaf, checked=checked)) for path, leaf in chosen]
    failed = [name for name, _, stats in found if any(_FAILS[one](stats) for one in fails)]
    if as_json:
        say_json({"file": f, "tensors": [_as_json(*one) for one in found], "failed": failed})
    else:
        _print(found)
    return 1 if failed else 0


def _as_json(name: str, leaf: StoredTensor, stats: TensorStats) -> dict[str, Any]:
    numbers = {key: value for key, value in to_plain(stats).items() if key != "thumbnail"}
    return {"name": name, "dtype": leaf.spec.dtype, "shape": list(leaf.spec.shape), **numbers}


def _print(found: list[tuple[str, StoredTensor, TensorStats]]) -> None:
    header = ["tensor", "", "min", "max", "mean", "std", "zeros"]
    rows = [[printable(name), str(leaf.spec), *_cells(stats)] for name, leaf, stats in found]
    say_table(header, rows, right=(2, 3, 4, 5, 6))
    for name, _, stats in found:
        if stats.note:
            say(f"{printable(name)}: {stats.note}")
    wrong = [(name, stats.findings) for name, _, stats in found if stats.findings]
    for name, findings in wrong:
        say(coloured(f"{printable(name)}: {', '.join(findings)}", "yellow"))
    if found and not wrong:
        say(f"{len(found)} tensor{'' if len(found) == 1 else 's'}: no NaN, no infinities, none dead")


def _cells(stats: TensorStats) -> list[str]:
    numbers = ["" if one is None else f"{one:.4g}" for one in (stats.min, stats.max, stats.mean, stats.std)]
    return [*numbers, f"{stats.zeros / stats.count:.1%}" if stats.zeros else ""]
