"""What lies around the records of our own torch zips: padding, dates and attributes, which no CRC covers.

Names, lengths and CRCs decide every byte of it, so that nothing needs to be stored to check it: it is planned again as
for writing, and compared.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.formats.archive import Archive
from holdfast.formats.window import WINDOW, Window
from holdfast.formats.zipwriter import Planned, directory, plan


def odd_byte(archive: Archive) -> int | None:
    """The first byte around the records that our writer would have written otherwise.

    Args:
        archive: one that our writer wrote.

    Returns:
        Where it is; None when all is as it was written, or when another program has packed the records anew.
    """
    records = list(archive.records.values())
    planned = plan([(name, record.size) for name, record in archive.records.items()], archive.top)
    if any(
        (one.header, one.start) != (record.header, record.start) for one, record in zip(planned, records, strict=True)
    ):
        return None
    for one, record in zip(planned, records, strict=True):
        one.crc = record.crc
    window = Window(archive.source)
    for at, wanted, following in _frame(planned):
        found = window.read(at, len(wanted), next_offset=following)
        if found != wanted:
            return at + next((i for i, (x, y) in enumerate(zip(found, wanted, strict=False)) if x != y), len(found))
    end = planned[-1].end + len(directory(planned))
    return None if end == archive.source.size else end


def _frame(planned: list[Planned]) -> Iterator[tuple[int, bytes, int]]:
    """(first byte, what has to be there, where the next piece is) around each record, then the directory."""
    for index, one in enumerate(planned):
        body = one.start + one.size
        yield one.header, one.head(), body if one.size < WINDOW else one.header + 2 * WINDOW
        following = planned[index + 1].header if index + 1 < len(planned) else one.end
        yield body, one.tail(), following
    yield planned[-1].end, directory(planned), planned[-1].end
