"""Runs the code of a block as the program ``__main__`` in a folder of its own, and says what came of it."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from types import ModuleType
from typing import Any, NamedTuple

from tests.tutorials.blocks import PREAMBLE


class Outcome(NamedTuple):
    """What a piece of code did: the word for it, what it printed, and the error or the warnings."""

    word: str
    printed: str


class Program:
    """A module ``__main__`` in which one piece of code runs after the other, from the preamble on."""

    def __init__(self) -> None:
        self.module = ModuleType("__main__")
        self.module.__file__ = str(PREAMBLE)  # TorchScript reads the source of the class
        exec(compile(PREAMBLE.read_text(encoding="utf-8"), PREAMBLE, "exec"), vars(self.module))

    def run(self, code: str) -> Outcome:
        """Runs code; an error and each warning stand below what it printed, as Python prints them."""
        printed = io.StringIO()
        try:
            compiled = compile(code, "block.py", "exec")
        except SyntaxError as error:
            return Outcome("SYNTAX", f"SyntaxError: {error.msg}\n")
        before = sys.modules["__main__"]
        sys.modules["__main__"] = self.module
        error_line = ""
        try:
            with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
                warnings.simplefilter("always")
                try:
                    exec(compiled, vars(self.module))
                except Exception as error:
                    error_line = f"{type(error).__name__}: {_first_lines(error)}\n"
        finally:
            sys.modules["__main__"] = before
        said = sorted({f"{one.category.__name__}: {_first_lines(one.message)}\n" for one in caught if _counts(one)})
        word = "RAISES" if error_line else "WARNS" if said else "OK"
        return Outcome(word, printed.getvalue() + "".join(said) + error_line)


def _first_lines(error: Any) -> str:
    """The text of an error on one line."""
    return " ".join(str(error).split())


def _counts(one: warnings.WarningMessage) -> bool:
    """Whether a warning is for the caller: about his own line, or one of torch's that say what to call instead.

    torch's modules also warn about each other, some of them once in a process.
    """
    text = str(one.message)
    own = one.filename == "block.py" and "TypedStorage" not in text
    return own or re.match(r"`torch\.jit\.(script|trace|load|save)`|torch\.ao\.quantization", text) is not None
