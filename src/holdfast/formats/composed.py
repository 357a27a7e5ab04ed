"""Sources whose bytes are those of several segments: what is verified is the segments."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from holdfast.storage.source import ByteSource, FilledSource

if TYPE_CHECKING:
    from holdfast.formats.base import Segment


class ComposedSource(FilledSource):
    """Bytes put together from segments. They are checked before the first of them is handed out."""

    @abstractmethod
    def segments(self) -> list[Segment]:
        """The stored bytes that are read for it, with their digests or CRCs."""

    @abstractmethod
    def beneath(self) -> ByteSource | None:
        """One of the sources that are read for it, which says how all of them are best read; None for no bytes."""

    @property
    def step(self) -> int:
        """Bytes that are best asked for at once; 0 for any."""
        return getattr(self.beneath(), "step", 0)

    @property
    def parallel(self) -> int:
        """Reads that are best under way at a time; 0 for any."""
        return getattr(self.beneath(), "parallel", 0)

    @abstractmethod
    def trust(self) -> None:
        """Told when all of ``segments()`` were checked: reading need not do it again."""
