"""A sign of life while long work is done: a bar on a terminal, a line now and then elsewhere, on stderr."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from holdfast.runs.sizes import size_text
from holdfast.state.paths import printable
from holdfast.storage.meter import Meter, watched

_AT_ONCE = 0.4
"""Seconds that work takes before anything is shown: most is done by then."""
_FRAME = 0.1
_LINE = 15.0
"""Seconds between two lines where no bar can be drawn."""
_BAR = 30
_LONG = 60


@contextmanager
def progress(about: str, *, quiet: bool) -> Iterator[Meter]:
    """Shows how far the work inside is; it goes on in its own thread and is never waited for.

    Args:
        about: what is being done, for people.
        quiet: show nothing, as for ``--json``.
    """
    with watched(about) as meter:
        if quiet:
            yield meter
            return
        done = threading.Event()
        show = _draw if _is_terminal() else _tell
        thread = threading.Thread(target=show, args=(meter, done), name="holdfast-progress", daemon=True)
        thread.start()
        try:
            yield meter
        finally:
            done.set()
            thread.join()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _draw(meter: Meter, done: threading.Event) -> None:
    if done.wait(_AT_ONCE):
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    begun = time.monotonic()
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False) as live:
        while not done.wait(_FRAME):
            live.update(Text(meter_text(meter, time.monotonic() - begun), no_wrap=True), refresh=True)


def _tell(meter: Meter, done: threading.Event) -> None:
    begun = time.monotonic()
    while not done.wait(_LINE):
        click.echo(f"holdfast: {meter_text(meter, time.monotonic() - begun, bar=False)}", err=True)


def meter_text(meter: Meter, seconds: float, *, bar: bool = True) -> str:
    """``net.pt: writing  42 %  1.2 GB of 2.9 GB``, with a bar before the numbers.

    Args:
        meter: what to show.
        seconds: since it began; shown where there are no bytes to count.
        bar: whether to draw one.
    """
    about = printable(meter.about)
    if len(about) > _LONG:
        about = f"...{about[-_LONG:]}"
    stage, total, done = meter.stage, meter.total, min(meter.done, meter.total)
    if not total:
        return f"{about}  {int(seconds)} s"
    full = _BAR * done // total
    drawn = f"  [{'=' * full}{' ' * (_BAR - full)}]" if bar else ""
    return f"{about}: {stage}{drawn} {100 * done // total:3d} %  {size_text(done)} of {size_text(total)}"
