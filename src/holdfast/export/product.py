"""What an exporter makes, before any of it is on a disk."""

from __future__ import annotations

from typing import Any, NamedTuple

from holdfast.errors import UnsupportedValue
from holdfast.export.untouched import first_line
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
    pieces: list[Piece] = []


def refused(file: str, what: str, reason: Exception, advice: str) -> UnsupportedValue:
    """The error for a model that an exporter does not take."""
    said = f"{type(reason).__name__}: {first_line(reason)}"
    return UnsupportedValue(f"`{printable(file)}`: {what} does not take this model: {said}. {advice}", file=file)
