"""A diff as data for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.report.tensor_data import short
from holdfast.state.diff import Change, Diff
from holdfast.state.diff_text import summary_text
from holdfast.state.paths import printable

VALUES = 2_000
"""Values that differ which a page shows."""


def difference_data(diff: Diff) -> dict[str, Any]:
    """What the page shows of a diff."""
    return {
        "a": printable(diff.a),
        "b": printable(diff.b),
        "summary": printable(summary_text(diff)),
        "identical": diff.identical,
        "same": len(diff.same),
        "unlike": [_change(one) for one in diff.unlike],
        "renamed": [[printable(one.name), printable(one.other)] for one in diff.renamed],
        "removed": [[printable(one.name), str(one.spec)] for one in diff.removed],
        "added": [[printable(one.name), str(one.spec)] for one in diff.added],
        "values": [[_text(one.name), _text(one.left), _text(one.right)] for one in diff.values[:VALUES]],
        "notes": [printable(note) for note in (*diff.notes, *_left_out(diff.values))],
    }


def _left_out(values: Sequence[object]) -> list[str]:
    return [f"{len(values) - VALUES:,} more values differ"] if len(values) > VALUES else []


def _change(one: Change) -> dict[str, Any]:
    found: dict[str, Any] = {"name": printable(one.name), "left": str(one.left), "right": str(one.right)}
    if one.other != one.name:
        found["other"] = printable(one.other)
    if one.numbers is not None:
        numbers = one.numbers
        found["differing"] = numbers.differing / numbers.elements if numbers.elements else 0.0
        for name in ("norm", "relative", "largest", "cosine"):
            found[name] = short(getattr(numbers, name))
        found["nan"] = [*numbers.nan, *numbers.infinite]
    return found


def _text(text: str | None) -> str | None:
    return None if text is None else printable(text[:400])
