"""The average of several checkpoints' weights. The one file here that needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
import torch

from holdfast.errors import ArgumentError, MismatchError, UnsupportedValue
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.packing import tensor_bytes
from holdfast.formats.sameness import same_content
from holdfast.formats.writing import Destination
from holdfast.serialization.averaged import Averaged, Term
from holdfast.serialization.reading import live_dtype
from holdfast.spec import TensorSpec
from holdfast.state.paths import dotted, printable
from holdfast.state.values import DRESSED, TENSOR_KINDS, Tree, Typed
from holdfast.surgery.report import Rewritten
from holdfast.surgery.states import beside, find_state, items_of, stored_bytes, versions_of, with_items
from holdfast.surgery.writing import Source, opened

_SHOWN = 5
_DESCRIBED = frozenset({"kind", "class", "config", "structure", "training"})
"""What is recorded of a model and is true of the average too."""
Nonfinite = Literal["refuse", "keep"]


def average(
    srcs: Sequence[Any],
    dst: Destination,
    *,
    weights: Sequence[float] | None = None,
    at: str | None = None,
    nonfinite: Nonfinite = "refuse",
    format: str | None = None,  # noqa: A002
) -> Rewritten:
    """Writes the weighted average of several checkpoints' weights, as of the last epochs of a training.

    Each sum is taken in float64 and rounded once. Integers (``num_batches_tracked``) are the last file's.

    Args:
        srcs: two or more paths, references (``["runs/a@-1", "runs/a@-2"]``) or binary file objects, of one model.
        dst: a path or a binary file object; gets the model's state_dict alone.
        weights: how much each counts, by default equally; they are divided by their sum.
        at: dotted path of the state_dict in the files, where it is not found by itself.
        nonfinite: ``"refuse"`` files with NaN or infinities, or ``"keep"`` what they lead to.
        format: ``pt`` or ``safetensors``; by default by the suffix of ``dst``.

    Returns:
        What was written; the notes say what was taken from the last file and not averaged.

    Raises:
        MismatchError: names, shapes or dtypes differ; says which, and on which side.
        UnsupportedValue: quantized or sparse tensors, NaN or infinities.
        ArgumentError: fewer than two files, or weights that are none.
        MissingPart, AmbiguousPart: no state_dict, or several.
        CorruptFile: a digest of a source differs.
        StorageError: ``dst`` can't be written; what was there before is intact.

    Example:
        >>> import holdfast, torch
        >>> saved = [holdfast.save({"w": torch.full((2,), x)}, f"{x}.pt") for x in (1.0, 2.0)]
        >>> made = holdfast.surgery.average(["1.0.pt", "2.0.pt"], "mean.pt")
        >>> holdfast.load("mean.pt")["w"]
        tensor([1.5000, 1.5000])
    """
    shares = _weights(srcs, weights)
    if nonfinite not in get_args(Nonfinite):
        raise ArgumentError(f"nonfinite is {nonfinite!r:.80}; it takes 'refuse' or 'keep'")
    with opened(srcs, dst, format) as surgery:
        sides = [_side(source, at, share) for source, share in zip(surgery.sources, shares, strict=True)]
        _refuse_unlike(sides)
        averaging = _Averaging(sides, nonfinite == "keep")
        last = sides[-1]
        items = [(name, averaging.item(name)) for name in last.items]
        state = with_items(last.state, items, versions_of(last.state))
        tree, record = last.source.document.tree, last.source.document.objects.get(last.place, {})
        objects = {"": {field: value for field, value in record.items() if field in _DESCRIBED}} if record else {}
        left = {
            dotted(sub): stored_bytes(item, besides=last.state) for sub, item in beside(tree, last.path, last.state)
        }
        return surgery.write(Document(state, objects), left_out=left, notes=averaging.notes())


def _weights(srcs: Any, weights: Any) -> list[float]:
    if isinstance(srcs, str | bytes | Mapping) or not isinstance(srcs, Sequence) or len(srcs) < 2:
        raise ArgumentError("average takes a list of at least two files or references")
    if weights is None:
        return [1.0] * len(srcs)
    numbers = list(weights)
    if len(numbers) != len(srcs):
        raise ArgumentError(f"average: {len(srcs)} files and {len(numbers)} weights; give one for each")
    fit = all(isinstance(one, int | float) and math.isfinite(one) and one >= 0 for one in numbers)
    if not fit or not 0 < sum(numbers) < math.inf:
        raise ArgumentError(f"average: weights are numbers of at least 0 and not all 0, not {numbers!r:.200}")
    return [float(one) for one in numbers]


class _Side(msgspec.Struct, eq=False):
    """One source's state_dict: where it is, its items, and how much it counts."""

    source: Source
    path: tuple[Any, ...]
    state: Tree
    items: dict[str, Tree]
    weight: float

    @property
    def file(self) -> str:
        return self.source.file

    @property
    def place(self) -> str:
        """The state's path, as the records of objects have it."""
        return dotted(self.path) if self.path else ""


