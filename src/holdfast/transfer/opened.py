"""A file, checkpoint or tree as a document, and the lazy view of it that ``holdfast.open`` gives."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.errors import NotFound
from holdfast.formats.base import Container, Document
from holdfast.formats.writing import shown_name
from holdfast.runs.opening import open_any
from holdfast.serialization.lazy import LazyTensor, lazy_tensors
from holdfast.state.paths import printable
from holdfast.transfer.save import document_of


def is_source(f: Any) -> bool:
    """Whether ``f`` is something to open, and not a tree in memory."""
    return isinstance(f, str | os.PathLike | io.IOBase) or callable(getattr(f, "read", None))


@contextmanager
def opened_document(f: Any) -> Iterator[tuple[Document, str]]:
    """The document of a path, reference, file object or tree in memory, and what errors call it."""
    with opened_file(f) as (document, file, _):
        yield document, file


@contextmanager
def opened_file(f: Any) -> Iterator[tuple[Document, str, Container | None]]:
    """As ``opened_document``, and the open file that it came from; None for a tree in memory."""
    if not is_source(f):
        yield document_of(f, row_major=False)[0], "the tree in memory", None
        return
    with open_any(f) as container:
        yield container.document(), shown_name(f), container


class Opened:
    """A file with only its headers read. A context manager; a mapping from dotted names to lazy tensors.

    Attributes:
        file: as the caller named it.
        format: ``torch-zip``, ``safetensors``, ``run-checkpoint``, ...
        metadata: the user's own strings.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"w": torch.ones(2, 3)}, "w.pt")
        >>> with holdfast.open("w.pt") as ckpt:
        ...     ckpt["w"].spec.shape
        (2, 3)
    """

    def __init__(self, container: Container, file: str) -> None:
        self._container = container
        self.file = file
        self.format = container.format
        document = container.document()
        self.metadata = document.metadata
        self._tensors = lazy_tensors(document.tree, file)

    def keys(self) -> list[str]:
        """The dotted names of all tensors, in the order of the file."""
        return list(self._tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        try:
            return self._tensors[name]
        except KeyError:
            near = [key for key in self._tensors if key.endswith(f".{name}")] or list(self._tensors)
            shown = ", ".join(f"`{printable(key)}`" for key in near[:5])
            raise NotFound(
                f"`{self.file}`: has no tensor `{name}`; there are {shown or 'none'}", file=self.file, path=name
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Closes the file; lazy tensors can't be read any more."""
        self._container.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
