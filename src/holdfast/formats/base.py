"""What every container format has in common: the values between files and tensors.

A *container* is one opened file. Reading turns it into a *document*: a tree of plain values, ``Typed`` values and
``StoredTensor`` leaves. Writing takes the same document with ``Segment``s that say where the bytes come from. Nothing
here knows torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from holdfast.spec import TensorSpec
from holdfast.storage.source import ByteSource

if TYPE_CHECKING:
    from holdfast.storage.places import Staged


INDEX_SUFFIX = ".index.json"
"""How the index of a model in several files ends."""


# gc=False below: these values form no cycles, and a document of 50,000 tensors opens twice as fast when the collector
# does not walk them.
class Segment(msgspec.Struct, eq=False, gc=False):
    """A run of bytes that tensors are views of: a torch storage, or one tensor of a safetensors file.

    Two tensors share memory exactly when they name the same Segment object.

    Attributes:
        source: where the bytes are: a file (reading, converting) or live memory (saving).
        offset: first byte in ``source``.
        length: bytes.
        name: what the container calls it (``data/0``, ``fc.weight``); messages use it.
        chunks: one ``xxh3-128`` digest (hex) for each 8 MiB, when known.
        crc32: CRC-32 of all bytes, when known; a zip's 0 means "not computed" and is given as None.
        location: the device tag that torch recorded, such as ``cuda:0``.
        swapped: the bytes are big-endian and must be swapped on reading.
    """

    source: ByteSource
    offset: int
    length: int
    name: str = ""
    chunks: tuple[str, ...] | None = None
    crc32: int | None = None
    location: str = "cpu"
    swapped: bool = False


class StoredTensor(msgspec.Struct, eq=False, gc=False):
    """A tensor that is still bytes: its spec and its place in a segment.

    Attributes:
        spec: dtype, shape and stride of the elements as they lie in the segment.
        segment: the bytes.
        offset: bytes from the start of the segment to the first element.
        requires_grad: as saved.
        live_stride: the stride that the tensor had in memory, where a container that stores only row-major bytes made
            it row-major (channels_last, say); reading gives it back. None when it is that of ``spec``.
    """

    spec: TensorSpec
    segment: Segment
    offset: int = 0
    requires_grad: bool = False
    live_stride: tuple[int, ...] | None = None


class Document(msgspec.Struct):
    """A tree with everything that is known beside it.

    Attributes:
        tree: dicts with string keys, lists, plain values, ``Typed`` values and ``StoredTensor`` leaves.
        objects: what was recorded of each live object, by its dotted path: ``{"model": {"kind": "module", ...}}``.
        metadata: the user's own strings.
    """

    tree: Any
    objects: dict[str, dict[str, Any]] = {}
    metadata: dict[str, str] = {}


class Container(ABC):
    """One opened file, headers read and checked, tensors untouched. A context manager: leaving it closes the file."""

    format: str
    """The format's name: ``safetensors``, ``torch-zip``, ``run-checkpoint``, ..."""
    file: str
    """The file as the caller named it; messages use it."""

    @abstractmethod
    def document(self) -> Document:
        """The tree. Raises FormatError when the content can't be read safely."""

    @abstractmethod
    def segments(self) -> list[Segment]:
        """All stored bytes, for verification; each is listed once, with its digests or CRC where it has them."""

    def check(self, document: Document) -> None:  # noqa: B027  # most files say everything once
        """Raises CorruptFile when a file that says a thing twice says it differently; for verification.

        Args:
            document: what ``document()`` gave.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Format(Protocol):
    """A container format: how to recognise, open and write it. Implemented by modules of this folder."""

    NAME: str
    SUFFIXES: tuple[str, ...]

    def sniff(self, head: bytes) -> bool:
        """Whether a file that begins with ``head`` (its first 4096 bytes, or all of them) looks like this format."""
        ...

    def open(self, source: ByteSource, file: str) -> Container:
        """Reads and checks the headers. Raises FormatError."""
        ...

    def write(self, staged: Staged, document: Document, *, top: str = "archive") -> Mapping[str, Any]:
        """Writes a document; returns what a caller should be told (``notes``: list of str)."""
        ...
