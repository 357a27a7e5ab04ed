"""How a diff looks: lines for people, a table for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.spec import TensorSpec
from holdfast.state.diff import Change, Diff, Numbers, ValueChange
from holdfast.state.paths import printable
from holdfast.state.table import Row, columns, html_page
from holdfast.state.tree_view import Leaf, tree_lines
from holdfast.state.wrappers import rename_lines

_SHOWN = 20
_LONG = 80
_MEASURED = ("norm", "relative", "largest", "cosine", "elements")


def diff_lines(diff: Diff, *, everything: bool = False) -> list[str]:
    """The lines of a diff, each list cut at 20 unless ``everything`` is asked for. All names are escaped."""
    lines = [f"{printable(diff.a)} -> {printable(diff.b)}: {summary_text(diff)}"]
    lines += [f"  taken for the same: {printable(one)}" for one in rename_lines(diff.aligned.items())[:_SHOWN]]
    lines += [f"  {printable(note)}" for note in diff.notes]
    for table in _tables(diff):
        shown = table.rows if everything else table.rows[:_SHOWN]
        first, *rest = columns((table.title, *table.header), [[f"  {row[0]}", *row[1:]] for row in shown], table.right)
        lines += ["", first, *rest]
        if len(shown) < len(table.rows):
            lines.append(f"  ... {len(table.rows) - len(shown)} more lines")
    return lines


def diff_html(diff: Diff) -> str:
    """A diff as a piece of HTML."""
    tables = [((table.title, *table.header), table.rows[:_SHOWN]) for table in _tables(diff)]
    aligned = [f"taken for the same: {one}" for one in rename_lines(diff.aligned.items())[:_SHOWN]]
    return html_page(f"{diff.a} → {diff.b}: {summary_text(diff)}", [*aligned, *diff.notes], tables)


def summary_text(diff: Diff) -> str:
    """``identical, 12 tensors``, or how many differ and how."""
    if diff.identical:
        return f"identical, {_count(len(diff.same), 'tensor')}"
    counts = [
        f"{len(found)} {word}"
        for word, found in (
            ("changed", diff.changed),
            ("recast", diff.recast),
            ("reshaped", diff.reshaped),
            ("renamed", diff.renamed),
            ("only in A", diff.removed),
            ("only in B", diff.added),
        )
        if found
    ]
    counts.append(f"{_count(len(diff.same), 'tensor')} the same")
    if diff.values:
        counts.append(f"{_count(len(diff.values), 'value')} {'differs' if len(diff.values) == 1 else 'differ'}")
    return ", ".join(counts)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


class _Table(NamedTuple):
    """One list of a diff: its title with the count, what the other columns are, and which stand to the right."""

    title: str
    header: Row
    rows: Sequence[Row]
    right: Sequence[int] = ()


def _tables(diff: Diff) -> list[_Table]:
    """The lists that are not empty."""
    found = [
        _changes("changed", diff.changed),
        _changes("recast", diff.recast),
        _table("reshaped", ("A", "B"), [[one.name, _spec(one.left), _spec(one.right)] for one in diff.reshaped]),
        _table("renamed", ("in B", ""), [[one.name, one.other, _spec(one.left)] for one in diff.renamed]),
        _tree("only in A", [Leaf(one.name, _spec(one.spec)) for one in diff.removed]),
        _tree("only in B", [Leaf(one.name, _spec(one.spec)) for one in diff.added]),
        _table("values", ("A", "B"), [_value(one) for one in diff.values]),
    ]
    return [table for table in found if table.rows]


def _table(title: str, header: Row, rows: Sequence[Row]) -> _Table:
    return _Table(f"{title} ({len(rows)})", header, [list(map(printable, row)) for row in rows])


def _tree(title: str, found: list[Leaf]) -> _Table:
    """Names by prefix, repeated blocks once."""
    rows = [
        [f"{'  ' * line.depth}{printable(line.name)}", line.text, f"x{line.count}" if line.count > 1 else ""]
        for line in tree_lines(found)
    ]
    return _Table(f"{title} ({len(found)})", ("", ""), rows)


def _changes(title: str, changes: Sequence[Change]) -> _Table:
    """Tensors with numbers, those that moved furthest first; without numbers as a tree."""
    if not any(one.numbers for one in changes):
        return _tree(title, [Leaf(one.name, _both(one)) for one in changes])
    ordered = sorted(changes, key=_moved, reverse=True)
    rows = [[printable(one.name), _both(one), *_cells(one.numbers)] for one in ordered]
    return _Table(f"{title} ({len(rows)})", ("", *_MEASURED, ""), rows, right=range(2, 2 + len(_MEASURED)))


def _moved(change: Change) -> float:
    numbers = change.numbers
    if numbers is None:
        return -1.0
    return float("inf") if numbers.relative is None else numbers.relative


def _cells(numbers: Numbers | None) -> list[str]:
    if numbers is None:
        return ["", "", "", "", "", "no arithmetic with this dtype"]
    return [
        f"{numbers.norm:.4g}",
        "" if numbers.relative is None else f"{numbers.relative:.2e}",
        f"{numbers.largest:.4g}",
        "" if numbers.cosine is None else f"{numbers.cosine:.6f}",
        f"{numbers.differing:,} of {numbers.elements:,}",
        "; ".join(_remarks(numbers)),
    ]


def _remarks(numbers: Numbers) -> list[str]:
    found = [] if numbers.differing or numbers.cast else ["equal numbers in other bits"]
    if numbers.cast is not None:
        found.append("equal after the cast" if numbers.cast else "not equal after the cast")
    for word, counts in (("NaN", numbers.nan), ("infinite", numbers.infinite)):
        if any(counts):
            found.append(f"{counts[0]:,} {word} in A, {counts[1]:,} in B")
    return found


def _both(change: Change) -> str:
    if change.left.dtype == change.right.dtype:
        return _spec(change.left)
    return f"{tuple(change.left.shape)} {change.left.dtype} -> {change.right.dtype}"


def _spec(spec: TensorSpec) -> str:
    return f"{tuple(spec.shape)} {spec.dtype}"


def _value(change: ValueChange) -> Row:
    left, right = ("-" if text is None else text[:_LONG] for text in (change.left, change.right))
    return [change.name, left, f"{right} (further in)" if left == right else right]
