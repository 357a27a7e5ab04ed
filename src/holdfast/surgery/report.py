"""What making one file out of others did."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.state.paths import printable

_SHOWN = 12


class Rewritten(msgspec.Struct, frozen=True):
    """What was written, and how it differs from what it was made of. Print it, or use its fields.

    Attributes:
        sources: the files it was made of, as the caller named them.
        file: where it went.
        format: ``pt``, ``safetensors``, ...
        tensors: how many tensors it has, aliases included.
        bytes: its size.
        seconds: from the call to the commit; reading back is part of it.
        renamed: old key -> new key, where they differ.
        left_out: what was not taken over, with the stored bytes that it had.
        notes: what else a reader should know.
    """

    sources: list[str]
    file: str
    format: str
    tensors: int
    bytes: int
    seconds: float
    renamed: dict[str, str] = {}
    left_out: dict[str, int] = {}
    notes: list[str] = []

    @property
    def saved(self) -> int:
        """Stored bytes of all that was left out."""
        return sum(self.left_out.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts and lists."""
        return {**msgspec.structs.asdict(self), "saved": self.saved}

    def __str__(self) -> str:
        made_of = ", ".join(printable(one) for one in self.sources)
        what = f"{printable(self.file)}: {self.format}, {self.tensors} tensors, {self.bytes:,} bytes"
        lines = [f"{what}, made of {made_of}, read again and equal"]
        lines += _section("renamed", [f"{old} -> {new}" for old, new in self.renamed.items()])
        left = [f"{name}  {size:,} bytes" if size else name for name, size in self.left_out.items()]
        lines += _section(f"left out, {self.saved:,} bytes", left)
        lines += _section("notes", self.notes)
        return "\n".join(lines)


def _section(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    shown = [f"  {printable(line)}" for line in lines[:_SHOWN]]
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"{title} ({len(lines)}):", *shown, *more]
