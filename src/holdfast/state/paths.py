"""Names in the tree: a path is a tuple of typed keys, printed dotted for people."""

from __future__ import annotations

import fnmatch
import unicodedata
from collections.abc import Iterable

from holdfast.spec import Path


def dotted(path: Iterable[object]) -> str:
    """``("model", "layers", 0)`` as ``model.layers.0``; for people only, since "0" and 0 print the same."""
    return ".".join(str(key) for key in path) or "(root)"


def matches(path: Path, glob: str) -> bool:
    """Whether the dotted form of ``path`` fits a shell-style pattern; ``*`` also crosses dots."""
    return fnmatch.fnmatchcase(dotted(path), glob)


def printable(text: str) -> str:
    """``text`` with control, format, surrogate and private characters escaped.

    So a name from a file can neither move the cursor nor reverse the line it stands in.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if unicodedata.category(char)[0] not in "CZ" or char == " " else char.encode("unicode_escape").decode()
        for char in text
    )
