"""What a format can't hold, named."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.state.paths import printable

_SHOWN = 10
_ALONE = 3
"""Parts of one object that are named one by one; more of them are counted."""


class Lost(msgspec.Struct, frozen=True):
    """A part of a tree that has no place in a format, or came back as another.

    Attributes:
        name: its dotted path.
        why: for people.
    """

    name: str
    why: str


def listed(lost: Sequence[Lost]) -> str:
    """Names and reasons in one line, as many as a reader would read; many parts of one object are counted."""
    groups: dict[str, list[Lost]] = {}
    for one in lost:
        groups.setdefault(one.name.partition(".")[0], []).append(one)
    texts: list[str] = []
    for name, group in groups.items():
        if len(group) > _ALONE:
            texts.append(f"`{printable(name)}` ({len(group):,} parts, such as {_text(group[0])})")
        else:
            texts.extend(_text(one) for one in group)
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else "")


def _text(one: Lost) -> str:
    return f"`{printable(one.name)}`: {printable(one.why)}"
