"""A pause of Python's cyclic garbage collector while a large tree is made.

The collector runs after so many new objects, and each time looks at all of them again. A tree of fifty thousand
tensors is some hundred thousand objects that are all kept: every look is in vain, and together they take a third of
the time. Objects that are dropped are still freed at once, by their reference counts.
"""

from __future__ import annotations

import contextlib
import gc
import threading


class _Pause(contextlib.ContextDecorator):
    """For ``with`` and as a decorator. Several threads may enter: the last to leave puts back what the first found."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._was_enabled:
                gc.enable()


collector_paused = _Pause()
"""``with collector_paused:`` or ``@collector_paused`` for code that makes many objects and keeps them."""
