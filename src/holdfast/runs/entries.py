"""entries.json and state.json: which bytes are which tensor, and the tree that the tensors stand in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.errors import CorruptFile
from holdfast.formats.boxes import Box, check_cover
from holdfast.formats.tensors import checked_spec, needed_bytes
from holdfast.runs.manifest import VERSION, FileRecord, check_version, decode_versioned
from holdfast.spec import CHUNK, Entry, Path, TensorSpec
from holdfast.state.encoding import dumps, from_json, loads, to_json
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Tree
from holdfast.storage.digest import ALGORITHM

ENTRIES_LIMIT = 512 * 1024 * 1024
STATE_LIMIT = 256 * 1024 * 1024
"""Bytes that are read of the two files: a million tensors stay below them."""

_HEX = {"xxh3-128": re.compile(r"[0-9a-f]{32}"), "sha256": re.compile(r"[0-9a-f]{64}")}


class _EntriesFile(msgspec.Struct):
    version: int
    algorithm: str
    chunk_size: int
    entries: list[Entry]


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """The bytes of entries.json."""
    return msgspec.json.encode(_EntriesFile(VERSION, ALGORITHM, CHUNK, list(entries)))


def decode_entries(data: bytes, files: Mapping[str, FileRecord], file: str) -> list[Entry]:
    """The bytes of entries.json, every number in it checked against the files that the manifest lists.

    Raises:
        UnknownFormat: a newer holdfast wrote it.
        CorruptFile: an entry that can't be; the message names it.
    """
    content = decode_versioned(data, _EntriesFile, file)
    if content.algorithm not in _HEX or content.chunk_size != CHUNK:
        raise CorruptFile(
            f"`{printable(file)}`: digests by {printable(content.algorithm)!r} of chunks of {content.chunk_size} bytes "
            f"are not known; {' and '.join(_HEX)} of {CHUNK} bytes are",
            file=file,
        )
    check_entries(content.entries, files, file, content.algorithm)
    if content.algorithm != ALGORITHM:
        return [_prefixed(entry, content.algorithm) for entry in content.entries]
    return content.entries


def check_entries(
    entries: Sequence[Entry], files: Mapping[str, FileRecord], file: str, algorithm: str = ALGORITHM
) -> None:
    """Checks every number in entries against the files that the manifest lists.

    Raises:
        CorruptFile: an entry that can't be; the message names it.
    """
    by_path: dict[Path, Entry] = {}
    for entry in entries:
        if by_path.setdefault(owner_key(entry.path), entry) is not entry:
            raise _wrong(entry, file, "stands twice")
    for entry in entries:
        _checked(entry, file)
        problem = _whole_problem(entry, entries, file) if entry.rectangles else None
        problem = problem or _problem(entry, files, by_path, _HEX[algorithm])
        if problem:
            raise _wrong(entry, file, problem)


def encode_state(tree: Tree, leaf: Callable[[Any], Any]) -> bytes:
    """The bytes of state.json; ``leaf`` turns each tensor leaf, in order, into the index of its entry."""
    return dumps({"version": VERSION, "tree": to_json(tree, leaf)})


def decode_state(data: bytes, leaf: Callable[[int], Any], count: int, file: str) -> Tree:
    """The bytes of state.json as an inert tree; ``leaf`` turns the index of an entry into its tensor.

    Raises:
        UnknownFormat: a newer holdfast wrote it.
        CorruptFile: it is damaged, or points at an entry that is not among the ``count`` there are.
    """
    content = loads(data, printable(file))
    if type(content) is not dict or type(content.get("version")) is not int or "tree" not in content:
        raise CorruptFile(f"`{printable(file)}`: has no version and tree: it is no state of a checkpoint", file=file)
    check_version(content["version"], file)

    def checked(index: Any) -> Any:
        if type(index) is not int or not 0 <= index < count:
            raise ValueError(f"tensor {printable(repr(index)[:50])} is none of the {count} in entries.json")
        return leaf(index)

    return from_json(content["tree"], checked, printable(file))


def owner_key(path: Path) -> Path:
    """``path`` as a dict key that keeps 1, True and 1.0 apart, which Python takes for one."""
    if all(type(key) is str for key in path):
        return path
    return tuple(item for key in path for item in (type(key).__name__, key))


def _prefixed(entry: Entry, algorithm: str) -> Entry:
    return msgspec.structs.replace(entry, chunks=tuple(f"{algorithm}:{digest}" for digest in entry.chunks))


def _wrong(entry: Entry, file: str, problem: str) -> CorruptFile:
    name = printable(dotted(entry.path))
    return CorruptFile(f"`{printable(file)}`: `{name}`: {problem}", file=file, path=name)


def _problem(
    entry: Entry, files: Mapping[str, FileRecord], by_path: Mapping[Path, Entry], digest: re.Pattern[str]
) -> str | None:
    """What is wrong with an entry; None when nothing is."""
    if entry.rectangles or (entry.alias_of is not None and not entry.file):
        return None if entry.alias_of is None else _alias_problem(entry, by_path)
    record = files.get(entry.file)
    if record is None or record.head is None:  # a head is what makes a file a container: the rest is in chunks
        return f"lies in the file {printable(entry.file)!r}, which the manifest does not list as a container"
    if entry.offset < 0 or entry.length < 0 or entry.offset + entry.length > record.size:
        return (
            f"bytes {entry.offset:,} to {entry.offset + entry.length:,} are not inside {entry.file} "
            f"of {record.size:,} bytes"
        )
    return _stored_problem(entry, digest) if entry.alias_of is None else _alias_problem(entry, by_path)


def _checked(entry: Entry, file: str) -> None:
    """Raises CorruptFile when the spec or the live stride is none that a tensor of this length can have."""
    name = dotted(entry.path)
    spec = checked_spec(entry.spec, name, file=file)
    if entry.live_stride is not None:
        live = TensorSpec(spec.dtype, spec.shape, entry.live_stride)
        checked_spec(live, name, file=file)
        if live.extent > spec.numel:  # it decides how much memory a reader allocates
            raise _wrong(
                entry, file, f"the live stride {live.stride} reaches past the {spec.numel:,} elements of {spec}"
            )
    if needed_bytes(spec) != entry.length:
        raise _wrong(entry, file, f"{spec} takes {needed_bytes(spec):,} bytes, {entry.length:,} are recorded")
    if 0 in spec.shape and math.prod(max(size, 1) for size in spec.shape) >= 2**63:
        raise _wrong(entry, file, f"the shape {spec.shape} is too large for any machine")


def _stored_problem(entry: Entry, digest: re.Pattern[str]) -> str | None:
    if not entry.spec.is_contiguous:
        return f"is stored with the stride {entry.spec.stride}; only aliases may have one"
    wanted = math.ceil(entry.length / CHUNK)
    if len(entry.chunks) != wanted:
        return f"has {len(entry.chunks)} chunk digests, {entry.length:,} bytes need {wanted}"
    if not all(map(digest.fullmatch, entry.chunks)):
        return "has a chunk digest that is no hex number of the right length"
    return None


def _whole_problem(entry: Entry, entries: Sequence[Entry], file: str) -> str | None:
    """What is wrong with an entry whose bytes lie in rectangles; None when they are the tensor, whole."""
    if entry.file or entry.name or entry.offset or entry.chunks or entry.alias_of is not None:
        return "lies in rectangles and has bytes of its own"
    if not entry.spec.is_contiguous or entry.live_stride is not None:
        return "lies in rectangles and has a stride"
    boxes = []
    for number, offsets in entry.rectangles:
        part = entries[number] if 0 <= number < len(entries) else None
        if part is None or part.rectangles or part.alias_of is not None or part.spec.dtype != entry.spec.dtype:
            return f"names the entry {number} as a part, which is none of {entry.spec.dtype} with bytes of its own"
        boxes.append(Box(offsets, part.spec.shape))
    check_cover(entry.spec.shape, boxes, dotted(entry.path), file)
    return None


def _alias_problem(entry: Entry, by_path: Mapping[Path, Entry]) -> str | None:
    name = printable(dotted(entry.alias_of or ()))
    target = by_path.get(owner_key(entry.alias_of or ()))
    if target is None or target.alias_of is not None:
        return f"is an alias of `{name}`, which stores no bytes here"
    if entry.file != target.file or entry.offset < target.offset:
        return f"is an alias of `{name}` but lies outside its bytes"
    if entry.offset + entry.length > target.offset + target.length:
        return f"is an alias of `{name}` but reaches past its bytes"
    return "is an alias and has digests of its own" if entry.chunks else None
