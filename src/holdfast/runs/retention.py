"""Retention: rules keep checkpoints, prune deletes the rest. Decisions are pure and come with their reasons.

A checkpoint stays when any rule keeps it. Whatever the rules say, three kinds stay: the newest one that can be read,
pinned ones, and those whose manifest can't be read, since nothing is known of them.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from holdfast.errors import ArgumentError
from holdfast.runs.catalog import Listed, by_metric, metric_of
from holdfast.runs.run_file import BestRule, Mode, parse_best
from holdfast.state.paths import printable

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
"""The units of time in rules, in seconds."""
_AMOUNT = re.compile(r"(\d{1,12})(step|ep|s|min|h|d)")


class KeepLast(msgspec.Struct, frozen=True):
    """Keeps the newest ``n`` checkpoints."""

    n: int

    def __post_init__(self) -> None:
        _positive("KeepLast", n=self.n)


class KeepBest(msgspec.Struct, frozen=True):
    """Keeps the ``n`` checkpoints with the best values of a metric; NaN is never best, ties go to the later step.

    Attributes:
        metric: its name.
        mode: ``min`` or ``max``.
        n: how many.
    """

    metric: str
    mode: Mode
    n: int = 1

    def __post_init__(self) -> None:
        _positive("KeepBest", n=self.n)
        parse_best(f"{self.metric}:{self.mode}")


class KeepEvery(msgspec.Struct, frozen=True):
    """Keeps the first checkpoint at or after each multiple of so many steps, or of so many completed epochs.

    Attributes:
        steps: give this or ``epochs``.
        epochs: completed ones.
    """

    steps: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ArgumentError("KeepEvery takes steps= or epochs=, one of them")
        _positive("KeepEvery", **({"epochs": self.epochs} if self.steps is None else {"steps": self.steps}))


class KeepWithin(msgspec.Struct, frozen=True):
    """Keeps what was committed in the last so many seconds."""

    seconds: int

    def __post_init__(self) -> None:
        _positive("KeepWithin", seconds=self.seconds)


class Pinned(msgspec.Struct, frozen=True):
    """Keeps pinned checkpoints. Every policy does; this one alone keeps nothing else but the newest."""


Rule = KeepLast | KeepBest | KeepEvery | KeepWithin | Pinned


class Decision(msgspec.Struct, frozen=True):
    """What becomes of one checkpoint.

    Attributes:
        step: which.
        keep: whether it stays.
        reasons: for people; at least one.
    """

    step: int
    keep: bool
    reasons: tuple[str, ...]


def parse_amount(text: str) -> tuple[int, str]:
    """``10ep`` as ``(10, "ep")``; units are step, ep (epochs), s, min, h and d.

    Raises:
        ArgumentError: it is no positive number with such a unit.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ArgumentError(
            f"{printable(text)!r}: a number above 0 and a unit are wanted: 500step, 10ep, 30s, 15min, 2h"
        )
    return int(match[1]), match[2]


def parse_keep(text: str, *, best: BestRule | None = None) -> tuple[Rule, ...]:
    """Retention rules from text.

    Args:
        text: space-separated: ``last:2``, ``best:1``, ``best:3:val_acc:max``, ``every:10ep``, ``every:1000step``,
            ``within:24h``, ``pinned``.
        best: what ``best:N`` without a metric means.

    Returns:
        The rules, in order.

    Raises:
        ArgumentError: a rule that can't be read, ``best:N`` without a metric and without ``best``, or no rule at all.

    Example:
        >>> parse_keep("last:2 every:10ep")
        (KeepLast(n=2), KeepEvery(steps=None, epochs=10))
    """
    rules = tuple(_parse_rule(word, best) for word in text.split())
    _refuse_empty(rules)
    return rules


def keep_text(rules: Sequence[Rule]) -> str:
    """Rules as the text that :func:`parse_keep` reads: ``last:2 best:1:val_acc:max``."""
    return " ".join(_text(rule) for rule in rules)


def with_best(rules: Sequence[Rule], best: BestRule | None) -> tuple[Rule, ...]:
    """The rules, and one that keeps the best where none does: a run that names a best one means to have it."""
    if not rules or best is None:
        return tuple(rules)
    kept = any(isinstance(one, KeepBest) and (one.metric, one.mode) == (best.metric, best.mode) for one in rules)
    return tuple(rules) if kept else (*rules, KeepBest(best.metric, best.mode))


