"""Which tensor of a tree is stored in which file of a checkpoint: one container for each object. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from holdfast.errors import ArgumentError
from holdfast.formats.base import INDEX_SUFFIX, StoredTensor
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


Groups = Mapping[Path, str]
"""Parts of an object that change less often than the rest, by path: ``("model", "fc.weight")`` is ``frozen``."""
_REST = "trained"
SPLIT = 1 << 20
"""Bytes that a group needs to get a file of its own."""


class Placement(msgspec.Struct, eq=False):
    """What a tree becomes in a checkpoint's folder.

    Attributes:
        containers: by file name, what each holds.
        members: the tensor leaves, in the order of the tree; ``home`` is (file, name).
        indexes: by file name, the containers that are one object, in the form of ``model.safetensors.index.json``.
    """

    containers: dict[str, list[Packed]]
    members: list[Member]
    indexes: dict[str, dict[str, Any]]


def place(tree: Tree, groups: Groups | None = None) -> Placement:
    """Decides files and names. Nothing is read.

    The bytes of ``model.fc.weight`` become ``fc.weight`` in ``model.safetensors``. What several objects share is stored
    with the first of them. An object with large groups becomes several files and an index:
    ``model-frozen.safetensors``, ``model-trained.safetensors``, ``model.safetensors.index.json``.

    Args:
        tree: what is stored.
        groups: what changes less often, by the first two keys of its path.

    Raises:
        ArgumentError: a leaf is no StoredTensor.
    """
    found = list(leaves(tree))
    for path, leaf in found:
        if not isinstance(leaf, StoredTensor):
            raise ArgumentError(f"`{dotted(path)}`: {type(leaf).__name__} is neither a plain value nor a stored tensor")
    packing = pack(tree)
    packed = {entry.name: entry for entry in packing.entries}
    members: list[Member] = []
    names: list[str] = []
    owners: dict[str, tuple[str, str]] = {}
    paths: set[Path] = set()
    for path, leaf in found:
        member, name = _member(unused_path(path, paths), leaf, packing.references[id(leaf)], packed)
        members.append(member)
        names.append(name)
        owners.setdefault(name, (str(path[0]) if path else "tensors", (groups or {}).get(path[:2], _REST)))
    files = _files(owners, packed)
    homes: dict[str, tuple[str, str]] = {}
    containers: dict[str, list[Packed]] = {}
    for name, owner in owners.items():
        homes[name] = (files[owner], _below(name, owner[0]))
        containers.setdefault(files[owner], []).append(msgspec.structs.replace(packed[name], name=homes[name][1]))
    for member, name in zip(members, names, strict=True):
        member.home = homes[name]
    return Placement(containers, members, _indexes(files, containers))


def _files(owners: Mapping[str, tuple[str, str]], packed: Mapping[str, Packed]) -> dict[tuple[str, str], str]:
    """The file for each (object, group): one for the object unless at least two of its groups are worth one."""
    sizes: dict[str, dict[str, int]] = {}
    for name, (key, group) in owners.items():
        of_key = sizes.setdefault(key, {})
        of_key[group] = of_key.get(group, 0) + packed[name].length
    files: dict[tuple[str, str], str] = {}
    taken: set[str] = set()

    def file(stem: str) -> str:
        name = container_name(stem, taken)
        taken.add(name.casefold())
        return name

    for key, of_key in sizes.items():
        large = [group for group in of_key if group != _REST and of_key[group] >= SPLIT]
        if not large or len(of_key) == 1:
            whole = file(key)
            files |= {(key, group): whole for group in of_key}
            continue
        names = {group: file(f"{key}-{group}") for group in large}
        rest = file(f"{key}-{_REST}") if len(of_key) > len(large) else ""
        files |= {(key, group): names.get(group, rest) for group in of_key}
    return files


def _indexes(
    files: Mapping[tuple[str, str], str], containers: Mapping[str, Sequence[Packed]]
) -> dict[str, dict[str, Any]]:
    """What tells plain readers which file holds which tensor of an object that has several."""
    of_key: dict[str, dict[str, None]] = {}
    for (key, _), file in files.items():
        of_key.setdefault(key, {})[file] = None
    indexes: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for key, several in of_key.items():
        if len(several) > 1:
            entries = {entry.name: (file, entry.length) for file in several for entry in containers[file]}
            whole = container_name(key, taken)
            taken.add(whole.casefold())
            indexes[f"{whole}{INDEX_SUFFIX}"] = {
                "metadata": {"total_size": sum(length for _, length in entries.values())},
                "weight_map": {name: entries[name][0] for name in sorted(entries)},
            }
    return indexes


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


def unused_path(path: Path, taken: set[Path]) -> Path:
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
