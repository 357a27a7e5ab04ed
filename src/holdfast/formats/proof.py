"""The proof that a file holds what another one does: every value, every bit of every tensor, everything shared."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from holdfast.formats.base import Document, StoredTensor
from holdfast.formats.lost import Lost
from holdfast.formats.npz_names import arrays_of
from holdfast.formats.packing import can_gather, clusters, tensor_bytes
from holdfast.formats.sameness import same_bytes
from holdfast.spec import CHUNK, Path
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted
from holdfast.state.values import Opaque, Tree, Typed
from holdfast.storage import meter
from holdfast.storage.source import ByteSource
from holdfast.storage.workers import run_jobs

_PIECE = 4 * CHUNK


class _Pair(msgspec.Struct, eq=False):
    """The same tensor on both sides."""

    name: str
    have: ByteSource
    want: ByteSource


def differences(wanted: Document, found: Document) -> list[Lost]:
    """Everything in which two documents differ; reads all tensors of both, a block at a time.

    Strides and devices are not compared: they say how a tensor lay in memory, not what it is.
    """
    compared = _Comparison()
    compared.trees(wanted.tree, found.tree, ())
    for key in sorted({*wanted.objects, *found.objects}):
        compared.trees(wanted.objects.get(key), found.objects.get(key), (f"objects.{key}",))
    for key in sorted({*wanted.metadata, *found.metadata}):
        compared.trees(wanted.metadata.get(key), found.metadata.get(key), (f"metadata.{key}",))
    for group in sorted(_unlike(shared_groups(wanted.tree), shared_groups(found.tree))):
        compared.lost.append(Lost(group[0], f"shares its memory with {', '.join(group[1:6])} on one side only"))
    return compared.result()


def array_differences(wanted: Document, found: Document) -> list[Lost]:
    """The same for a file of named arrays: each array of ``wanted`` must be there under its name, and no other."""
    compared = _Comparison(gradients=False)
    tree = found.tree if type(found.tree) is dict else {}
    arrays = {array.name: array.value for array in arrays_of(wanted)[0]}
    for name in [*arrays, *(name for name in tree if name not in arrays)]:
        there = tree.get(name)
        value = there.payload if type(there) is Typed else there
        compared.trees(arrays.get(name), value, (name,))
    return compared.result()


def shared_groups(tree: Tree) -> list[tuple[str, ...]]:
    """Paths of tensors that lie in one memory: tied weights, and views of each other."""
    segments: dict[int, list[tuple[str, StoredTensor]]] = {}
    for path, leaf in leaves(tree):
        if leaf.spec.numel:
            segments.setdefault(id(leaf.segment), []).append((dotted(path), leaf))
    groups = [cluster for members in segments.values() if len(members) > 1 for cluster in clusters(members)]
    return [tuple(name for name, _ in group) for group in groups if len(group) > 1]


def _unlike(left: list[tuple[str, ...]], right: list[tuple[str, ...]]) -> set[tuple[str, ...]]:
    return {tuple(sorted(group)) for group in left} ^ {tuple(sorted(group)) for group in right}


class _Comparison:
    """Two trees side by side.

    Args:
        gradients: whether ``requires_grad`` must be equal too.
    """

    def __init__(self, *, gradients: bool = True) -> None:
        self._gradients = gradients
        self.lost: list[Lost] = []
        self._pairs: dict[Any, _Pair] = {}

    def result(self) -> list[Lost]:
        """What differs, after all bytes have been compared."""
        unequal: set[str] = set()

        def do(job: tuple[_Pair, int]) -> None:
            pair, start = job
            end = min(start + _PIECE, pair.want.size)
            if pair.name not in unequal and not same_bytes(pair.have, pair.want, start, end):
                unequal.add(pair.name)

        meter.begin("reading again", sum(pair.have.size for pair in self._pairs.values()))
        jobs = [(pair, start) for pair in self._pairs.values() for start in range(0, pair.have.size, _PIECE)]
        run_jobs(jobs, do)
        return self.lost + [Lost(name, "its bytes differ") for name in sorted(unequal)]

    def trees(self, wanted: Tree, found: Tree, path: Path) -> None:
        """Compares two trees; tensors are put aside until all else is known."""
        stack = [(wanted, found, path)]
        while stack:
            want, have, at = stack.pop()
            if type(want) is not type(have):
                self._differs(at, want, have)
            elif type(want) is StoredTensor:
                self._tensors(want, have, at)
            else:
                below = _parts(want, have)
                if below is None:
                    self._differs(at, want, have)
                else:
                    stack.extend((left, right, at if key is None else (*at, key)) for key, left, right in below)

    def _differs(self, path: Path, want: Tree, have: Tree) -> None:
        self.lost.append(Lost(dotted(path), f"{_brief(want)} becomes {_brief(have)}"))

    def _tensors(self, want: StoredTensor, have: StoredTensor, path: Path) -> None:
        graded = not self._gradients or want.requires_grad == have.requires_grad
        if not graded or (want.spec.dtype, want.spec.shape) != (have.spec.dtype, have.spec.shape):
            self._differs(path, want, have)
            return
        alike = want.spec.stride == have.spec.stride
        if not alike and not all(leaf.spec.is_contiguous or can_gather(leaf.spec) for leaf in (want, have)):
            self._differs(path, want, have)
            return
        known = (id(want.segment), want.offset, want.spec, id(have.segment), have.offset, have.spec)
        if known not in self._pairs and want.spec.numel:
            sides = [tensor_bytes(leaf, as_it_lies=alike) for leaf in (want, have)]
            self._pairs[known] = _Pair(dotted(path), *sides)


def _parts(want: Tree, have: Tree) -> list[tuple[Any, Tree, Tree]] | None:
    """What is to be compared inside two values of one type, with its key; None when they differ already."""
    cls = type(want)
    if cls is dict:
        same = list(want) == list(have)
        return [(key, want[key], have[key]) for key in want] if same else None
    if cls is list:
        return list(zip(range(len(want)), want, have, strict=True)) if len(want) == len(have) else None
    if cls is Typed:
        if want.kind != have.kind:
            return None
        left, right = want.payload, have.payload
        if type(left) is dict and type(right) is dict and left.keys() == right.keys():
            return [(None, left[key], right[key]) for key in left]  # fields: their order says nothing
        return [(None, left, right)]
    if cls is Opaque:
        inside = [("args", want.args, have.args), ("state", want.state, have.state)]
        return inside if want.type_name == have.type_name else None
    return [] if _same_atom(want, have) else None


def _same_atom(want: Tree, have: Tree) -> bool:
    """Equal to the last bit: 0.0 is not -0.0, and one NaN is not another."""
    if type(want) is float:
        return struct.pack("<d", want) == struct.pack("<d", have)
    if type(want) is complex:
        return struct.pack("<2d", want.real, want.imag) == struct.pack("<2d", have.real, have.imag)
    return bool(want == have)


def _brief(value: Tree) -> str:
    cls = type(value)
    if cls is StoredTensor:
        return f"a tensor {value.spec}{', requires_grad' if value.requires_grad else ''}"
    if cls is Typed:
        return f"a {value.kind}"
    if cls is Opaque:
        return f"an object of class {value.type_name}"
    return f"{cls.__name__} {value!r:.60}" if cls not in (dict, list) else f"a {cls.__name__} of {len(value)}"
