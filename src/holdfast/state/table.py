"""Rows as aligned text for a terminal, and as a small table of HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.state.paths import printable

Row = Sequence[str]


def columns(header: Row, rows: Sequence[Row], right: Sequence[int] = ()) -> list[str]:
    """Lines with columns as wide as their widest cell; those in ``right`` are aligned to the right."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


_TABLE = "border-collapse:collapse;margin:.3em 0 .6em"
_CELL = (
    "text-align:left;vertical-align:top;white-space:pre-wrap;padding:.15em .8em;"
    "border-bottom:1px solid rgba(128,128,128,.35)"
)
"""The colours of text and ground are the page's own, so that it reads in light and dark."""


def html_page(title: str, lines: Iterable[str], tables: Iterable[tuple[Row, Sequence[Row]]]) -> str:
    """A piece of HTML for a notebook: a title, lines and tables. Everything in it is text: names of files are escaped.

    Args:
        title: in bold.
        lines: below it.
        tables: (header, rows) each.
    """
    made = [f"<div><strong>{_text(title)}</strong>", *(f"<div>{_text(line)}</div>" for line in lines)]
    for header, rows in tables:
        made.append(f'<table style="{_TABLE}"><thead>{_row("th", header)}</thead><tbody>')
        made += [_row("td", row) for row in rows]
        made.append("</tbody></table>")
    return "".join([*made, "</div>"])


def _row(tag: str, cells: Row) -> str:
    inside = "".join(f'<{tag} style="{_CELL}">{_text(cell)}</{tag}>' for cell in cells)
    return f"<tr>{inside}</tr>"


def _text(text: str) -> str:
    import html  # for notebooks alone

    return html.escape(printable(text))
