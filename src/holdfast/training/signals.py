"""What ends a training from outside or inside: signals that ask it to save and go, errors that nobody catches."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("holdfast")

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SignalWatch:
    """Handlers for SIGTERM, SIGUSR1 and SIGINT while a run trains; those that were there before are called too.

    Signals reach the main thread only; in any other thread nothing is installed. A terminal or a cluster sends them to
    every process of a program: loader workers leave SIGINT and SIGUSR1 to the process that trains, and when SIGTERM
    ends them, that is no error there any more.

    Args:
        on_signal: called in the main thread with the signal's number; True means that the run is saved and the
            process may go, False that this has to wait.
    """

    def __init__(self, on_signal: Callable[[int], bool]) -> None:
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}
        self._process = 0
        self.pending: int | None = None
        """The first signal that waits, or None."""

    def start(self) -> None:
        """Installs the handlers; calling it twice is fine."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in WATCHED:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN and before is not None:  # None: not Python's to put back
                self._before[number] = signal.signal(number, self._handle)

    def stop(self) -> None:
        """Puts the handlers back that were there before, where no other has been put over these."""
        if threading.current_thread() is not threading.main_thread():
            return
        before, self._before = self._before, {}
        for number, handler in before.items():
            if signal.getsignal(number) in (self._handle, self._worker_ended):
                signal.signal(number, handler)

    def told(self, on_any: Callable[[bool], bool]) -> bool:
        """Whether a signal is pending here, or in another process of the group, which are told to go together."""
        if not on_any(self.pending is not None):
            return False
        self.pending = self.pending or signal.SIGTERM
        return True

    def leave(self) -> None:
        """Ends the process as a shell expects of signal n, with exit code 128 + n, if one is pending."""
        if self.pending is not None:
            raise SystemExit(128 + self.pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._in_child(number, frame)
            return
        if number == signal.SIGINT and self.pending is not None:
            raise KeyboardInterrupt  # pressed again: at once, whatever it costs
        if self.pending is None:
            self.pending = number
            self._let_workers_end()
        saved = self._on_signal(number)
        self._chain(number, frame)
        if saved:
            self.leave()

    def _chain(self, number: int, frame: FrameType | None) -> None:
        handler = self._before.get(number)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)

    def _in_child(self, number: int, frame: FrameType | None) -> None:
        """A forked child saves nothing, and goes on while the process that trains does so; SIGTERM ends it."""
        self._chain(number, frame)
        if number == signal.SIGTERM and not callable(self._before.get(number)):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _let_workers_end(self) -> None:
        """From here on a loader worker that ended, by the same signal, must not break into the save."""
        before = signal.getsignal(signal.SIGCHLD)
        if callable(before):
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, self._worker_ended)

    def _worker_ended(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[number](number, frame)
        except RuntimeError as reason:  # torch's handler raises it, wherever the program is
            log.info("a loader worker ended before the run: %s", reason)


def note_unsaved(error: BaseException) -> None:
    """Says in an error that ends one of several processes that nothing was saved."""
    if not isinstance(error, SystemExit | GeneratorExit):
        error.add_note(
            "holdfast: save='exception' saves nothing where several processes train, since the others may not have "
            "failed; give a rule of steps or time, such as save='15min exception'"
        )


class ErrorWatch:
    """Hears of an error that ends the program before Python prints it; the hook that was there before is called too.

    Args:
        on_error: called with the error.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._before: Callable[..., Any] | None = None
        self._hook = self._uncaught  # one object: a bound method is a new one at each look
        self._process = 0

    def start(self) -> None:
        """Installs the hook; calling it twice is fine."""
        self._process = os.getpid()
        if self._before is None:
            self._before, sys.excepthook = sys.excepthook, self._hook

    def stop(self) -> None:
        """Puts the hook back that was there before, unless another came on top of it."""
        if self._before is not None and sys.excepthook is self._hook:
            sys.excepthook, self._before = self._before, None

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() == self._process:  # the error of a forked child is none of the training
            self._on_error(error)
        if self._before is not None:
            self._before(kind, error, trace)
