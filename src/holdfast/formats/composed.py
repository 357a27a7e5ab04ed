"""Sources whose bytes are those of several segments: what is verified is the segments."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from holdfast.storage.source import FilledSource

if TYPE_CHECKING:
    from holdfast.formats.base import Segment


class ComposedSource(FilledSource):
    """Bytes put together from segments. They are checked before the first of them is handed out."""

    @abstractmethod
    def segments(self) -> list[Segment]:
        """The stored bytes that are read for it, with their digests or CRCs."""

    @abstractmethod
    def trust(self) -> None:
        """Told when all of ``segments()`` were checked: reading need not do it again."""
