"""What ends a training from outside or inside: signals that ask it to save and go, errors that nobody catches."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SignalWatch:
    """Handlers for SIGTERM, SIGUSR1 and SIGINT while a run trains; those that were there before are called too.

    Signals reach the main thread only; in any other thread nothing is installed.

    Args:
        on_signal: called in the main thread with the signal's number; True means that the run is saved and the
            process may go, False that this has to wait.
    """

    def __init__(self, on_signal: Callable[[int], bool]) -> None:
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}
        self.pending: int | None = None
        """The first signal that waits, or None."""

    def start(self) -> None:
        """Installs the handlers; calling it twice is fine."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in WATCHED:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN and before is not None:  # None: not Python's to put back
                self._before[number] = signal.signal(number, self._handle)

    def stop(self) -> None:
        """Puts the handlers back that were there before."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """Ends the process as a shell expects of signal n, with exit code 128 + n, if one is pending."""
        if self.pending is not None:
            raise SystemExit(128 + self.pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.pending is not None:
            raise KeyboardInterrupt  # pressed again: at once, whatever it costs
        self.pending = self.pending or number
        saved = self._on_signal(number)
        handler = self._before.get(number)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)
        if saved:
            self.leave()


class ErrorWatch:
    """Hears of an error that ends the program before Python prints it; the hook that was there before is called too.

    Args:
        on_error: called with the error.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._before: Callable[..., Any] | None = None
        self._hook = self._uncaught  # one object: a bound method is a new one at each look

    def start(self) -> None:
        """Installs the hook; calling it twice is fine."""
        if self._before is None:
            self._before, sys.excepthook = sys.excepthook, self._hook

    def stop(self) -> None:
        """Puts the hook back that was there before, unless another came on top of it."""
        if self._before is not None and sys.excepthook is self._hook:
            sys.excepthook, self._before = self._before, None

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._on_error(error)
        if self._before is not None:
            self._before(kind, error, trace)
