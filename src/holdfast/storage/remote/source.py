"""An object of a store as a ByteSource: ranged reads, straight into the memory where the bytes are wanted."""

from __future__ import annotations

import bisect
import threading
import time

from holdfast.errors import NotFound, StorageError
from holdfast.storage.remote.store import PARALLEL, PART, Meta, Store
from holdfast.storage.source import FilledSource, byte_view, check_inside, shown
from holdfast.storage.workers import BLOCK, run_jobs

_AHEAD = 64 << 10
"""Bytes that are fetched at least: headers are read in small pieces, and each way to the store and back costs time."""
_KEPT = 16 << 20
"""Bytes of headers that are remembered."""
_BROKEN = 4
"""Connections that may break in a row, without a byte between, before the read is given up."""


class _Ahead(threading.local):
    """What this thread fetched and has not been asked for yet."""

    begin: int = 0
    data: memoryview = memoryview(b"")


class RemoteSource(FilledSource):
    """An object, as it was when it was opened: one that was replaced meanwhile is noticed, and never mixed.

    Attributes:
        name: its URL.
        step: bytes that are best asked for at once.
        parallel: requests that are best under way at a time.

    Args:
        store: where it is.
        key: its key.

    Raises:
        NotFound: there is no such object, or no such bucket.
        StorageError: the store does not answer, or refuses.
    """

    step = PART
    parallel = PARALLEL

    def __init__(self, store: Store, key: str) -> None:
        self.name = store.url(key)
        self._store = store
        self._key = key
        meta = store.head(key)
        if meta is None:
            store.list(key)  # says so when it is the bucket that is missing
            raise NotFound(f"`{shown(self.name)}`: no such object", file=self.name)
        self.meta: Meta = meta
        self._ahead = _Ahead()
        self._guard = threading.Lock()
        self._left = _KEPT
        self._kept: list[tuple[int, memoryview]] = []

    @property
    def size(self) -> int:
        return self.meta.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_inside(self.name, self.size, offset, buffer.nbytes)
        view = byte_view(buffer)
        if view.nbytes > BLOCK:
            self._fetch(offset, view)
        elif view.nbytes:
            view[:] = self._small(offset, view.nbytes)

    def _small(self, offset: int, length: int) -> memoryview:
        """A piece of a block that is fetched as a whole: of 64 KiB, or of 8 MiB where reads follow one another."""
        kept = self._kept_piece(offset, length)
        if kept is not None:
            return kept
        ahead = self._ahead
        at = offset - ahead.begin
        if not 0 <= at <= ahead.data.nbytes - length:
            follows = offset == ahead.begin + ahead.data.nbytes and offset > 0
            size = max(length, min(PART if follows else _AHEAD, self.size - offset))
            data = memoryview(bytearray(size))
            self._fetch(offset, data)
            ahead.begin, ahead.data, at = offset, data, 0
            if not follows:
                self._keep(offset, data)
        return ahead.data[at : at + length]

    def _keep(self, offset: int, data: memoryview) -> None:
        """Remembers a block of headers, up to a limit: they are read here and there, and some of them again."""
        with self._guard:
            if self._left >= data.nbytes:
                self._left -= data.nbytes
                bisect.insort(self._kept, (offset, data), key=lambda one: one[0])

    def _kept_piece(self, offset: int, length: int) -> memoryview | None:
        with self._guard:
            index = bisect.bisect_right(self._kept, offset, key=lambda one: one[0]) - 1
            begin, data = self._kept[index] if index >= 0 else (0, memoryview(b""))
        at = offset - begin
        return data[at : at + length] if at + length <= data.nbytes else None

    def prefetch(self, places: list[tuple[int, int]]) -> None:
        """Fetches many small pieces that will be read soon, several at a time.

        Args:
            places: (offset, bytes) of each, in order; what reaches past the end is left out.
        """
        groups: list[list[int]] = []
        for offset, length in places:
            end = min(offset + length, self.size)
            if end <= offset:
                continue
            if groups and offset - groups[-1][1] < _AHEAD and end - groups[-1][0] <= PART:
                groups[-1][1] = max(end, groups[-1][1])
            else:
                groups.append([offset, end])

        def fetch(group: list[int]) -> None:
            data = memoryview(bytearray(group[1] - group[0]))
            self._fetch(group[0], data)
            self._keep(group[0], data)

        run_jobs(groups, fetch, PARALLEL)

    def _fetch(self, offset: int, view: memoryview) -> None:
        """Fills ``view``; goes on where a connection broke, until several in a row give nothing."""
        done = broken = 0
        while done < view.nbytes:
            before = done
            chunks = self._store.begin(self._key, self.meta, offset + done, offset + view.nbytes)
            try:
                for chunk in chunks:
                    size = min(chunk.nbytes, view.nbytes - done)
                    view[done : done + size] = chunk[:size]
                    done += size
            except StorageError:
                broken = 1 if done > before else broken + 1
                if broken >= _BROKEN:
                    raise
                time.sleep(0.1 * 2**broken)
                continue
            broken = 1 if done > before else broken + 1
            if done < view.nbytes and broken >= _BROKEN:
                raise StorageError(
                    f"`{shown(self.name)}`: the store ends its answers before byte {offset + view.nbytes:,}",
                    file=self.name,
                    offset=offset + done,
                )

    def close(self) -> None:
        """Lets go of what was fetched ahead."""
        self._ahead, self._kept = _Ahead(), []
