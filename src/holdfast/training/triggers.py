"""When to save: rules as text, as values, and the pure decision."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.errors import ArgumentError
from holdfast.runs.retention import SECONDS, parse_amount


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


class Triggers(msgspec.Struct, frozen=True):
    """What makes a run save.

    Attributes:
        rules: of steps, epochs and time.
        signal: when the process is told to go.
        exception: when an error ends the training.
    """

    rules: tuple[SaveRule, ...] = ()
    signal: bool = False
    exception: bool = False


def parse_triggers(text: str) -> Triggers:
    """``"500step 1ep signal exception"`` as triggers; ``end`` alone saves at the end of the training only.

    Raises:
        ArgumentError: a word that is none; the message lists the units. Or nothing at all.
    """
    words = text.split()
    timed = [word for word in words if word not in ("signal", "exception", "end")]
    rules = parse_save(" ".join(timed)) if timed or not words else []
    return Triggers(tuple(rules), "signal" in words, "exception" in words)


def parse_save(text: str) -> list[SaveRule]:
    """``"500step 1ep 15min"`` as rules.

    Raises:
        ArgumentError: a word that is no rule; the message lists the units. Or no rule at all.
    """
    rules = [_rule(*parse_amount(word)) for word in text.split()]
    if not rules:
        raise ArgumentError("save= has no rule; the shortest is '1ep'")
    return rules


def _rule(number: int, unit: str) -> SaveRule:
    if unit == "step":
        return EverySteps(number)
    return EveryEpochs(number) if unit == "ep" else EverySeconds(number * SECONDS[unit])


def is_timed(rules: Sequence[SaveRule]) -> bool:
    """Whether a clock has a say, which two processes read differently."""
    return any(isinstance(rule, EverySeconds) for rule in rules)


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
