"""What an exporter makes, before any of it is on a disk."""

from __future__ import annotations

from typing import Any, NamedTuple

from holdfast.errors import UnsupportedValue
from holdfast.export.quiet import first_line
from holdfast.state.paths import printable


class Piece(NamedTuple):
    """A tensor of the external data: where it begins, how long it is, and what has its bytes (``tobytes``)."""

    offset: int
    size: int
    tensor: Any


class Product(NamedTuple):
    """A file that is to be written.

    Attributes:
        how: by which exporter.
        content: the file's bytes.
        notes: what the exporter had to say.
        location: the name of the file of external data beside it; None when there is none.
        pieces: what is in that, in order.
    """

    how: str
    content: Any
    notes: list[str]
    location: str | None = None
    pieces: tuple[Piece, ...] = ()


def refused(file: str, what: str, reason: Exception, advice: str) -> UnsupportedValue:
    """The error for a model that an exporter does not take."""
    return UnsupportedValue(
        f"`{printable(file)}`: {what} does not take this model: {said_by(reason)}. {advice}", file=file
    )


def said_by(reason: Exception) -> str:
    """What an exporter's error says: its first line, and the first of the points below it."""
    head = first_line(reason).split(" For more information")[0].rstrip(".:!")
    points = [line.strip() for line in str(reason).splitlines()[1:] if line.strip().startswith("- ")]
    return f"{type(reason).__name__}: {head}" + (
        f": {first_line(points[0][2:]).split('. If you')[0].rstrip('.')}" if points else ""
    )
