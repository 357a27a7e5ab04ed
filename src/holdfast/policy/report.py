"""What a load did, or would do, name by name."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.state.paths import printable


class Difference(msgspec.Struct, frozen=True):
    """One name on which file and live object disagree.

    Attributes:
        name: the live object's name for it.
        stored: what the file has, ``(4096, 4096) float16``.
        live: what the object wants.
    """

    name: str
    stored: str
    live: str

    def __str__(self) -> str:
        return f"`{printable(self.name)}`: file has {self.stored}, object wants {self.live}"


class LoadReport(msgspec.Struct):
    """What one restore did. ``print(report)`` is a table for people, ``to_dict()`` is for machines.

    Attributes:
        loaded: names that were given values from the file, as ``model.fc.weight``.
        missing: names of live objects for which the file has nothing.
        unexpected: names of the file that no live object has.
        mismatched: names whose shapes or dtypes differ.
        renamed: live name -> name in the file, where they differ (wrapper prefixes).
        resized: live names whose shape was adapted.
        cast: names that changed dtype, losslessly under Exact.
        tied: names that are filled because they share memory with a loaded name.
        unused: parts of the file that look like the state of an object that nobody asked for.
        values: plain values of the file by name: ``report.values["epoch"]``.
        coverage: loaded elements / elements of the live objects, 0 to 1.
        suggestions: what to try when little matched.
        notes: what else a reader should know: where parts were found, the mode a module is left in.
    """

    loaded: list[str] = []
    missing: list[str] = []
    unexpected: list[str] = []
    mismatched: list[Difference] = []
    renamed: dict[str, str] = {}
    resized: list[Difference] = []
    cast: list[Difference] = []
    tied: list[str] = []
    unused: list[str] = []
    values: dict[str, Any] = {}
    coverage: float = 1.0
    suggestions: list[str] = []
    notes: list[str] = []

    @property
    def is_exact(self) -> bool:
        """Whether everything asked for was loaded and nothing stood in the way."""
        return not (self.missing or self.unexpected or self.mismatched)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts and lists; values that JSON lacks become their repr."""
        result: dict[str, Any] = msgspec.to_builtins(self, enc_hook=repr, builtin_types=())
        return result

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors and states ({self.coverage:.1%} of the elements asked for)"]
        for title, names in (
            ("missing from the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("mismatched", [str(item) for item in self.mismatched]),
            ("renamed", [f"{live} <- {stored}" for live, stored in self.renamed.items()]),
            ("resized: the common part is loaded", [str(item) for item in self.resized]),
            ("cast", [str(item) for item in self.cast]),
            ("tied", self.tied),
            ("in the file, not asked for", self.unused),
            ("values", [f"{name} = {_short(value)}" for name, value in self.values.items()]),
            ("notes", self.notes),
            ("try", self.suggestions),
        ):
            lines += _section(title, names)
        return "\n".join(lines)


_SHOWN = 8


def _section(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    lines = [f"{title} ({len(names)}):"] + [f"  {printable(name)}" for name in names[:_SHOWN]]
    return lines + ([f"  ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
