"""Which tensor of a tree is stored in which file of a checkpoint: one container for each object. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from holdfast.errors import ArgumentError
from holdfast.formats.base import StoredTensor
from holdfast.formats.packing import Packed, Reference, pack
from holdfast.formats.safetensors_header import RESERVED
from holdfast.formats.tensors import needed_bytes
from holdfast.runs.entries import owner_key
from holdfast.runs.layout import container_name
from holdfast.spec import Entry, Key, Path, TensorSpec
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted
from holdfast.state.values import Tree


class Stored(msgspec.Struct, frozen=True):
    """Bytes that a container holds under a name: where they are once they are written.

    Attributes:
        offset: first byte in the file.
        length: bytes.
        chunks: one digest for each 8 MiB.
    """

    offset: int
    length: int
    chunks: tuple[str, ...]


class Member(msgspec.Struct, eq=False):
    """One tensor leaf: its path, what it is, and where it begins in the packed entry that holds its bytes."""

    path: Path
    spec: TensorSpec
    home: tuple[str, str]
    offset: int = 0
    requires_grad: bool = False
    live_stride: tuple[int, ...] | None = None


class Placement(msgspec.Struct, eq=False):
    """What a tree becomes in a checkpoint's folder.

    Attributes:
        containers: by file name, what each holds.
        members: the tensor leaves, in the order of the tree; ``home`` is (file, name).
    """

    containers: dict[str, list[Packed]]
    members: list[Member]


def place(tree: Tree) -> Placement:
    """Decides files and names. Nothing is read.

    The bytes of ``model.fc.weight`` become ``fc.weight`` in ``model.safetensors``. What several objects share is stored
    with the first of them.

    Raises:
        ArgumentError: a leaf is no StoredTensor.
    """
    found = list(leaves(tree))
    for path, leaf in found:
        if not isinstance(leaf, StoredTensor):
            raise ArgumentError(f"`{dotted(path)}`: {type(leaf).__name__} is neither a plain value nor a stored tensor")
    packing = pack(tree)
    packed = {entry.name: entry for entry in packing.entries}
    containers: dict[str, list[Packed]] = {}
    homes: dict[str, tuple[str, str]] = {}
    files: dict[str, str] = {}
    members: list[Member] = []
    paths: set[Path] = set()
    for path, leaf in found:
        member, name = _member(_unused(path, paths), leaf, packing.references[id(leaf)], packed)
        if name not in homes:
            key = str(path[0]) if path else "tensors"
            if key not in files:
                files[key] = container_name(key, {file.casefold() for file in files.values()})
            homes[name] = (files[key], _below(name, key))
            entry = msgspec.structs.replace(packed[name], name=homes[name][1])
            containers.setdefault(files[key], []).append(entry)
        member.home = homes[name]
        members.append(member)
    return Placement(containers, members)


def entries(placement: Placement, stored: Mapping[tuple[str, str], Stored]) -> list[Entry]:
    """The entries of a checkpoint: one for each tensor leaf, in order, then those that only views refer to.

    Args:
        placement: what was decided.
        stored: by (file, name), where each packed entry was written.
    """
    owners: dict[tuple[str, str], Path] = {}
    for member in placement.members:
        length = needed_bytes(member.spec)
        if member.offset == 0 and length == stored[member.home].length and member.spec.is_contiguous:
            owners.setdefault(member.home, member.path)
    result = [_entry(member, stored[member.home], owners) for member in placement.members]
    for home, place_ in stored.items():
        if owners.get(home) == _storage_path(home):
            spec = TensorSpec("uint8", (place_.length,))
            result.append(Entry(_storage_path(home), spec, *home, place_.offset, place_.length, place_.chunks))
    return result


def _storage_path(home: tuple[str, str]) -> Path:
    """A path for bytes that no leaf covers: the file and the name; a tree has no such key at its top."""
    return (f"({home[0]})", home[1])


def _entry(member: Member, stored: Stored, owners: dict[tuple[str, str], Path]) -> Entry:
    owner = owners.setdefault(member.home, _storage_path(member.home))
    alias = owner is not member.path
    return Entry(
        path=member.path,
        spec=member.spec,
        file=member.home[0],
        name=member.home[1],
        offset=stored.offset + member.offset,
        length=needed_bytes(member.spec),
        chunks=() if alias else stored.chunks,
        alias_of=owner if alias else None,
        live_stride=member.live_stride,
        requires_grad=member.requires_grad,
    )


def _member(path: Path, leaf: StoredTensor, reference: Reference, packed: Mapping[str, Packed]) -> tuple[Member, str]:
    if isinstance(reference, str):
        entry = packed[reference]
        return Member(path, TensorSpec(entry.dtype, entry.shape), ("", "")), reference
    name, dtype, shape, stride, offset, requires_grad, live_stride = reference
    spec = TensorSpec(dtype, tuple(shape), None if stride is None else tuple(stride))
    live = None if live_stride is None else tuple(live_stride)
    return Member(path, spec, ("", ""), offset, requires_grad, live), name


def _below(name: str, key: str) -> str:
    """The name inside the object's own container; a name that is the object itself stays whole."""
    below = name.removeprefix(f"{key}.")
    return name if not below or below == RESERVED else below


def _unused(path: Path, taken: set[Path]) -> Path:
    """``path`` as JSON can hold it, and as no other tensor has it."""
    clean = tuple(map(_json_key, path))
    candidate, count = clean, 1
    while (marked := owner_key(candidate)) in taken:
        count += 1
        candidate = (*clean[:-1], f"{clean[-1] if clean else ''}~{count}")
    taken.add(marked)
    return candidate


def _json_key(key: Key) -> Key:
    if isinstance(key, str) and not key.isascii():
        return key.encode("utf-8", "backslashreplace").decode()
    if type(key) is int and not -(2**63) <= key < 2**63:
        return str(key)
    return key
