"""A disk that waits until it is told to go on, so that a test decides what happens while a save is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from holdfast.storage.syscalls import Syscalls


class SlowDisk:
    """Holds every write of the saver's threads back until :meth:`go`; reading and the rest go on.

    Attributes:
        reached: set when a write waits.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._go = threading.Event()

    def go(self) -> None:
        self._go.set()

    @contextmanager
    def held(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
        real = Syscalls.pwritev

        def pwritev(this: Syscalls, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
            if threading.current_thread() is not threading.main_thread():
                self.reached.set()
                assert self._go.wait(60), "nobody let the disk go on"
            return real(this, fd, buffers, offset)

        with monkeypatch.context() as patch:
            patch.setattr(Syscalls, "pwritev", pwritev)
            try:
                yield self
            finally:
                self._go.set()
