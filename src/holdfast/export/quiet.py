"""Exporters talk: to stdout, to stderr, to loggers, in warnings. None of it reaches the user but as notes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from holdfast.state.paths import printable

_CHATTERS = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime")
"""Loggers, with all below them, that exporters write to."""
_NOTES = 4
_STDERR = 2
_SAID = 4000


class _Aside(io.TextIOBase):
    """A text stream that drops what one thread writes and passes on what others do."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Nothing that this thread's exporters print, log or warn of reaches the user; gives what they warned of.

    Warnings that something is deprecated are dropped: they are for whoever calls these functions, which is us.
    """
    told: list[str] = []
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.name.split(".")[0] not in _CHATTERS

    handlers = _handlers()
    for handler in handlers:
        handler.addFilter(passes)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(_Aside(sys.stdout)),
            contextlib.redirect_stderr(_Aside(sys.stderr)),
        ):
            warnings.simplefilter("always")
            yield told
    finally:
        for handler in handlers:
            handler.removeFilter(passes)
    for warning in caught:
        line = first_line(warning.message)
        if not issubclass(warning.category, DeprecationWarning | FutureWarning) and line not in told[: _NOTES + 1]:
            told.append(line)
    del told[_NOTES:]


def _handlers() -> list[logging.Handler]:
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    found = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    last = logging.lastResort
    return list(dict.fromkeys([*found, *([last] if last is not None else [])]))


def first_line(reason: object, most: int = 300) -> str:
    """The first line that says something of an error of torch's, short and printable."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    line = printable(lines[0] if lines else type(reason).__name__)
    return line if len(line) <= most else line[: most - 3] + "..."


@contextlib.contextmanager
def caught_stderr() -> Iterator[list[str]]:
    """Gives the first line that was written to the descriptor of stderr meanwhile: TorchScript's C++ warns there.

    It can't tell threads apart, so it is for calls that are short.
    """
    told: list[str] = []
    try:
        kept = os.dup(_STDERR)
    except OSError:  # a process without stderr
        yield told
        return
    memory = os.memfd_create("holdfast-stderr", os.MFD_CLOEXEC)
    try:
        os.dup2(memory, _STDERR)
        yield told
    finally:
        os.dup2(kept, _STDERR)
        text = os.pread(memory, _SAID, 0).decode(errors="replace").strip()
        os.close(memory)
        os.close(kept)
    if text:
        told.append(first_line(text))
