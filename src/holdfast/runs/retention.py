"""Retention: rules keep checkpoints, prune deletes the rest. Decisions are pure and come with their reasons.

A checkpoint stays when any rule keeps it. Whatever the rules say, three kinds stay: the newest one that can be read,
pinned ones, and those whose manifest can't be read, since nothing is known of them. A size budget is asked last: it
fills the room that these leave, and deletes none of them when they leave none.
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
from holdfast.runs.sizes import exact_text, parse_size, size_text
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
        if self.metric.split() != [self.metric]:
            raise ArgumentError(f"KeepBest(metric={self.metric!r}): a rule is one word, so its metric has no spaces")


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


class KeepSize(msgspec.Struct, frozen=True):
    """Keeps the newest as long as all that stays, by whatever rule, has at most so many bytes.

    It deletes nothing that another rule, a pin or being the newest keeps, also when that is more than the budget. Sizes
    are those that manifests say, each checkpoint in full; what can't be read stays and is not counted.
    """

    bytes: int

    def __post_init__(self) -> None:
        _positive("KeepSize", bytes=self.bytes)


class Pinned(msgspec.Struct, frozen=True):
    """Keeps pinned checkpoints. Every policy does; this one alone keeps nothing else but the newest."""


Rule = KeepLast | KeepBest | KeepEvery | KeepWithin | KeepSize | Pinned


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


def parse_keep(text: str, *, best: Sequence[BestRule] = ()) -> tuple[Rule, ...]:
    """Retention rules from text.

    Args:
        text: space-separated: ``last:2``, ``best:1``, ``best:3:val_acc:max``, ``every:10ep``, ``every:1000step``,
            ``within:24h``, ``size:50GB``, ``pinned``.
        best: the run's best rules. ``best:N`` without a metric means the N best by each of them.

    Returns:
        The rules, in order.

    Raises:
        ArgumentError: a rule that can't be read, ``best:N`` without a metric and without ``best``, or no rule at all.

    Example:
        >>> parse_keep("last:2 every:10ep")
        (KeepLast(n=2), KeepEvery(steps=None, epochs=10))
    """
    rules = tuple(rule for word in text.split() for rule in _parse_rule(word, best))
    _refuse_empty(rules)
    return rules


def keep_text(rules: Sequence[Rule]) -> str:
    """Rules as the text that :func:`parse_keep` reads: ``last:2 best:1:val_acc:max``."""
    return " ".join(_text(rule) for rule in rules)


def with_best(rules: Sequence[Rule], bests: Sequence[BestRule]) -> tuple[Rule, ...]:
    """The rules, and one for each best that none of them keeps: a run that names a best one means to have it."""
    if not rules:
        return ()
    kept = {(one.metric, one.mode) for one in rules if isinstance(one, KeepBest)}
    return (*rules, *(KeepBest(one.metric, one.mode) for one in bests if (one.metric, one.mode) not in kept))


def kept_bytes(checkpoints: Sequence[Listed], decisions: Sequence[Decision]) -> int:
    """What the checkpoints that stay hold, as their manifests say, each in full."""
    stays = {one.step for one in decisions if one.keep}
    return sum(one.size for one in checkpoints if one.step in stays)


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
    over = _fill(rules, readable, reasons)
    return [
        Decision(step, bool(kept), tuple(kept) or (over.get(step, "no rule keeps it"),))
        for step, kept in sorted(reasons.items())
    ]


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


def _fill(rules: Sequence[Rule], readable: Sequence[Listed], reasons: dict[int, list[str]]) -> dict[int, str]:
    """Adds what the size budgets keep to the reasons; returns why they do not keep the others."""
    must = sum(one.size for one in readable if reasons[one.step])
    others = [one for one in reversed(readable) if not reasons[one.step]]
    over: dict[int, str] = {}
    for budget in (rule.bytes for rule in rules if isinstance(rule, KeepSize)):
        if must > budget:
            full = f"size: what must stay has {size_text(must)}, more than {size_text(budget)}"
            reasons[readable[-1].step].append(full)
        for step, fits, reason in _within(budget, must, others):
            if fits:
                reasons[step].append(reason)
            else:
                over[step] = reason
    return over


def _within(budget: int, must: int, others: Sequence[Listed]) -> Iterator[tuple[int, bool, str]]:
    """(step, whether it fits, why) for what nothing else keeps, newest first; behind one that does not, none does."""
    total, full = must, None
    for one in others:
        total += one.size
        if full is not None:
            reason = f"no rule keeps it: step {full}, which is newer, does not fit into {size_text(budget)} any more"
        elif total <= budget:
            reason = f"size: {size_text(total)} of {size_text(budget)} with all that must stay or is newer"
        else:
            full = one.step
            reason = f"no rule keeps it: with it {size_text(total)} would stay, more than {size_text(budget)}"
        yield one.step, full is None, reason


def _kept_every(rule: KeepEvery, readable: Sequence[Listed]) -> Iterator[tuple[int, str]]:
    size, unit = (rule.steps, "steps") if rule.steps is not None else (rule.epochs or 1, "epochs")
    seen = {0}
    for one in readable:
        epoch = one.manifest.epoch if one.manifest else None
        at = one.step if rule.steps is not None else epoch
        if at is not None and at // size not in seen:
            seen.add(at // size)
            yield one.step, f"every {size} {unit}: the first at or after {at // size * size}"


def _parse_rule(word: str, bests: Sequence[BestRule]) -> tuple[Rule, ...]:
    name, _, rest = word.partition(":")
    if name == "best":
        number, _, own = rest.partition(":")
        meant = [parse_best(own)] if own else bests
        if number.isdecimal() and not meant:
            raise ArgumentError(
                f"{word!r} needs to know what is best: give the run best='val_loss:min', or write {word}:val_loss:min"
            )
        if number.isdecimal():
            return tuple(KeepBest(rule.metric, rule.mode, int(number)) for rule in meant)
    return (_parse_other(word, name, rest),)


def _parse_other(word: str, name: str, rest: str) -> Rule:
    if word == "pinned":
        return Pinned()
    if name == "last" and rest.isdecimal():
        return KeepLast(int(rest))
    if name == "size":
        return KeepSize(parse_size(rest))
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
        "within:24h, size:50GB and pinned are"
    )


def _text(rule: Rule) -> str:
    if isinstance(rule, KeepLast):
        return f"last:{rule.n}"
    if isinstance(rule, KeepBest):
        return f"best:{rule.n}:{rule.metric}:{rule.mode}"
    if isinstance(rule, KeepEvery):
        return f"every:{rule.epochs}ep" if rule.steps is None else f"every:{rule.steps}step"
    if isinstance(rule, KeepSize):
        return f"size:{exact_text(rule.bytes)}"
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
