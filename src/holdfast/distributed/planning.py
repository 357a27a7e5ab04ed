"""Which rank writes what: everything once, and what several have spread over them by bytes.

Pure: a rank says what it has, rank 0 deals it out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from holdfast.distributed.rank_file import Part
from holdfast.errors import ArgumentError, UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.packing import Packed, Reference, pack
from holdfast.runs.sharded import Wanted
from holdfast.spec import Path, TensorSpec
from holdfast.state.flatten import leaves, map_leaves
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Tree, Typed

SHARDED = "sharded"
"""The kind that lowering gives a tensor of which this process has a part."""


class Claim(msgspec.Struct, frozen=True):
    """Bytes that a rank has and could write.

    Attributes:
        key: of the tensor.
        offsets: where in it they begin; None for all of it.
        length: bytes.
        shared: whether every rank that has them has the same ones, so that any of them may write.
    """

    key: str
    offsets: tuple[int, ...] | None
    length: int
    shared: bool


class Local(msgspec.Struct, eq=False):
    """The state of one rank.

    Attributes:
        tree: with a :class:`Wanted` for each tensor.
        parts: what this rank could write.
        claims: one for each part.
    """

    tree: Tree
    parts: list[Part]
    claims: list[Claim]


def local_state(tree: Tree, *, shared: Collection[Path] = (), prefix: str = "") -> Local:
    """What a rank has.

    Args:
        tree: its tensors are StoredTensors; those of which it has a part stand in a ``sharded``.
        shared: paths of whole tensors that are the same on every rank.
        prefix: before the keys, for what belongs to this rank alone.

    Raises:
        UnsupportedValue: a part of a tensor that shares its memory with something else.
    """
    boxes: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    plain = _unwrapped(tree, boxes)
    packing = pack(plain)
    packed = {entry.name: entry for entry in packing.entries}
    wanted: dict[int, Wanted] = {}
    found: dict[str, tuple[Part, bool]] = {}
    for path, leaf in leaves(plain):
        reference = packing.references[id(leaf)]
        name = reference if isinstance(reference, str) else reference[0]
        box = boxes.get(id(leaf))
        if box is None or box[0] == leaf.spec.shape:
            wanted[id(leaf)] = _whole(prefix, leaf, reference, packed[name])
            part, both = Part(prefix + name, packed[name].leaf), box is not None or path in shared
        else:
            shape, offsets = box
            if not _is_alone(reference, packed[name], leaf):
                raise UnsupportedValue(
                    f"`{printable(dotted(path))}`: a part of a tensor in memory that others share; clone() it",
                    path=dotted(path),
                )
            wanted[id(leaf)] = Wanted(prefix + name, TensorSpec(leaf.spec.dtype, shape))
            entry = packed[name]
            segment = Segment(entry.source, entry.start, entry.length, name)
            spec = TensorSpec(leaf.spec.dtype, leaf.spec.shape)
            whole = None if not math.prod(shape) else offsets
            part, both = Part(prefix + name, StoredTensor(spec, segment), whole), True
        if math.prod(part.leaf.spec.shape) or part.offsets is None:
            known = found.setdefault(name, (part, both))
            found[name] = (known[0], known[1] and both)
    parts = [part for part, _ in found.values()]
    claims = [Claim(part.key, part.offsets, part.leaf.spec.nbytes, both) for part, both in found.values()]
    return Local(map_leaves(plain, lambda leaf: wanted[id(leaf)]), parts, claims)


def _unwrapped(tree: Tree, boxes: dict[int, Any]) -> Tree:
    if type(tree) is dict:
        return {key: _unwrapped(item, boxes) for key, item in tree.items()}
    if type(tree) is list:
        return [_unwrapped(item, boxes) for item in tree]
    if type(tree) is not Typed:
        return tree
    if tree.kind != SHARDED:
        return Typed(tree.kind, _unwrapped(tree.payload, boxes))
    for _, leaf in leaves(tree.payload["data"]):
        boxes[id(leaf)] = tuple(tree.payload["shape"]), tuple(tree.payload["at"])
    return tree.payload["data"]


def _is_alone(reference: Reference, entry: Packed, leaf: StoredTensor) -> bool:
    """Whether the bytes that are stored are this tensor's and no others."""
    if isinstance(reference, str):
        return True
    return reference[3] is None and reference[4] == 0 and entry.length == leaf.spec.nbytes


def _whole(prefix: str, leaf: StoredTensor, reference: Reference, entry: Packed) -> Wanted:
    if isinstance(reference, str):
        return Wanted(prefix + reference, TensorSpec(entry.dtype, entry.shape))
    name, dtype, shape, stride, offset, requires_grad, live = reference
    spec = TensorSpec(dtype, tuple(shape), None if stride is None else tuple(stride))
    return Wanted(prefix + name, spec, offset, requires_grad, None if live is None else tuple(live))


def deal(claims: Sequence[Sequence[Claim]]) -> list[list[int]]:
    """Who writes what: for each rank the numbers of its claims. Each part is written once.

    What every rank has alike goes, largest first, to the one that has the least to write; the rest of what several have
    is that of the lowest rank, as where only rank 0 saves.

    Args:
        claims: of each rank.

    Raises:
        ArgumentError: a rank has a whole tensor that rank 0 lacks, so that no one would know its place.
    """
    holders: dict[tuple[str, tuple[int, ...] | None], list[tuple[int, int]]] = {}
    for rank, of_rank in enumerate(claims):
        for number, claim in enumerate(of_rank):
            holders.setdefault((claim.key, claim.offsets), []).append((rank, number))
    given: list[list[int]] = [[] for _ in claims]
    bytes_of = [0] * len(claims)
    free: list[tuple[int, list[tuple[int, int]]]] = []
    for (key, offsets), having in holders.items():
        rank, number = having[0]
        claim = claims[rank][number]
        if offsets is None and rank:
            raise ArgumentError(f"`{key}`: rank {rank} has it and rank 0 has not: every rank saves the same objects")
        if len(having) > 1 and all(claims[r][n].shared for r, n in having):
            free.append((claim.length, having))
        else:
            given[rank].append(number)
            bytes_of[rank] += claim.length
    for length, having in sorted(free, key=lambda item: -item[0]):
        rank, number = min(having, key=lambda place: bytes_of[place[0]])
        given[rank].append(number)
        bytes_of[rank] += length
    return [sorted(numbers) for numbers in given]


def total(claims: Sequence[Sequence[Claim]], dealt: Sequence[Sequence[int]]) -> int:
    """Bytes that are written."""
    return sum(claims[rank][number].length for rank, numbers in enumerate(dealt) for number in numbers)
