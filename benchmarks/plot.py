"""A plot as SVG, log to log: a few lines instead of a plotting package."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 800, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 310, 40, 50
_COLOURS = ["#888888", "#1f77b4", "#2ca02c"]


def svg(title: str, axis: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Seconds over sizes.

    Args:
        title: above the plot.
        axis: what the sizes count.
        curves: by name; those whose names begin with ``restore`` are dashed.
    """
    points = [point for curve in curves.values() for point in curve]
    across = _scale([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _scale([y for _, y in points], _HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, _TOP - 16, title, size=15),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, axis),
    ]
    for x in _decades(x for x, _ in points):
        lines += [_line(across(x), _TOP, across(x), _HEIGHT - _BOTTOM), _text(across(x), _HEIGHT - 30, _short(x))]
    for y in _decades(y for _, y in points):
        lines += [_line(_LEFT, up(y), _WIDTH - _RIGHT, up(y)), _text(8, up(y) + 4, f"{_short(y)} s")]
    for number, (name, curve) in enumerate(curves.items()):
        drawn = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        look = f'fill="none" stroke="{_COLOURS[number % 3]}" stroke-width="2"'
        dash = ' stroke-dasharray="5 4"' if name.startswith("restore") else ""
        at, high = _WIDTH - _RIGHT + 12, _TOP + 20 * number + 8
        lines += [
            f'<polyline points="{drawn}" {look}{dash}/>',
            f'<polyline points="{at},{high} {at + 24},{high}" {look}{dash}/>',
            _text(at + 30, high + 4, name),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _scale(values: Iterable[float], first: float, last: float) -> Callable[[float], float]:
    logs = [math.log10(value) for value in values]
    low, high = min(logs), max(logs)
    return lambda value: first + (math.log10(value) - low) / ((high - low) or 1) * (last - first)


def _decades(values: Iterable[float]) -> list[float]:
    """The powers of ten inside the values."""
    found = list(values)
    low, high = math.ceil(math.log10(min(found)) - 1e-9), math.floor(math.log10(max(found)) + 1e-9)
    return [10.0**power for power in range(low, high + 1)]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _text(x: float, y: float, words: str, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(words)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#dddddd"/>'
