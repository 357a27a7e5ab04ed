"""The statistics of one stored tensor, in pieces of 8 MiB: memory does not grow with the tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import StoredTensor
from holdfast.formats.packing import can_gather, tensor_bytes
from holdfast.formats.tensors import PACKED
from holdfast.serialization.memory import view_memory
from holdfast.serialization.reading import live_dtype, raise_damage, verify_segments
from holdfast.spec import CHUNK, TensorSpec
from holdfast.state.statistics import Histogram, TensorStats, Thumbnail
from holdfast.storage import meter
from holdfast.storage.requests import ReadRequest, read_requests

SIDE = 32
"""Rows and columns that a thumbnail has at most."""
_AT_ONCE = 1 << 20
"""Elements that are counted at a time: as float64 they stay in the processor's cache."""
_LOWEST, _HIGHEST = -64, 63
"""Exponents of the first and the last bin; what is smaller or larger falls into these."""
_OPAQUE = ("bits", "float4")
"""Dtypes of which torch itself computes nothing begin so."""


def tensor_stats(leaf: StoredTensor, *, thumbnail: bool = False, checked: set[int] | None = None) -> TensorStats:
    """Reads a tensor once, checks its digests, and counts.

    Args:
        leaf: the tensor in its file.
        thumbnail: whether the small picture is made too.
        checked: ids of the segments whose bytes were compared with a CRC already, and to which this one is added:
            tensors that share memory are then not all checked anew.

    Returns:
        Its statistics. Of a complex tensor they are those of the magnitudes, of a quantized one those of its integers;
        ``note`` says so.

    Raises:
        CorruptFile: bytes differ from their digest or CRC.
        StorageError: they can't be read.

    The variance is merged piece by piece after Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm
    for Computing Sample Variances", 1979.
    """
    spec = leaf.spec
    if spec.dtype in PACKED or spec.dtype.startswith(_OPAQUE):
        return TensorStats(note=f"no statistics of {spec.dtype}: several elements share a byte")
    try:
        dtype = live_dtype(spec)
    except UnsupportedValue as reason:
        return TensorStats(note=f"no statistics: {reason}")
    stored_once, note = _distinct(leaf)
    if stored_once is None:
        return TensorStats(note=note)
    if dtype.is_complex:
        note = "of the magnitudes"
    elif spec.dtype.startswith("q"):
        note = "of the stored integers"
    counted = _Count()
    picture = _Picture(spec.shape) if thumbnail and not note and len(spec.shape) > 1 and spec.numel else None
    for start, piece in _pieces(stored_once, set() if checked is None else checked):
        for first in range(0, piece.numel(), _AT_ONCE):
            values = _as_float64(piece[first : first + _AT_ONCE])
            finite = values.isfinite()
            counted.add(values, finite)
            if picture is not None:
                picture.add(start + first, values, finite)
    return counted.result(picture, note)


def _distinct(leaf: StoredTensor) -> tuple[StoredTensor | None, str]:
    """The tensor with each stored element once: an expanded one may claim more elements than any memory holds."""
    spec = leaf.spec
    if spec.stride is not None and 0 in spec.stride:
        kept = [(size, step) for size, step in zip(spec.shape, spec.stride, strict=True) if step or not size]
        spec = TensorSpec(spec.dtype, tuple(size for size, _ in kept), tuple(step for _, step in kept))
        note = "expanded: each stored element counts once"
    else:
        note = ""
    if not spec.is_contiguous and not can_gather(spec):
        return None, "no statistics: its elements overlap in memory"
    return StoredTensor(spec, leaf.segment, leaf.offset), note