def _side(source: Source, at: str | None, weight: float) -> _Side:
    path, state = find_state(source.document.tree, at, source.file)
    items = dict(items_of(state) or [])
    for name, item in items.items():
        kind = _plain(item)
        if type(kind) is Typed and kind.kind in TENSOR_KINDS:
            raise UnsupportedValue(
                f"`{printable(source.file)}`: `{printable(name)}` is a {kind.kind} tensor, which can't be averaged; "
                "average plain tensors, and quantize afterwards",
                file=source.file,
                path=name,
            )
    return _Side(source, path, state, items, weight)


def _plain(item: Tree) -> Tree:
    """The tensor of a parameter, or of one with attributes; anything else as it is."""
    while type(item) is Typed and item.kind in DRESSED:
        item = item.payload["data"]
    return item


def _with_plain(item: Tree, tensor: StoredTensor) -> Tree:
    if type(item) is not Typed:
        return tensor
    return Typed(item.kind, {**item.payload, "data": _with_plain(item.payload["data"], tensor)})


def _refuse_unlike(sides: Sequence[_Side]) -> None:
    """Raises MismatchError unless all have the same names with the same shapes and dtypes."""
    first = sides[0]
    for side in sides[1:]:
        unlike = []
        for name in [*first.items, *(name for name in side.items if name not in first.items)]:
            here, there = (_said(one.items, name) for one in (first, side))
            if here != there:
                unlike.append(f"`{printable(name)}`: {here} against {there}")
        if unlike:
            more = f"; and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
            raise MismatchError(
                f"`{printable(first.file)}` and `{printable(side.file)}` are not of one model: "
                f"{'; '.join(unlike[:_SHOWN])}{more}",
                file=side.file,
            )


def _said(items: Mapping[str, Tree], name: str) -> str:
    if name not in items:
        return "nothing"
    tensor = _plain(items[name])
    return str(TensorSpec(tensor.spec.dtype, tensor.spec.shape)) if isinstance(tensor, StoredTensor) else "no tensor"


class _Averaging:
    """Items of the average, from those of all sides."""

    def __init__(self, sides: Sequence[_Side], keep_nonfinite: bool) -> None:
        self._sides = sides
        self._keep = keep_nonfinite
        self._made: dict[Any, StoredTensor] = {}
        self._last: list[str] = []
        self._statistics = False

    def item(self, name: str) -> Tree:
        """One item: averaged where it is of floating point, else the last side's."""
        items = [side.items[name] for side in self._sides]
        tensors = [_plain(item) for item in items]
        if not isinstance(tensors[-1], StoredTensor):
            if any(item != items[-1] for item in items):
                self._last.append(name)
            return items[-1]
        dtype = live_dtype(tensors[-1].spec)
        if not (dtype.is_floating_point or dtype.is_complex):
            if not all(same_content(tensor, tensors[-1]) for tensor in tensors[:-1]):
                self._last.append(name)
            return items[-1]
        self._statistics = self._statistics or name.endswith("running_var")
        # tied where they are tied in every file: one average, stored once
        places = tuple((id(tensor.segment), tensor.offset, tensor.spec) for tensor in tensors)
        if places not in self._made:
            self._made[places] = self._tensor(name, tensors, dtype)
        made = self._made[places]
        return _with_plain(items[-1], msgspec.structs.replace(made, requires_grad=tensors[-1].requires_grad))

    def _tensor(self, name: str, tensors: Sequence[StoredTensor], dtype: torch.dtype) -> StoredTensor:
        last = tensors[-1]
        # what lies alike everywhere, without gaps, keeps its strides and needs no gathering
        alike = all(one.spec == last.spec for one in tensors) and last.spec.extent == last.spec.numel
        terms = [
            Term(side.file, tensor_bytes(tensor, as_it_lies=alike), side.weight, tensor.segment)
            for side, tensor in zip(self._sides, tensors, strict=True)
        ]
        made = Averaged(name, terms, dtype, nonfinite=self._keep)
        spec = last.spec if alike else TensorSpec(last.spec.dtype, last.spec.shape)
        segment = Segment(made, 0, made.size, name, location=last.segment.location)
        return StoredTensor(spec, segment, live_stride=last.live_stride)

    def notes(self) -> list[str]:
        """What was not averaged, and what averaging does not do."""
        notes = []
        if self._last:
            shown = ", ".join(f"`{name}`" for name in self._last[:_SHOWN])
            more = f" and {len(self._last) - _SHOWN} more" if len(self._last) > _SHOWN else ""
            notes.append(f"differ and are no floating point: {shown}{more} of {self._sides[-1].file} taken")
        if self._statistics:
            notes.append(
                "statistics of batch norms were averaged as well; torch.optim.swa_utils.update_bn measures them anew"
            )
        return notes
