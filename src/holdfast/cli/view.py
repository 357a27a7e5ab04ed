"""``holdfast view``: a run, a file or a difference as one page for a browser."""

from __future__ import annotations

import datetime
import os
from importlib.metadata import version

import click

from holdfast.cli.output import say, say_json, size_text
from holdfast.cli.stats import load_counting
from holdfast.cli.surgery import working
from holdfast.errors import CorruptFile, MissingExtra
from holdfast.report.data import page_data
from holdfast.report.page import page_text
from holdfast.report.subject import Subject, opened_subject
from holdfast.runs.sizes import parse_size
from holdfast.state.paths import printable
from holdfast.state.statistics import TensorStats
from holdfast.storage.places import write_bytes

MOST_COUNTED = 20_000
"""Tensors that a page has statistics of."""
MOST_PICTURES = 2_000
"""Tensors that a page has small pictures of."""


@click.command("view", epilog="Example: holdfast view runs/a -o run.html")
@click.argument("ref", metavar="REF")
@click.option("-o", "--output", "out", metavar="OUT", help="The page to write; by default NAME.html, here.")
@click.option("--no-stats", is_flag=True, help="Read no tensor: names, sizes, metrics and records only.")
@click.option("--limit", default="2GB", show_default=True, metavar="SIZE", help="Bytes of tensors that are read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON about what was written.")
def command(ref: str, out: str | None, no_stats: bool, limit: str, as_json: bool) -> None:
    """Write a page about REF (a run, a checkpoint, a reference, a file) that opens in any browser, offline.

    The page holds arguments and environment of a run, with paths and host names: look before you publish it.
    """
    most = parse_size(limit)
    with opened_subject(ref, datetime.datetime.now(datetime.UTC)) as subject, working(f"reading {ref}", quiet=as_json):
        stats, without = ({}, "") if no_stats else _statistics(subject, most)
        if no_stats:
            without = "This page was made without statistics (--no-stats)."
        data = page_data(subject, stats, without=without, made=f"holdfast {version('holdfast')}")
    path = out if out is not None else f"{_file_name(ref)}.html"
    page = page_text(data, f"{printable(ref)} · holdfast").encode()
    write_bytes(path, page)
    if as_json:
        say_json({"page": path, "bytes": len(page), "tensors_counted": len(stats)})
    else:
        say(f"{printable(path)}: {size_text(len(page))}; open it in a browser")


def _file_name(ref: str) -> str:
    """``a@best`` for ``runs/a@best``: a name that can be typed, for the page beside which the user stands."""
    name = os.path.basename(ref.rstrip("/")) or "view"
    return "".join(char if char.isascii() and (char.isalnum() or char in "@=._-") else "-" for char in name)


def _statistics(subject: Subject, most: int) -> tuple[dict[int, TensorStats], str]:
    """Statistics by the place of each tensor, and what the page says of those that have none."""
    try:
        count = load_counting("statistics")
    except MissingExtra as reason:
        return {}, f"This page has no statistics: {reason}"
    found: dict[int, TensorStats] = {}
    checked: set[int] = set()
    tensors, left = subject.tensors(), most
    for number, (_, leaf) in enumerate(tensors):
        if leaf.segment.length > left or len(found) >= MOST_COUNTED:
            continue
        left -= leaf.spec.nbytes
        try:
            found[number] = count(leaf, thumbnail=number < MOST_PICTURES, checked=checked)
        except CorruptFile as reason:
            found[number] = TensorStats(note=str(reason))
    if len(found) == len(tensors):
        return found, ""
    return found, (
        f"Statistics of {len(found):,} of {len(tensors):,} tensors: a page reads {size_text(most)} (--limit) and "
        f"counts {MOST_COUNTED:,} tensors at most."
    )
