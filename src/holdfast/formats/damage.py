"""What bytes that differ from their digest or CRC become: one error that names the tensor and the place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.errors import CorruptFile
from holdfast.formats.base import Segment
from holdfast.formats.composed import ComposedSource
from holdfast.state.paths import printable
from holdfast.storage.requests import Check, Damage, verify_ranges


def raise_damage(damages: Sequence[Damage]) -> None:
    """Raises CorruptFile for the first of them, if there is one."""
    if damages:
        first = damages[0]
        others = len({(damage.name, damage.offset) for damage in damages}) - 1
        more = f"; other damaged places: {others}" if others else ""
        raise CorruptFile(
            f"`{printable(first.file)}`: at byte {first.offset:,}: `{printable(first.name)}` has {first.found}, the "
            f"file says {first.expected}: corrupt{more}. Nothing was loaded; use another copy or an older checkpoint",
            file=first.file,
            path=first.name,
            offset=first.offset,
        )


def verify_segments(segments: Iterable[Segment], *, workers: int | None = None) -> int:
    """Checks all bytes of segments against their digests or CRCs, each once; returns how many have neither.

    Raises:
        CorruptFile: names the first damaged tensor and byte.
    """
    given = [segment for segment in segments if segment.length]
    composed = [segment.source for segment in given if isinstance(segment.source, ComposedSource)]
    plain = [segment for segment in given if not isinstance(segment.source, ComposedSource)]
    plain += [part for source in composed for part in source.segments() if part.length]
    unique = {(id(s.source), s.offset, s.length): s for s in plain}.values()
    checks = [Check(s.source, s.offset, s.length, s.chunks, s.crc32, s.name) for s in unique]
    raise_damage(verify_ranges(checks, workers=workers))
    for source in composed:
        source.trust()
    return sum(segment.chunks is None and segment.crc32 is None for segment in unique)
