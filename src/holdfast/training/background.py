"""What ``background=`` may say: how a save stays out of the training's way, and what the next one does meanwhile."""

from __future__ import annotations

from typing import Literal

import msgspec

from holdfast.errors import ArgumentError

Busy = Literal["wait", "skip", "coalesce"]


class Background(msgspec.Struct, frozen=True):
    """How a run saves in the background.

    Attributes:
        copy: copy everything at the save, for programs that write parameters behind their optimizer.
        check: compare what is written with a digest of the moment of the save, to find such programs; slow.
        busy: what a save that a rule of steps or time asks for does while another is under way: ``wait`` for it;
            ``skip`` this one; or ``coalesce``: be made as soon as the other is done, once for all that were asked for.
    """

    copy: bool = False
    check: bool = False
    busy: Busy = "wait"


def parse_background(value: bool | str) -> Background | None:
    """``True``, ``False`` or words such as ``"copy skip"`` as options; None saves in the foreground.

    Raises:
        ArgumentError: a word that means nothing here, or two that contradict each other.
    """
    if isinstance(value, bool):
        return Background() if value else None
    words = value.split() if isinstance(value, str) else [repr(value)]
    busy: list[Busy] = []
    for word in words:
        if word in ("wait", "skip", "coalesce"):
            busy.append(word)  # type: ignore[arg-type]  # one of the three
        elif word not in ("copy", "check"):
            raise ArgumentError(
                f"background={value!r}: {word!r} is none of copy, check, wait, skip and coalesce; or give True or False"
            )
    if len(busy) > 1 or {"copy", "check"} <= set(words) or not words:
        raise ArgumentError(
            f"background={value!r}: give True, or one of copy and check, one of wait, skip and coalesce, or both"
        )
    return Background(copy="copy" in words, check="check" in words, busy=busy[0] if busy else "wait")
