"""The checkpoints of a run as a table, and a metric over its steps as one line."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

import msgspec

from holdfast.runs.catalog import Listed, metric_of
from holdfast.runs.sizes import size_text
from holdfast.runs.standing import Standing
from holdfast.state.paths import printable

METRICS = 6
"""Metrics that a table has columns for."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_LETTERS = "_.-~=+*#"
"""The same heights for terminals that have no blocks."""
_WIDTH = 60


class Listing(msgspec.Struct, frozen=True):
    """A table of checkpoints.

    Attributes:
        header: names of the columns.
        rows: one for each checkpoint, oldest first; everything in them is escaped.
        metrics: all names of metrics, those without a column included.
    """

    header: list[str]
    rows: list[list[str]]
    metrics: list[str]


def listing(run: Standing, now: datetime.datetime) -> Listing:
    """Position, age, size, metrics, which is best, and why each is kept.

    Args:
        run: its checkpoints.
        now: the time to which ages are measured, with a time zone.
    """
    names = metric_names(run)
    shown = names[:METRICS]
    header = ["step", "epoch", "age", "size", *(printable(name[:30]) for name in shown), "", "kept by"]
    return Listing(header, [_cells(run, one, shown, now) for one in run.catalog.checkpoints], names)


def metric_names(run: Standing) -> list[str]:
    """The metrics of a run: those that decide what is best first, the others by name."""
    names = sorted({name for one in run.catalog.readable if one.manifest for name in one.manifest.metrics})
    decide = [rule.metric for rule in run.rules.best]
    return sorted(names, key=lambda name: decide.index(name) if name in decide else len(decide))


def kept(run: Standing, listed: Listed) -> tuple[str, ...]:
    """Why retention keeps a checkpoint; empty without rules, or when it does not."""
    decision = run.decisions.get(listed.step)
    return decision.reasons if decision is not None and decision.keep else ()


def total_text(run: Standing) -> str:
    """``3 checkpoints, 1.5 GB of 50 GB``, the budget where the run's rules have one."""
    count = len(run.catalog.checkpoints)
    budget = "" if run.rules.budget is None else f" of {size_text(run.rules.budget)}"
    return f"{count} checkpoint{'' if count == 1 else 's'}, {size_text(run.catalog.size)}{budget}"


def trend_text(run: Standing, *, blocks: bool = True) -> str | None:
    """The metric that decides, or the first, over the steps: ``val_loss ▇▅▃▁ 0.9 -> 0.2``; None without two numbers.

    Args:
        run: its checkpoints, and what is left of those that are gone.
        blocks: whether the reader's terminal has the characters; else it is ASCII.
    """
    for name in metric_names(run):
        values = _over_the_steps(run, name)
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if len(numbers) > 1:
            line = sparkline(values, _BLOCKS if blocks else _LETTERS)
            return f"{printable(name[:30])}  {line}  {numbers[0]:.4g} -> {numbers[-1]:.4g}"
    return None


def _over_the_steps(run: Standing, name: str) -> list[float | None]:
    """A metric by step, of the epochs that have no checkpoint too."""
    points = [(one.step, metric_of(one, name)) for one in run.catalog.readable]
    points += [(line.step, line.metrics.get(name)) for line in run.history]
    return [value for _, value in sorted(points, key=lambda point: point[0])]


def sparkline(values: Sequence[float | None], heights: str = _BLOCKS) -> str:
    """Numbers as heights, from the lowest to the highest of them; what is no finite number is left blank.

    More than 60 are shown as 60 spans, each by its last finite number.

    Example:
        >>> sparkline([0.0, 1.0, float("nan"), 2.0], "_-#")
        '_- #'
    """
    count = min(len(values), _WIDTH)
    spans = [values[at * len(values) // count : (at + 1) * len(values) // count] for at in range(count)]
    points = [next((one for one in reversed(span) if one is not None and math.isfinite(one)), None) for span in spans]
    numbers = [one for one in points if one is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    return "".join(" " if one is None else _height(one, low, high, heights) for one in points)


def _height(value: float, low: float, high: float, heights: str) -> str:
    span = high / 2 - low / 2  # halves: the largest numbers have no difference
    share = (value / 2 - low / 2) / span if span else 0.5
    return heights[min(int(share * len(heights)), len(heights) - 1)]


def age_text(seconds: float) -> str:
    """``5 min``: how long ago, in the largest unit that fits; ``in the future`` for a clock that was wrong."""
    if seconds < -60:
        return "in the future"
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {name} ago"
    return f"{max(int(seconds), 0)} s ago"


def _cells(run: Standing, listed: Listed, metrics: list[str], now: datetime.datetime) -> list[str]:
    manifest = listed.manifest
    marks = ["damaged"] if manifest is None else []
    marks += [f"best by {printable(str(rule))}" for rule in run.best_by(listed.step)]
    status = "; ".join([*marks, *(f"pin {name}" for name in run.pins_of(listed.step))])
    if manifest is None:
        return [str(listed.step), "", "", "", *("" for _ in metrics), status, ""]
    epoch = "" if manifest.epoch is None else str(manifest.epoch)
    if epoch and manifest.batch:
        epoch += f".{manifest.batch}"
    values = [manifest.metrics.get(name) for name in metrics]
    return [
        str(manifest.step),
        epoch,
        age_text((now - manifest.time).total_seconds()),
        size_text(listed.size),
        *("" if value is None else f"{value:.6g}" for value in values),
        status,
        "; ".join(kept(run, listed)),
    ]
