"""One document to one file: which format it gets, and that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import IO, Any

from holdfast.errors import ArgumentError
from holdfast.formats import legacy, npz, safetensors, torchzip
from holdfast.formats.base import Document, Format
from holdfast.storage.places import place_of
from holdfast.storage.source import ByteSource
from holdfast.storage.streamed import stage_into

Destination = str | os.PathLike[str] | IO[bytes]

FORMATS: dict[str, Format] = {"pt": torchzip, "safetensors": safetensors, "npz": npz, "torch-legacy": legacy}
"""What ``format=`` takes."""

ROW_MAJOR = frozenset({"safetensors", "npz"})
"""Formats that hold row-major tensors only, or nearly so."""


def format_for(f: Destination, wanted: str | None) -> str:
    """The format by name, else by suffix: ``.safetensors``, ``.npz``; anything else is a torch zip, as with torch.save.

    Raises:
        ArgumentError: an unknown format, or something that is no destination.
    """
    if not isinstance(f, str | os.PathLike) and not callable(getattr(f, "write", None)):
        raise ArgumentError(f"can't save to a {type(f).__name__}: give a path or a file object opened with mode 'wb'")
    if wanted is not None:
        if wanted not in FORMATS:
            raise ArgumentError(f"format {wanted!r} is unknown; there are: {', '.join(FORMATS)}")
        return wanted
    if isinstance(f, str | os.PathLike):
        text = os.fspath(f)
        for name in ("safetensors", "npz"):
            if text.endswith(FORMATS[name].SUFFIXES):
                return name
    return "pt"


def write_document(
    document: Document,
    f: Destination,
    name: str,
    *,
    durable: bool = True,
    check: Callable[[ByteSource], None] | None = None,
) -> tuple[int, list[str]]:
    """Writes a document as one file.

    Args:
        document: what to write.
        f: a path or an object with ``write``.
        name: of the format.
        durable: wait until the file would survive a power cut.
        check: is given what was written, before it takes its place; when it raises, nothing is replaced.

    Returns:
        The file's bytes, and what the format has to say.
    """
    top = "archive"
    if isinstance(f, str | os.PathLike):
        stem = os.path.splitext(os.path.basename(os.fspath(f)))[0]
        top = stem if stem.isascii() and stem else "archive"  # as torch.save names the folder inside its archive
        staging = place_of(f).stage(os.fspath(f), durable=durable)
    else:
        staging = stage_into(f, shown_name(f))
    with staging as staged:
        told = FORMATS[name].write(staged, document, top=top)
        if check is not None:
            with contextlib.closing(staged.written()) as written:
                check(written)
    return staged.size, list(told.get("notes", []))


def shown_name(f: Any) -> str:
    """What messages call a source or destination."""
    return os.fspath(f) if isinstance(f, str | os.PathLike) else f"<{type(f).__name__}>"
