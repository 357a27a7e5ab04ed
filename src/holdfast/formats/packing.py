"""From the leaves of a document to the named, row-major, contiguous byte runs that a safetensors file holds.

Tensors of one segment whose bytes overlap share memory and become one entry. It is named after a tensor that covers
all of it; where none does, it is a run of plain bytes under ``<first name>.storage`` and our record says which tensor
lies where. Tensors that do not overlap become entries of their own: nothing is shared between them, and bytes of a
large storage that no tensor uses are left behind.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.gathering import ITEM, Gathered
from holdfast.formats.safetensors_header import RESERVED, shown
from holdfast.formats.tensors import needed_bytes
from holdfast.spec import DTYPES, TensorSpec, contiguous_stride
from holdfast.state.flatten import leaves
from holdfast.state.values import Tree
from holdfast.storage.source import ByteSource, SubSource, check_inside


class Packed(msgspec.Struct, eq=False, gc=False):
    """One entry of a safetensors file.

    Attributes:
        name: unique in the file.
        dtype: a name of the dtype table that has a safetensors code.
        shape: elements per dimension; the bytes are row-major.
        source: where the bytes come from, ``length`` of them from ``start``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: ByteSource
    start: int
    length: int

    @property
    def leaf(self) -> StoredTensor:
        """The entry as a tensor of its own."""
        segment = Segment(self.source, self.start, self.length, self.name)
        return StoredTensor(TensorSpec(self.dtype, self.shape), segment)


Reference = str | list[Any]
"""How the record finds a tensor: the entry's name when the entry is the tensor, else
``[entry, dtype, shape, stride, offset, requires_grad, live stride]``, the offset in bytes from the entry's first."""


class Packing(msgspec.Struct, eq=False):
    """What a document becomes.

    Attributes:
        entries: in the order of the tree.
        references: by ``id`` of the leaf.
        notes: what a plain reader of the file will find different, for people.
    """

    entries: list[Packed]
    references: dict[int, Reference]
    notes: list[str]


_Member = tuple[str, StoredTensor]


def pack(tree: Tree) -> Packing:
    """Decides the entries of a tree. Nothing is read.

    Raises:
        UnsupportedValue: big-endian tensors of different item sizes that share memory.
    """
    packing = Packing([], {}, [])
    taken = {RESERVED}
    segments: dict[int, list[_Member]] = {}
    for path, leaf in leaves(tree):
        name = _free(_name(".".join(map(str, path)) if path else "tensor"), taken)
        taken.add(name)
        segments.setdefault(id(leaf.segment), []).append((name, leaf))
    for members in segments.values():
        if len(members) == 1 and _is_whole(members[0][1]):
            _pack_whole(*members[0], packing)
        else:
            for cluster in clusters(members):
                _pack_cluster(cluster, packing, taken)
    return packing


def _is_whole(leaf: StoredTensor) -> bool:
    """Whether the bytes of its segment are the tensor, as safetensors wants them: nearly every tensor."""
    spec, segment = leaf.spec, leaf.segment
    fits = spec.stride is None and leaf.offset == 0 and spec.nbytes == segment.length
    return fits and not segment.swapped and DTYPES[spec.dtype].safetensors is not None


def _pack_whole(name: str, leaf: StoredTensor, packing: Packing) -> None:
    spec, segment = leaf.spec, leaf.segment
    entry = Packed(name, spec.dtype, spec.shape, segment.source, segment.offset, segment.length)
    packing.entries.append(entry)
    packing.references[id(leaf)] = _reference(entry, leaf, 0, False)


