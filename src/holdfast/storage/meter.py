"""How far long work is: plain numbers that the work writes and whoever watches reads, when it likes.

Nobody watches unless the command line does, and the work never waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """What is being done, and how much of it is.

    Attributes:
        about: which file or checkpoint, for people.
        stage: what is done with it: ``reading``, ``writing``, ``comparing``; empty before the first bytes.
        total: bytes of this stage.
        done: bytes of it that are behind.
    """

    def __init__(self, about: str = "") -> None:
        self.about = about
        self.stage = ""
        self.total = self.done = 0
        self._lock = threading.Lock()

    def turn_to(self, about: str) -> None:
        """Another file or checkpoint is looked at now."""
        self.about, self.stage, self.total, self.done = about, "", 0, 0

    def begin(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done = stage, total, 0

    def pass_by(self, count: int) -> None:
        with self._lock:
            self.done += count


_watched: list[Meter] = []
"""The innermost is the last."""


@contextmanager
def watched(about: str) -> Iterator[Meter]:
    """A meter that the work inside writes."""
    meter = Meter(about)
    _watched.append(meter)
    try:
        yield meter
    finally:
        _watched.remove(meter)


def begin(stage: str, total: int) -> None:
    """The work says: a stage of ``total`` bytes begins."""
    if _watched:
        _watched[-1].begin(stage, total)


def pass_by(count: int) -> None:
    """The work says: that many bytes more are behind. From any thread."""
    if _watched:
        _watched[-1].pass_by(count)
