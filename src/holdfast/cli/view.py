"""``holdfast view``: a run, a file or a difference as one page for a browser."""

from __future__ import annotations

import datetime
import os
from importlib.metadata import version

import click
import msgspec

from holdfast.cli.inspect import WHAT
from holdfast.cli.output import say, say_json, size_text
from holdfast.cli.progress import progress
from holdfast.errors import CorruptFile
from holdfast.report.data import page_data
from holdfast.report.page import page_text
from holdfast.report.subject import Subject, opened_subject, spread
from holdfast.runs.comparing import compare, opened
from holdfast.runs.sizes import parse_size
from holdfast.state.diff import Diff
from holdfast.state.paths import dotted, printable
from holdfast.state.statistics import Changes, TensorStats
from holdfast.storage import meter
from holdfast.storage.places import write_bytes

MOST_COUNTED = 20_000
"""Tensors that a page has statistics of."""
MOST_PICTURES = 2_000
"""Tensors that a page has small pictures of."""
MOST_COMPARED = 32
"""Checkpoints of a run that a page compares, each with the one before."""
MOST_FOLLOWED = 5_000
"""Tensors that it compares them by."""
Stats = dict[int, TensorStats]


@click.command("view", epilog="Example: holdfast view runs/a -o run.html")
@click.argument("ref", metavar="REF")
@click.option("-o", "--output", "out", metavar="OUT", help="The page to write; by default NAME.html, here.")
@click.option("--diff", "other", metavar="OTHER", help="Show what differs from REF to OTHER as well.")
@click.option("--no-stats", is_flag=True, help="Compute nothing from the values of tensors.")
@click.option(
    "--limit", default="2GB", show_default=True, metavar="SIZE", help="Bytes read for statistics, and for changes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON about what was written.")
def command(ref: str, out: str | None, other: str | None, no_stats: bool, limit: str, as_json: bool) -> None:
    """Write a page about REF (a run, a checkpoint, a reference, a file) that opens in any browser, offline.

    The page holds arguments and environment of a run, with paths and host names: look before you publish it.
    """
    most = parse_size(limit)
    with opened_subject(ref, datetime.datetime.now(datetime.UTC)) as subject, progress(ref, quiet=as_json):
        stats, without = _statistics(subject, most, no_stats)
        data = page_data(
            subject,
            stats,
            without=without,
            what=WHAT[subject.container.format] if subject.container is not None else "",
            changes=_changes(subject, stats, most) if stats else None,
            difference=None if other is None else _difference(ref, other, with_numbers=bool(stats)),
            made=f"holdfast {version('holdfast')}",
        )
    path = out if out is not None else f"{_file_name(ref)}.html"
    page = page_text(data, f"{printable(ref)} · holdfast").encode()
    write_bytes(path, page)
    if as_json:
        say_json({"page": path, "bytes": len(page), "tensors": len(subject.tensors()), "counted": len(stats)})
    else:
        say(f"{printable(path)}: {size_text(len(page))}; open it in a browser")


def _file_name(ref: str) -> str:
    """``a@best`` for ``runs/a@best``: a name that can be typed, for the page beside which the user stands."""
    name = os.path.basename(ref.rstrip("/")) or "view"
    return "".join(char if char.isascii() and (char.isalnum() or char in "@=._-") else "-" for char in name)


def _statistics(subject: Subject, most: int, unwanted: bool) -> tuple[Stats, str]:
    """Statistics by the place of each tensor, and what the page says of those that have none."""
    if unwanted:
        return {}, "This page was made without statistics (--no-stats)."
    try:
        from holdfast.serialization.statistics import tensor_stats
    except ModuleNotFoundError:
        return {}, 'This page has no statistics: torch is not installed (pip install "holdfast[torch]").'
    found: Stats = {}
    checked: set[int] = set()
    tensors, left = subject.tensors(), most
    meter.begin("counting", min(sum(leaf.spec.nbytes for _, leaf in tensors), most))
    for number, (_, leaf) in enumerate(tensors):
        if leaf.segment.length > left or len(found) >= MOST_COUNTED:
            continue
        left -= min(leaf.spec.nbytes, leaf.segment.length)
        try:
            found[number] = tensor_stats(leaf, thumbnail=number < MOST_PICTURES, checked=checked)
        except CorruptFile as reason:
            found[number] = TensorStats(note=str(reason))
    if len(found) == len(tensors):
        return found, ""
    return found, (
        f"Statistics of {len(found):,} of {len(tensors):,} tensors: a page reads {size_text(most)} for them (--limit) "
        f"and counts {MOST_COUNTED:,} tensors at most."
    )


def _changes(subject: Subject, stats: Stats, most: int) -> Changes | None:
    """How far the model moved between the checkpoints of the run; None where there is but one."""
    readable = subject.run.catalog.readable if subject.run is not None else ()
    if len(readable) < 2 or subject.document is None or subject.manifest is None:
        return None
    from holdfast.transfer.changes import changes

    models = [name for name, record in subject.document.objects.items() if record.get("kind") == "module"]
    places = {dotted(path): at for at, (path, _) in enumerate(subject.tensors())}
    names = [name for name in places if not models or any(name.startswith(f"{one}.") for one in models)]
    last = readable[-1].step == subject.manifest.step
    norms = {name: stats[at].norm for name, at in places.items() if last and at in stats}
    found = changes(spread(readable, MOST_COMPARED), names[:MOST_FOLLOWED], limit=most, norms=norms)
    notes = [f"{MOST_COMPARED} of {len(readable):,} checkpoints are compared."] if len(readable) > MOST_COMPARED else []
    notes += [f"{MOST_FOLLOWED:,} of {len(names):,} tensors are."] if len(names) > MOST_FOLLOWED else []
    return msgspec.structs.replace(found, note=" ".join([*notes, found.note]).strip())


def _difference(ref: str, other: str, *, with_numbers: bool) -> Diff:
    """What differs from one to the other; by how much where torch is here."""
    with opened(ref) as left, opened(other) as right:
        found = compare(left, right)
        if not with_numbers:
            return found
        from holdfast.transfer.comparing import measured

        return measured(found, left, right)