def _pieces(leaf: StoredTensor, checked: set[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """The elements in row-major order, in pieces, each with the number of its first one."""
    spec, segment = leaf.spec, leaf.segment
    source = tensor_bytes(leaf)
    as_digested = leaf.offset == 0 and source.size == segment.length and spec.is_contiguous and not segment.swapped
    digests = segment.chunks if as_digested else None
    if digests is None or len(digests) != -(-segment.length // CHUNK):
        digests = None
        if id(segment) not in checked:
            with meter.watched(segment.name):  # what is read is no stage of its own
                verify_segments([segment])
            checked.add(id(segment))
    for number, first in enumerate(range(0, source.size, CHUNK)):
        length = min(CHUNK, source.size - first)
        piece = torch.empty(length // spec.itemsize, dtype=live_dtype(spec))
        into = view_memory(piece.data_ptr(), length)
        wanted = None if digests is None else (digests[number],)
        with meter.watched(segment.name):
            raise_damage(read_requests([ReadRequest(source, first, into, wanted, None, segment.name)]))
        meter.pass_by(length)
        yield first // spec.itemsize, piece


def _as_float64(piece: torch.Tensor) -> torch.Tensor:
    if piece.is_complex():
        return piece.to(torch.complex128).abs()
    if piece.dtype.itemsize == 1 and piece.is_floating_point():
        piece = piece.to(torch.float32)  # float8 converts to few dtypes
    return piece.to(torch.float64)


class _Count:
    """What is counted and added up, piece by piece."""

    def __init__(self) -> None:
        self.count = self.finite = self.nan = self.zeros = 0
        self.min, self.max, self.mean, self.spread, self.squares = math.inf, -math.inf, 0.0, 0.0, 0.0
        self.bins = torch.zeros(2, _HIGHEST - _LOWEST + 1, dtype=torch.int64)

    def add(self, values: torch.Tensor, finite: torch.Tensor) -> None:
        self.count += values.numel()
        good = values
        if not bool(finite.all()):
            self.nan += int(values.isnan().sum())
            good = values[finite]
        added = good.numel()
        if not added:
            return
        low, high = good.aminmax()
        self.min = min(self.min, float(low) + 0.0)  # + 0.0: no -0.0
        self.max = max(self.max, float(high) + 0.0)
        mean = float(good.mean())
        spread = float((good - mean).square_().sum())
        shift, total = mean - self.mean, self.finite + added
        self.spread += spread + shift * shift * self.finite * added / total
        self.mean += shift * added / total
        self.squares += float(good.dot(good))
        self.finite = total
        self._add_bins(good)

    def _add_bins(self, good: torch.Tensor) -> None:
        zero = good == 0
        zeros = int(zero.sum())
        if zeros:
            self.zeros += zeros
            good = good[~zero]
        exponents = good.frexp().exponent.long().sub_(1).clamp_(_LOWEST, _HIGHEST).sub_(_LOWEST)
        width = self.bins.shape[1]
        self.bins += torch.bincount(exponents + (good > 0) * width, minlength=2 * width).view(2, width)

    def result(self, picture: _Picture | None, note: str) -> TensorStats:
        some = self.finite > 0
        return TensorStats(
            count=self.count,
            min=self.min if some else None,
            max=self.max if some else None,
            mean=self.mean if some else None,
            std=math.sqrt(self.spread / self.finite) if some else None,
            norm=math.sqrt(self.squares) if some else None,
            nan=self.nan,
            inf=self.count - self.finite - self.nan,
            zeros=self.zeros,
            histogram=self._histogram(),
            thumbnail=picture.result() if picture is not None else None,
            note=note,
        )

    def _histogram(self) -> Histogram | None:
        used = self.bins.sum(0).nonzero().flatten().tolist()
        if not used:
            return None
        negative, positive = self.bins[:, used[0] : used[-1] + 1].tolist()
        return Histogram(used[0] + _LOWEST, tuple(negative), tuple(positive))


class _Picture:
    """Means of the cells of a grid over the tensor, seen as a matrix: sums between the borders of its columns."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.height, self.width = shape[0], math.prod(shape[1:])
        self.rows, self.columns = min(self.height, SIDE), min(self.width, SIDE)
        self.borders = torch.arange(self.columns + 1) * self.width // self.columns
        self.sums = torch.zeros(self.rows * self.columns, dtype=torch.float64)
        self.bad = torch.zeros(self.rows * self.columns, dtype=torch.bool)

    def add(self, start: int, values: torch.Tensor, finite: torch.Tensor) -> None:
        """Adds the elements from the one with the number ``start``; a row may lie in several pieces."""
        if not bool(finite.all()):
            wrong = (~finite).nonzero().flatten() + start
            columns = torch.searchsorted(self.borders, wrong % self.width, right=True) - 1
            self.bad[self._row(wrong // self.width) * self.columns + columns] = True
            values = values.where(finite, 0.0)
        running = torch.cat([values.new_zeros(1), values.cumsum(0)])
        lines = torch.arange(start // self.width, (start + len(values) - 1) // self.width + 1)
        ends = (lines[:, None] * self.width + self.borders[None]).clamp_(start, start + len(values)) - start
        sums = running[ends].diff(dim=1)
        cells = self._row(lines)[:, None] * self.columns + torch.arange(self.columns)
        self.sums.index_add_(0, cells.flatten(), sums.flatten())

    def _row(self, lines: torch.Tensor) -> torch.Tensor:
        return lines * self.rows // self.height

    def result(self) -> Thumbnail:
        in_row = torch.bincount(self._row(torch.arange(self.height)), minlength=self.rows)
        sizes = (in_row[:, None] * self.borders.diff()[None]).flatten()
        means, bad = (self.sums / sizes).tolist(), self.bad.tolist()
        cells = tuple(None if wrong or not math.isfinite(x) else x for x, wrong in zip(means, bad, strict=True))
        return Thumbnail(self.rows, self.columns, cells)