def _name(text: str) -> str:
    """A name that can be written: what UTF-8 lacks is escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _free(name: str, taken: set[str]) -> str:
    """``name``, or ``name~2``, ``name~3`` ... when it is taken: ``{"a": {"b": x}, "a.b": y}`` has ``a.b`` twice."""
    if name not in taken:
        return name
    return next(other for number in itertools.count(2) if (other := f"{name}~{number}") not in taken)


def _end(leaf: StoredTensor) -> int:
    return leaf.offset + needed_bytes(leaf.spec)


def clusters(members: Sequence[_Member]) -> Iterable[list[_Member]]:
    """Groups that overlap; groups and members stay in the order of the tree."""
    order = sorted(range(len(members)), key=lambda index: (members[index][1].offset, -_end(members[index][1])))
    groups: list[list[int]] = []
    end = -1
    for index in order:
        leaf = members[index][1]
        if leaf.offset >= end:
            groups.append([])
        groups[-1].append(index)
        # equal empty tensors are one: they name the same place and no byte could tell them apart
        end = max(end, _end(leaf), leaf.offset + 1)
    groups = [sorted(group) for group in groups]
    return [[members[index] for index in group] for group in sorted(groups, key=lambda group: group[0])]


def _pack_cluster(members: list[_Member], packing: Packing, taken: set[str]) -> None:
    low, high = min(leaf.offset for _, leaf in members), max(_end(leaf) for _, leaf in members)
    name, first = members[0]
    source, start = first.segment.source, first.segment.offset + low
    if first.segment.swapped:
        source, start = Swapped(SubSource(source, start, high - low), _common_unit(members)), 0
    alike = all(_same_view(leaf, first) for _, leaf in members)
    cover = _covering(members, low, high)
    held = DTYPES[first.spec.dtype].safetensors is not None
    gathered = cover is None and alike and held and can_gather(first.spec)
    if cover is not None:
        entry = Packed(cover[0], cover[1].spec.dtype, cover[1].spec.shape, source, start, high - low)
    elif gathered:
        rows = Gathered(SubSource(source, start, high - low), first.spec)
        entry = Packed(name, first.spec.dtype, first.spec.shape, rows, 0, rows.size)
    else:
        if not alike:
            name = _free(f"{name}.storage", taken)
            taken.add(name)
        entry = Packed(name, "uint8", (high - low,), source, start, high - low)
    packing.entries.append(entry)
    for _, leaf in members:
        packing.references[id(leaf)] = _reference(entry, leaf, low, gathered)
    packing.notes.extend(_notes(entry, members))


def _covering(members: list[_Member], low: int, high: int) -> _Member | None:
    """The first member that is all of the bytes, row-major, in a dtype that safetensors has."""
    for name, leaf in members:
        spec = leaf.spec
        fits = leaf.offset == low and spec.nbytes == high - low and spec.is_contiguous
        if fits and DTYPES[spec.dtype].safetensors:
            return name, leaf
    return None


def _same_view(leaf: StoredTensor, other: StoredTensor) -> bool:
    return leaf.offset == other.offset and leaf.spec == other.spec


def can_gather(spec: TensorSpec) -> bool:
    """Whether each element has bytes of its own, so that a row-major copy is no larger and loses no sharing."""
    if spec.stride is None:
        return False
    reach = 0
    for step, size in sorted(zip(spec.stride, spec.shape, strict=True)):
        if size != 1:
            if step <= reach:
                return False
            reach += (size - 1) * step
    return True


def _reference(entry: Packed, leaf: StoredTensor, low: int, gathered: bool) -> Reference:
    spec, stride, live = leaf.spec, leaf.spec.stride, leaf.live_stride
    offset = 0 if gathered else leaf.offset - low
    if gathered:
        live = stride if spec.extent == spec.numel else None  # with gaps left out, the old stride is meaningless
        stride = None
    elif stride is not None and stride == contiguous_stride(spec.shape):
        stride = None
    same = entry.dtype == spec.dtype and entry.shape == spec.shape and offset == 0
    if same and stride is None and live is None and not leaf.requires_grad:
        return entry.name
    return [entry.name, spec.dtype, spec.shape, stride, offset, leaf.requires_grad, live]


def _notes(entry: Packed, members: list[_Member]) -> Iterable[str]:
    names = [name for name, _ in members]
    dtype = members[0][1].spec.dtype
    if entry.name not in names:
        yield f"{_listed(names)} lie in one memory, stored as `{shown(entry.name)}`; plain readers find bytes there"
        return
    if not DTYPES[dtype].safetensors:
        yield f"`{shown(entry.name)}` is {dtype}, which safetensors lacks: plain readers find its bytes as uint8"
    others = [name for name in names if name != entry.name]
    if others:
        yield f"{_listed(others)} share the memory of `{shown(entry.name)}`; plain readers find that name only"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"`{shown(name)}`" for name in names[:5]) + more


# ---- bytes that do not lie as they are written -----------------------------------------------------------------------


def _unit(dtype: str) -> int:
    """Bytes that are swapped as one number: half an element for complex ones."""
    return DTYPES[dtype].itemsize // (2 if dtype.startswith("complex") else 1)


def _common_unit(members: list[_Member]) -> int:
    units = {_unit(leaf.spec.dtype) for _, leaf in members}
    if len(units) > 1:
        raise UnsupportedValue(
            f"{_listed([name for name, _ in members])} share big-endian memory with different item sizes; load and "
            "clone them before saving",
            path=members[0][0],
        )
    return units.pop()


class Swapped:
    """Another source, whole, with the bytes of each number of ``unit`` bytes reversed."""

    def __init__(self, source: ByteSource, unit: int) -> None:
        self.name = source.name
        self._source = source
        self._unit = unit

    @property
    def size(self) -> int:
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        check_inside(self.name, self.size, offset, length)
        begin = offset - offset % self._unit
        end = min(-(-(offset + length) // self._unit) * self._unit, self.size)
        data = self._source.read(begin, end - begin)
        if self._unit > 1:
            numbers = array(ITEM[self._unit], data)
            numbers.byteswap()
            data = numbers.tobytes()
        return data[offset - begin : offset - begin + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, buffer.nbytes)

    def close(self) -> None:
        """Nothing to let go of: the source is the caller's."""


def tensor_bytes(leaf: StoredTensor, *, as_it_lies: bool = False) -> ByteSource:
    """The little-endian bytes of a tensor's elements in row-major order.

    Args:
        leaf: no two of its elements may overlap, unless ``as_it_lies``.
        as_it_lies: give the bytes from the first element to the last in the order in which they are stored.
    """
    spec, segment = leaf.spec, leaf.segment
    source: ByteSource = SubSource(segment.source, segment.offset + leaf.offset, needed_bytes(spec))
    if segment.swapped:
        source = Swapped(source, _unit(spec.dtype))
    return source if as_it_lies or spec.is_contiguous else Gathered(source, spec)
