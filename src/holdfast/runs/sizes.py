"""Numbers of bytes as text: as rules write them, and as people read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from holdfast.errors import ArgumentError
from holdfast.state.paths import printable

if TYPE_CHECKING:
    from holdfast.formats.sharding import Cut

BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
"""The units of size in rules, in bytes."""
_SIZE = re.compile(rf"([0-9]{{1,18}})({'|'.join(BYTES)})")
_SHOWN = ("B", "kB", "MB", "GB", "TB", "PB")


def parse_size(text: str) -> int:
    """``50GB`` in bytes; units are B, kB, MB, GB, TB, and KiB, MiB, GiB, TiB.

    Raises:
        ArgumentError: it is no positive number with such a unit.
    """
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ArgumentError(
            f"{printable(text)!r}: a whole number above 0 and a unit are wanted: 50GB; units: {', '.join(BYTES)}"
        )
    return int(match[1]) * BYTES[match[2]]


def parse_cut(shards: int | str | None) -> Cut | None:
    """Into how many files: ``4``, or ``"5GB"`` for as many as keep each below that size; None for one file.

    Raises:
        ArgumentError: it is neither a number above 0 nor a size.
    """
    if shards is None:
        return None
    from holdfast.formats.sharding import Cut  # it loads what stages folders

    text = str(shards)
    if type(shards) is not bool and text.isascii() and text.isdecimal() and len(text) < 10 and int(text):
        return Cut(count=int(text))
    if isinstance(shards, str) and _SIZE.fullmatch(text) and text[0] != "0":
        return Cut(size=parse_size(text))
    raise ArgumentError(
        f"shards={printable(repr(shards)[:40])}: a number of files above 0 is wanted, or the most bytes of one: 4, or "
        f"5GB; units: {', '.join(BYTES)}"
    )


def exact_text(count: int) -> str:
    """``50GB``: what :func:`parse_size` reads, in the largest unit that leaves no fraction."""
    unit = max((unit for unit in BYTES if count % BYTES[unit] == 0), key=BYTES.__getitem__)
    return f"{count // BYTES[unit]}{unit}"


def size_text(count: int) -> str:
    """``1.5 GB``: decimal units, three digits."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_SHOWN) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.3g} {_SHOWN[unit]}"
