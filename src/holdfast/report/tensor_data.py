"""The tensors of a file as columns: short as text, and a browser sorts a hundred thousand of them at once."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.formats.base import StoredTensor
from holdfast.formats.tensors import needed_bytes
from holdfast.spec import Path
from holdfast.state.paths import dotted, printable
from holdfast.state.statistics import TensorStats, Thumbnail

_NUMBERS = ("min", "max", "mean", "std", "norm")
_COUNTS = ("nan", "inf", "zeros")
_BAD = 255

Tensors = Sequence[tuple[Path, StoredTensor]]


def tensor_data(tensors: Tensors, stats: Mapping[int, TensorStats], why_none: str) -> dict[str, Any]:
    """All tensors of a file.

    Args:
        tensors: with their paths, in order.
        stats: by place in ``tensors``; those that are missing were not computed.
        why_none: what the page says about those.

    Returns:
        Columns, and the few dtypes and shapes that they refer to by number.
    """
    dtypes: dict[str, int] = {}
    shapes: dict[tuple[int, ...], int] = {}
    groups: dict[int, list[int]] = {}
    for number, (_, leaf) in enumerate(tensors):
        groups.setdefault(id(leaf.segment), []).append(number)
    return {
        "names": [printable(dotted(path)) for path, _ in tensors],
        "dtype": [dtypes.setdefault(leaf.spec.dtype, len(dtypes)) for _, leaf in tensors],
        "shape": [shapes.setdefault(leaf.spec.shape, len(shapes)) for _, leaf in tensors],
        "bytes": [needed_bytes(leaf.spec) for _, leaf in tensors],
        "dtypes": list(dtypes),
        "shapes": [list(shape) for shape in shapes],
        "shared": [group for group in groups.values() if len(group) > 1],
        "stored": sum(tensors[group[0]][1].segment.length for group in groups.values()),
        "stats": _columns(stats),
        "without": printable(why_none),
    }


def _columns(stats: Mapping[int, TensorStats]) -> dict[str, Any]:
    ordered = sorted(stats.items())
    return {
        "of": [number for number, _ in ordered],
        "count": [one.count for _, one in ordered],
        **{name: [short(getattr(one, name)) for _, one in ordered] for name in _NUMBERS},
        **{name: [getattr(one, name) for _, one in ordered] for name in _COUNTS},
        "dead": {number: one.dead for number, one in ordered if one.dead},
        "note": {number: printable(one.note) for number, one in ordered if one.note},
        "histogram": {
            number: [one.histogram.first, one.histogram.negative, one.histogram.positive]
            for number, one in ordered
            if one.histogram
        },
        "thumbnail": {number: _packed(one.thumbnail) for number, one in ordered if one.thumbnail},
    }


def short(value: float | None) -> float | None:
    """Five digits are what a page shows; no JSON has NaN or infinities."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _packed(picture: Thumbnail) -> list[Any]:
    """Rows, columns, the largest magnitude, and a byte for each cell: 127 is zero, 255 is not finite."""
    top = max((abs(cell) for cell in picture.cells if cell is not None), default=0.0)
    scale = 127 / top if top else 0.0
    cells = bytes(_BAD if cell is None else 127 + round(cell * scale) for cell in picture.cells)
    return [picture.rows, picture.columns, short(top), base64.b64encode(cells).decode()]
