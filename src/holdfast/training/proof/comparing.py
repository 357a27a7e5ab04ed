"""Two checkpoints, bit by bit: every tensor, every plain value, the metrics, the position. Needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from holdfast.formats.base import StoredTensor
from holdfast.runs.catalog import scan
from holdfast.runs.checkpoint import Checkpoint
from holdfast.state.flatten import below, child
from holdfast.state.paths import dotted
from holdfast.state.values import Opaque, Typed

_PIECE = 8 << 20


class Difference(msgspec.Struct, frozen=True):
    """One leaf that differs.

    Attributes:
        path: dotted: ``optimizer.state.0.exp_avg``; ``metrics.val_loss``; ``position.step``.
        what: both sides, or how many elements differ.
    """

    path: str
    what: str


class Compared(msgspec.Struct, frozen=True):
    """What two checkpoints have in common.

    Attributes:
        step: of the first one.
        leaves: how many were compared.
        bytes: in tensors.
        differences: every leaf that differs, position and metrics first, then in the order of the tree.
    """

    step: int
    leaves: int
    bytes: int
    differences: list[Difference]


def compare_checkpoints(left: str, right: str) -> Compared:
    """Compares two step folders.

    Raises:
        FormatError, NotFound, StorageError: one of them can't be read.
    """
    with contextlib.closing(Checkpoint(left)) as a, contextlib.closing(Checkpoint(right)) as b:
        ours, theirs = _leaves(a), _leaves(b)
        found = []
        for path in (*ours, *(path for path in theirs if path not in ours)):
            what = _difference(ours.get(path, _ABSENT), theirs.get(path, _ABSENT))
            if what is not None:
                found.append(Difference(path, what))
        tensors = [value for value in ours.values() if isinstance(value, StoredTensor)]
        return Compared(a.manifest.step, len(ours), sum(one.spec.nbytes for one in tensors), found)


def common_steps(left: str, right: str) -> list[tuple[str, str]]:
    """The step folders that two runs have in common, oldest first."""
    theirs = {one.step: one.path for one in scan(right).readable}
    return [(one.path, theirs[one.step]) for one in scan(left).readable if one.step in theirs]


def has_part(folder: str, name: str) -> bool:
    """Whether a checkpoint holds a part of that name: an object of the run, ``rng`` or ``loader``."""
    with contextlib.closing(Checkpoint(folder)) as checkpoint:
        return child(checkpoint.document().tree, name) is not None


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _leaves(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    found: dict[str, Any] = {
        "position.step": manifest.items_done,
        "position.epoch": manifest.epoch,
        "position.batch": manifest.batch,
    }
    found |= {f"metrics.{name}": value for name, value in manifest.metrics.items()}
    for path, leaf in _walk((), checkpoint.document().tree):
        name = dotted(path)
        while name in found:  # a key that is a container stands beside its item
            name += "'"
        found[name] = leaf
    return found


def _walk(path: tuple[Any, ...], node: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    stack = [iter([(path, node)])]
    while stack:
        for at, part in stack[-1]:
            if type(part) in (dict, list, Typed, Opaque):
                if type(part) is Typed:
                    yield (*at, "(type)"), part.kind
                stack.append(iter(list(below(at, part))))
                break
            yield at, part
        else:
            stack.pop()


def _difference(left: Any, right: Any) -> str | None:
    if isinstance(left, StoredTensor) and isinstance(right, StoredTensor):
        return _tensors(left, right)
    if type(left) is type(right) and repr(left) == repr(right):  # by repr: NaN is NaN, 0.0 is not -0.0
        return None
    return f"{_short(left)} in the uninterrupted run, {_short(right)} in the resumed one"


def _short(value: Any) -> str:
    return f"tensor {value.spec}" if isinstance(value, StoredTensor) else f"{value!r:.60}"


def _tensors(left: StoredTensor, right: StoredTensor) -> str | None:
    if left.spec != right.spec or left.requires_grad != right.requires_grad or left.live_stride != right.live_stride:
        return f"{_short(left)} in the uninterrupted run, {_short(right)} in the resumed one"
    size, item = left.spec.extent * left.spec.itemsize, left.spec.itemsize
    wrong, first = 0, None
    for at in range(0, size, _PIECE):
        length = min(_PIECE, size - at)
        ours = left.segment.source.read(left.segment.offset + left.offset + at, length)
        theirs = right.segment.source.read(right.segment.offset + right.offset + at, length)
        if ours != theirs:
            places = {n // item for n, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x != y}
            first = at // item + min(places) if first is None else first
            wrong += len(places)
    return None if first is None else f"{wrong} of {left.spec.numel} {left.spec.dtype} elements, the first at {first}"
