"""What a load did, or would do, name by name."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.state.paths import printable
from holdfast.state.table import html_page
from holdfast.state.tree_view import Leaf, tree_lines
from holdfast.state.wrappers import rename_lines


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
        lines = [self._summary()]
        for title, rows in self._sections():
            lines += [f"{title}:", *(f"  {row}" for row in rows)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_page(self._summary(), [], [((title,), [[row] for row in rows]) for title, rows in self._sections()])

    def _summary(self) -> str:
        return f"loaded {len(self.loaded)} tensors and states ({self.coverage:.1%} of the elements asked for)"

    def _sections(self) -> list[tuple[str, list[str]]]:
        """Titles with their lines, those that are not empty."""
        renamed = rename_lines((stored, live) for live, stored in self.renamed.items())
        found = [
            _tree("missing from the file", [Leaf(name, "") for name in self.missing]),
            _tree("unexpected in the file", [Leaf(name, "") for name in self.unexpected]),
            _tree("mismatched", [_leaf(item) for item in self.mismatched]),
            _section("renamed", renamed, len(self.renamed)),
            _tree("resized, the common part is loaded", [_leaf(item) for item in self.resized]),
            _tree("cast", [_leaf(item) for item in self.cast]),
            _tree("tied to a loaded name", [Leaf(name, "") for name in self.tied]),
            _section("in the file, not asked for", self.unused),
            _section("values", [f"{name} = {_short(value)}" for name, value in self.values.items()]),
            _section("notes", self.notes),
            _section("try", self.suggestions),
        ]
        return [section for section in found if section[1]]


_SHOWN = 8


def _section(title: str, lines: list[str], count: int | None = None) -> tuple[str, list[str]]:
    """A titled list of at most eight lines."""
    shown = [printable(one) for one in lines[:_SHOWN]]
    more = [f"... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
    return f"{title} ({len(lines) if count is None else count})", shown + more


def _leaf(item: Difference) -> Leaf:
    return Leaf(item.name, f"file has {item.stored}, object wants {item.live}")


def _tree(title: str, found: list[Leaf]) -> tuple[str, list[str]]:
    """Names by prefix, repeated blocks once."""
    lines = []
    for line in tree_lines(found):
        times = f"  x{line.count}" if line.count > 1 else ""
        lines.append(f"{'  ' * line.depth}{line.name}{times}{'  ' if line.text else ''}{line.text}")
    return _section(title, lines, len(found))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
