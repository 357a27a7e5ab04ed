"""Opening what a file is made of, and writing it: verified before, read again after, whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from holdfast.errors import ArgumentError
from holdfast.formats.base import Container, Document, Segment
from holdfast.formats.convert import convert_container
from holdfast.formats.writing import Destination, format_for, shown_name
from holdfast.runs.opening import open_any
from holdfast.state.paths import printable
from holdfast.surgery.report import Rewritten
from holdfast.surgery.states import tensors_of


class Source(msgspec.Struct):
    """One opened source.

    Attributes:
        file: as the caller named it.
        container: open.
        document: its content.
    """

    file: str
    container: Container
    document: Document


class Made(Container):
    """A document that no file holds yet, as what a conversion reads.

    Args:
        document: its leaves stand for bytes in the sources.
        file: named in errors.
    """

    format = "made"

    def __init__(self, document: Document, file: str) -> None:
        self.file = file
        self._document = document

    def document(self) -> Document:
        return self._document

    def segments(self) -> list[Segment]:
        return list({id(leaf.segment): leaf.segment for leaf in tensors_of(self._document.tree)}.values())

    def close(self) -> None:
        """Nothing to let go of: the sources are open elsewhere."""


class Surgery:
    """One file that is made of others.

    Args:
        sources: opened.
        dst: a path or a binary file object.
        wanted: the format by name, or None to go by the suffix.
    """

    def __init__(self, sources: list[Source], dst: Destination, wanted: str | None) -> None:
        self.sources = sources
        self._dst = dst
        self._format = format_for(dst, wanted)
        self._begin = time.perf_counter()
        _refuse_own_source(dst, sources)

    def write(
        self,
        document: Document,
        *,
        renamed: Mapping[str, str] | None = None,
        left_out: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> Rewritten:
        """Verifies the bytes of a document, writes it, reads it again, compares, and only then puts it in its place.

        Args:
            document: what to write.
            renamed: for the report.
            left_out: for the report.
            notes: for the report.

        Raises:
            CorruptFile: a digest of a source differs, or what was written reads back otherwise.
            UnsupportedValue: a value that the format can't hold.
            StorageError: writing failed; what was there before is intact.
        """
        made = Made(document, shown_name(self._dst))
        written = convert_container(made, self._dst, format=self._format)
        return Rewritten(
            sources=[source.file for source in self.sources],
            file=written.file,
            format=written.format,
            tensors=written.tensors,
            bytes=written.bytes,
            seconds=time.perf_counter() - self._begin,
            renamed=dict(renamed or {}),
            left_out=dict(left_out or {}),
            notes=[*notes, *written.notes],
        )


@contextmanager
def opened(sources: Sequence[Any], dst: Destination, wanted: str | None) -> Iterator[Surgery]:
    """Opens all sources; headers are read, tensors are not.

    Raises:
        ArgumentError: ``dst`` is one of the sources, or lies in one, or no format is called ``wanted``.
        NotFound, FormatError: as in ``holdfast.open``.
    """
    with ExitStack() as stack:
        found = []
        for f in sources:
            if f is dst and not isinstance(f, str):
                raise _own_source(shown_name(dst))
            container = stack.enter_context(open_any(f))
            found.append(Source(shown_name(f), container, container.document()))
        yield Surgery(found, dst, wanted)


def _refuse_own_source(dst: Destination, sources: Sequence[Source]) -> None:
    """Raises ArgumentError when ``dst`` is a file of a source, or lies in the folder of one."""
    if not isinstance(dst, str | os.PathLike):
        return
    path = os.path.realpath(dst)
    for source in sources:
        folder = os.path.realpath(source.container.file)
        if os.path.isdir(folder) and os.path.commonpath([folder, path]) == folder:
            raise _own_source(os.fspath(dst))
        names = {source.container.file, *(segment.source.name for segment in source.container.segments())}
        if os.path.exists(path) and any(os.path.exists(name) and os.path.samefile(name, path) for name in names):
            raise _own_source(os.fspath(dst))


def _own_source(file: str) -> ArgumentError:
    return ArgumentError(f"`{printable(file)}`: is a source itself, or lies in one; write to another file", file=file)
