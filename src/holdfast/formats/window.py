"""Reading the small pieces between large ones, without a system call for each and without the large ones."""

from __future__ import annotations

from holdfast.storage.source import ByteSource

_FIRST = 1024
WINDOW = 1 << 18
"""Bytes of the largest block."""


class Window:
    """Small reads at rising offsets, served out of one larger block while they are close together.

    Blocks begin small and double while reads go on where the last one ended: of large records only the few bytes
    between them are wanted, of small ones everything.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._begin = 0
        self._data = b""
        self._ahead = _FIRST

    def read(self, offset: int, length: int, *, next_offset: int) -> bytes:
        """Up to ``length`` bytes (fewer at the end of the file); reads ahead when the next read will be near."""
        at = offset - self._begin
        if at < 0 or at + length > len(self._data):
            self._ahead = min(2 * self._ahead, WINDOW) if 0 <= at <= 2 * len(self._data) else _FIRST
            ahead = self._ahead if next_offset - offset < WINDOW // 4 else length
            self._data = self._source.read(offset, min(max(ahead, length), self._source.size - offset))
            self._begin, at = offset, 0
        return self._data[at : at + length]
