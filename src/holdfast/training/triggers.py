"""When to save: rules as text, as values, and the pure decision."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from holdfast.errors import ArgumentError

_RULE = re.compile(r"(\d+(?:\.\d+)?)(step|ep|s|min|h)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class EverySteps(msgspec.Struct, frozen=True):
    """After each ``n`` items of the loader, counted from the start of the run."""

    n: int


class EveryEpochs(msgspec.Struct, frozen=True):
    """At the end of each ``n`` epochs."""

    n: int


class EverySeconds(msgspec.Struct, frozen=True):
    """When ``seconds`` have passed since the last commit."""

    seconds: float


SaveRule = EverySteps | EveryEpochs | EverySeconds


def parse_save(text: str) -> list[SaveRule]:
    """``"500step 1ep 15min"`` as rules.

    Raises:
        ArgumentError: a word that is no rule; the message lists the units.
    """
    rules: list[SaveRule] = []
    for word in text.split():
        found = _RULE.fullmatch(word)
        if found is None or float(found[1]) <= 0:
            raise ArgumentError(
                f"save rule {word!r} is none: write a number and a unit, such as 500step, 1ep, 30s, 15min, 2h"
            )
        number, unit = float(found[1]), found[2]
        if unit in _SECONDS:
            rules.append(EverySeconds(number * _SECONDS[unit]))
        elif not number.is_integer():
            raise ArgumentError(f"save rule {word!r}: steps and epochs are whole numbers")
        else:
            rules.append(EverySteps(int(number)) if unit == "step" else EveryEpochs(int(number)))
    if not rules:
        raise ArgumentError("save= has no rule; the shortest is '1ep'")
    return rules


def is_due(
    rules: Sequence[SaveRule], *, step: int, last_step: int, epochs_done: int | None = None, seconds: float = 0.0
) -> str | None:
    """The first rule that asks for a save, as a reason, or None.

    Args:
        rules: the run's rules.
        step: items done since the run began.
        last_step: items done when the rules were last asked; a multiple of ``n`` in between is due.
        epochs_done: whole epochs done, at the end of one; None inside an epoch.
        seconds: since the last commit.
    """
    for rule in rules:
        if isinstance(rule, EverySteps) and step // rule.n > last_step // rule.n:
            return f"every {rule.n} steps"
        if isinstance(rule, EveryEpochs) and epochs_done is not None and epochs_done % rule.n == 0:
            return f"every {rule.n} epochs"
        if isinstance(rule, EverySeconds) and seconds >= rule.seconds:
            return f"every {rule.seconds:g} seconds"
    return None
