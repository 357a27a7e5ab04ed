"""What every verb prints with: tables, JSON, sizes, ages, colour. Text from files is escaped before it comes here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from holdfast.runs.sizes import size_text as size_text


def say(text: str = "") -> None:
    """Prints one line to stdout."""
    click.echo(text)


def say_json(value: Any) -> None:
    """Prints a value as JSON in ASCII: no name in it can move a cursor, and NaN is text, not a broken number."""
    import json

    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=True, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Prints columns as wide as their widest cell; those in ``right`` are aligned to the right."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def coloured(text: str, colour: str) -> str:
    """``text`` in a colour, on a terminal that has not said NO_COLOR (https://no-color.org)."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def age_text(seconds: float) -> str:
    """``5 min``: how long ago, in the largest unit that fits; ``in the future`` for a clock that was wrong."""
    if seconds < -60:
        return "in the future"
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {name} ago"
    return f"{max(int(seconds), 0)} s ago"
