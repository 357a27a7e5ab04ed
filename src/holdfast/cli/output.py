"""What every verb prints with: tables, JSON, sizes, colour. Text from files is escaped before it comes here."""

from __future__ import annotations

import os
import sys
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
    from holdfast.state.table import columns  # many verbs print none

    for line in columns(header, rows, right):
        say(line)


def coloured(text: str, colour: str) -> str:
    """``text`` in a colour, on a terminal that has not said NO_COLOR (https://no-color.org)."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def writes_blocks() -> bool:
    """Whether what reads stdout can be given the eight block characters."""
    try:
        "▁█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
