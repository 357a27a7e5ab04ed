"""A script's text out of a file: its encoding, its cells if it is a notebook, and what is too large to be read."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import tokenize
from typing import Any, NamedTuple

from holdfast.errors import NotFound, RefusedFile, StorageError, UnknownFormat
from holdfast.state.paths import printable

MOST_CODE = 1 << 20
MOST_NOTEBOOK = 64 << 20
"""Bytes: a notebook has its pictures in it, a script has none."""

_SLOW = {"idna", "punycode", "unicode_escape", "raw_unicode_escape"}
"""Encodings that no script has, and that take a time that grows with the square of the length."""

_MAGIC = re.compile(r"^(\s*)([%!?]|\w[\w.]*\?{1,2}\s*$)")


class Source(NamedTuple):
    """The code of one file.

    ``encoding`` is that of the file. ``cells`` has the cell's number and the line in it for each line of ``text``, or
    nothing where it is no notebook.
    """

    file: str
    text: str
    encoding: str = "utf-8"
    cells: tuple[tuple[int, int], ...] = ()

    @property
    def takes_diffs(self) -> bool:
        """Whether a diff of the text is one of the file: not of cells, nor behind a byte order mark."""
        return not self.cells and self.encoding != "utf-8-sig"

    def place(self, line: int) -> str:
        """``train.py:12``, or ``notes.ipynb:cell 3:12``."""
        if not self.cells:
            return f"{self.file}:{line}"
        cell, inner = self.cells[min(line, len(self.cells)) - 1]
        return f"{self.file}:cell {cell}:{inner}"


def read_source(file: str) -> Source:
    """The code of a script, or of a notebook's code cells one after the other.

    Args:
        file: path of a ``.py``, or of an ``.ipynb``.

    Raises:
        NotFound: there is no such file.
        StorageError: it is no regular file, or can't be read.
        RefusedFile: it is larger than a script is.
        UnknownFormat: its text can't be decoded, or it is no notebook.
    """
    is_notebook = file.endswith(".ipynb")
    data = _read(file, MOST_NOTEBOOK if is_notebook else MOST_CODE)
    source = _notebook(file, data) if is_notebook else Source(file, *_decode(file, data))
    if len(source.text) > MOST_CODE:
        raise RefusedFile(_said(file, f"has more than {MOST_CODE:,} characters of code"), file=file)
    if "\0" in source.text:
        line = source.text.count("\n", 0, source.text.index("\0")) + 1
        raise UnknownFormat(f"`{printable(source.place(line))}`: has a null byte, which no Python file has", file=file)
    return source


def _said(file: str, problem: str) -> str:
    return f"`{printable(file)}`: {problem}"


def _read(file: str, most: int) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited for
            raise StorageError(_said(file, "is no regular file: name a script"), file=file)
        with open(file, "rb") as opened:
            data = opened.read(most + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(_said(file, "no such file"), file=file) from error
    except (OSError, ValueError) as error:
        raise StorageError(_said(file, f"can't be read: {error}"), file=file) from error
    if len(data) > most:
        raise RefusedFile(_said(file, f"has more than {most:,} bytes, and no script has"), file=file)
    return data


def _decode(file: str, data: bytes) -> tuple[str, str]:
    """The text and its encoding: the one that its first lines name (PEP 263), or UTF-8."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding.replace("-", "_").lower() in _SLOW:
            raise UnknownFormat(_said(file, f"says that it is in {encoding}, which no script is"), file=file)
        return data.decode(encoding), encoding
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"is not {error.encoding}, as it should be: save it as UTF-8"
        raise UnknownFormat(f"`{printable(file)}:{line}`: {problem}", file=file, offset=error.start) from error
    except (SyntaxError, LookupError, UnicodeError) as error:
        raise UnknownFormat(
            _said(file, f"names an encoding that is not known: {printable(str(error))}"), file=file
        ) from error


def _notebook(file: str, data: bytes) -> Source:
    try:
        cells = json.loads(data)["cells"]
        codes = [(number, _code(cell)) for number, cell in enumerate(cells, 1) if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnknownFormat(_said(file, "is no notebook: it has no list of cells as JSON"), file=file) from error
    lines: list[str] = []
    places: list[tuple[int, int]] = []
    for number, code in codes:
        for inner, line in enumerate(_python(code), 1):
            lines.append(line)
            places.append((number, inner))
    return Source(file, "".join(f"{line}\n" for line in lines), cells=tuple(places) or ((1, 1),))


def _code(cell: dict[str, Any]) -> str:
    code = cell["source"]
    return "".join(code) if isinstance(code, list) else str(code)


def _python(code: str) -> list[str]:
    """The lines of a cell; those that are for the notebook (``%time``, ``!pip``) become comments."""
    lines = code.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].startswith("%%"):  # the whole cell is for another program
        return ["#" for _ in lines]
    return [_MAGIC.sub(r"\1pass  # \2", line) for line in lines]