def plan_prune(
    checkpoints: Sequence[Listed],
    rules: Sequence[Rule],
    now: datetime.datetime,
    *,
    pins: Mapping[str, int] | None = None,
) -> list[Decision]:
    """Decides which checkpoints stay. Nothing is read or deleted.

    Args:
        checkpoints: of one run, as :func:`~holdfast.runs.catalog.scan` lists them.
        rules: at least one.
        now: the time to which ages are measured, with a time zone.
        pins: name to step.

    Returns:
        One decision for each checkpoint, ordered by step.

    Raises:
        ArgumentError: there are no rules. Keeping everything needs no prune.
    """
    _refuse_empty(rules)
    readable = sorted((one for one in checkpoints if one.manifest is not None), key=lambda one: one.step)
    reasons: dict[int, list[str]] = {one.step: [] for one in checkpoints}
    for rule in rules:
        for step, reason in _kept(rule, readable, now):
            reasons[step].append(reason)
    for name, step in (pins or {}).items():
        if step in reasons:
            reasons[step].append(f"pinned as {printable(name)}")
    if readable:
        reasons[readable[-1].step].append("the newest: always kept")
    for one in checkpoints:
        if one.manifest is None:
            reasons[one.step].append("can't be read, so it is not judged; holdfast verify says what is wrong with it")
    return [Decision(step, bool(kept), tuple(kept) or ("no rule keeps it",)) for step, kept in sorted(reasons.items())]


def _kept(rule: Rule, readable: Sequence[Listed], now: datetime.datetime) -> Iterator[tuple[int, str]]:
    """The steps that one rule keeps, each with the reason."""
    if isinstance(rule, KeepLast):
        for place, one in enumerate(reversed(readable[-rule.n :]), 1):
            yield one.step, f"last: {place} of {rule.n}"
    elif isinstance(rule, KeepBest):
        for place, one in enumerate(by_metric(readable, BestRule(rule.metric, rule.mode))[: rule.n], 1):
            value = metric_of(one, rule.metric)
            yield one.step, f"best: {place} of {rule.n} by {printable(rule.metric)}:{rule.mode} ({value:.6g})"
    elif isinstance(rule, KeepEvery):
        yield from _kept_every(rule, readable)
    elif isinstance(rule, KeepWithin):
        for one in readable:
            if one.manifest is not None and (now - one.manifest.time).total_seconds() <= rule.seconds:
                yield one.step, f"within: committed in the last {_duration(rule.seconds)}"


def _kept_every(rule: KeepEvery, readable: Sequence[Listed]) -> Iterator[tuple[int, str]]:
    size, unit = (rule.steps, "steps") if rule.steps is not None else (rule.epochs or 1, "epochs")
    seen = {0}
    for one in readable:
        epoch = one.manifest.epoch if one.manifest else None
        at = one.step if rule.steps is not None else epoch
        if at is not None and at // size not in seen:
            seen.add(at // size)
            yield one.step, f"every {size} {unit}: the first at or after {at // size * size}"


def _parse_rule(word: str, best: BestRule | None) -> Rule:
    name, _, rest = word.partition(":")
    if word == "pinned":
        return Pinned()
    if name == "last" and rest.isdecimal():
        return KeepLast(int(rest))
    if name == "best":
        number, _, own = rest.partition(":")
        rule = parse_best(own) if own else best
        if number.isdecimal() and rule is None:
            raise ArgumentError(
                f"{word!r} needs to know what is best: give the run best='val_loss:min', or write {word}:val_loss:min"
            )
        if number.isdecimal() and rule is not None:
            return KeepBest(rule.metric, rule.mode, int(number))
    if name == "every":
        number_, unit = parse_amount(rest)
        if unit == "step":
            return KeepEvery(steps=number_)
        if unit == "ep":
            return KeepEvery(epochs=number_)
    if name == "within":
        number_, unit = parse_amount(rest)
        if unit in SECONDS:
            return KeepWithin(number_ * SECONDS[unit])
    raise ArgumentError(
        f"{printable(word)!r} is no retention rule: last:2, best:1, best:3:val_acc:max, every:10ep, every:1000step, "
        "within:24h and pinned are"
    )


def _text(rule: Rule) -> str:
    if isinstance(rule, KeepLast):
        return f"last:{rule.n}"
    if isinstance(rule, KeepBest):
        return f"best:{rule.n}:{rule.metric}:{rule.mode}"
    if isinstance(rule, KeepEvery):
        return f"every:{rule.epochs}ep" if rule.steps is None else f"every:{rule.steps}step"
    return f"within:{rule.seconds}s" if isinstance(rule, KeepWithin) else "pinned"


def _refuse_empty(rules: Sequence[Rule]) -> None:
    if not rules:
        raise ArgumentError("a retention policy without rules would delete everything; say at least 'last:1'")


def _positive(name: str, **values: int | None) -> None:
    for field, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name}({field}={value!r}): a whole number of at least 1 is wanted")


def _duration(seconds: int) -> str:
    for unit in ("d", "h", "min"):
        if seconds % SECONDS[unit] == 0:
            return f"{seconds // SECONDS[unit]} {unit}"
    return f"{math.floor(seconds)} s"
