"""What is known of the values of one tensor, without the tensor: numbers for tables and pages."""

from __future__ import annotations

import math

import msgspec


class Histogram(msgspec.Struct, frozen=True):
    """How many values have which magnitude: one bin an octave, both signs apart; zero is in neither.

    Attributes:
        first: the exponent of the first bin, which holds magnitudes from ``2**first`` up to ``2**(first + 1)``.
        negative: counts of values below zero, bin by bin.
        positive: counts of values above zero, as many bins.
    """

    first: int
    negative: tuple[int, ...]
    positive: tuple[int, ...]


class Thumbnail(msgspec.Struct, frozen=True):
    """A tensor as a small picture: the mean of each cell, rows along the first dimension and all others as columns.

    Attributes:
        rows: of the picture, at most 32.
        columns: of the picture, at most 32.
        cells: row by row; None where a cell holds NaN or an infinity.
    """

    rows: int
    columns: int
    cells: tuple[float | None, ...]


class TensorStats(msgspec.Struct, frozen=True):
    """The statistics of one tensor. NaN and infinities are counted, and left out of everything else.

    Attributes:
        count: elements that were looked at.
        min: the smallest; None where no element is finite.
        max: the largest.
        mean: their average, in float64.
        std: their standard deviation, of the population.
        norm: the square root of the sum of squares.
        nan: how many are NaN.
        inf: how many are infinite.
        zeros: how many are zero.
        histogram: by magnitude; None where all are zero or not finite.
        thumbnail: of two and more dimensions; None for others.
        note: what the numbers are of, where that is not the elements, or why there are none; empty otherwise.
    """

    count: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    norm: float | None = None
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    histogram: Histogram | None = None
    thumbnail: Thumbnail | None = None
    note: str = ""

    @property
    def dead(self) -> str | None:
        """``all zero`` or ``constant``, for a tensor of several elements that says one thing; None for others."""
        if self.count < 2 or self.nan or self.inf or self.min is None or self.min != self.max:
            return None
        return "all zero" if self.min == 0.0 else f"constant {self.min:.6g}"

    @property
    def findings(self) -> tuple[str, ...]:
        """What a person should know first: ``3 NaN``, ``1 infinite``, ``all zero``."""
        found = [f"{self.nan:,} NaN"] if self.nan else []
        found += [f"{self.inf:,} infinite"] if self.inf else []
        return (*found, *([self.dead] if self.dead else []))


def to_plain(stats: TensorStats) -> dict[str, object]:
    """The statistics as plain data for JSON; infinite sums of huge values become None."""
    found = msgspec.to_builtins(stats)
    numbers = {name: value for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**found, **dict.fromkeys(numbers), "dead": stats.dead}


class Changes(msgspec.Struct, frozen=True):
    """How far each tensor of a run moved from one checkpoint to the next.

    Attributes:
        steps: of the checkpoints that were compared, in order.
        names: of the tensors, dotted.
        change: for each tensor the norm of its difference for each step after the first; None where it is not known.
        norm: for each tensor its norm at each step; None where it is not known.
        note: what was left out, for people; empty when nothing was.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    change: tuple[tuple[float | None, ...], ...]
    norm: tuple[tuple[float | None, ...], ...]
    note: str = ""
