"""The ``.metadata`` of a distributed checkpoint: from an inert pickle to checked values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from holdfast.errors import CorruptFile, RefusedFile
from holdfast.formats.base import Segment
from holdfast.formats.rebuild import build_tree
from holdfast.spec import Path
from holdfast.state.values import MAX_DEPTH, Opaque, Tree, Typed
from holdfast.storage.source import shown

_HOLES = 1000
"""Elements of lists that may be missing: torch leaves out empty dicts and lists, and fills their places with None."""

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a rectangle."""


class TensorEntry(msgspec.Struct):
    """What a tensor is."""

    dtype: str
    shape: tuple[int, ...]
    requires_grad: bool
    chunks: list[Box]


class Place(msgspec.Struct):
    """Where an item is: a file of the folder, the first byte and the bytes there.

    ``transforms`` names what the bytes went through, when they are not stored as they are.
    """

    file: str
    offset: int
    length: int
    transforms: str = ""


class Index(msgspec.Struct):
    """The metadata.

    Attributes:
        entries: by name; None for a value that is no tensor.
        paths: where in the tree each name belongs.
        places: by name and, for a part of a tensor, its offsets.
    """

    entries: dict[str, TensorEntry | None]
    paths: dict[str, Path]
    places: dict[tuple[str, tuple[int, ...] | None], Place]


def read_index(data: bytes, file: str) -> Index:
    """Takes the metadata apart; nothing that it names is imported or called.

    Args:
        data: the bytes of ``.metadata``.
        file: named in errors.

    Raises:
        CorruptFile: it is no such metadata, or contradicts itself.
        RefusedFile: a limit is passed.
    """
    return _Reader(file).read(data)


class _Reader:
    def __init__(self, file: str) -> None:
        self._file = file

    def read(self, data: bytes) -> Index:
        tree = build_tree(data, self._no_storage, self._file)
        fields = self._fields(tree, "Metadata")
        entries = self._dict(fields.get("state_dict_metadata"), "state_dict_metadata")
        index = Index({name: self._entry(name, entry) for name, entry in entries.items()}, {}, {})
        for key, path in self._dict(fields.get("planner_data") or {}, "planner_data").items():
            index.paths[key] = self._path(key, path)
        places = fields.get("storage_data")
        pairs = places.payload if type(places) is Typed and places.kind == "dict" else []
        if not pairs and entries:
            self._lie("storage_data does not say where anything is")
        for place_key, place in pairs:
            where = self._fields(place_key, "MetadataIndex")
            name, offset = where.get("fqn"), where.get("offset")
            offsets = None if offset is None else self._sizes(offset, "an offset")
            if type(name) is not str or (name, offsets) in index.places:
                self._lie(f"storage_data names {name!r:.200} at {offsets} twice, or without a name")
            index.places[name, offsets] = self._place(name, place)
        return index

    def _entry(self, name: str, tree: Tree) -> TensorEntry | None:
        if type(tree) is Opaque and tree.type_name.endswith(".BytesStorageMetadata"):
            return None
        fields = self._fields(tree, "TensorStorageMetadata")
        properties = fields.get("properties")
        state = properties.state if type(properties) is Opaque else None
        parts = state.payload if type(state) is Typed and state.kind == "tuple" else []
        if (
            len(parts) < 3
            or type(parts[0]) is not Typed
            or parts[0].kind != "torch.dtype"
            or type(parts[2]) is not bool
        ):
            self._lie(f"the properties of {name!r:.200} are no dtype, layout and requires_grad")
        chunks = fields.get("chunks")
        if type(chunks) is not list:
            self._lie(f"the chunks of {name!r:.200} are no list")
        boxes = []
        for chunk in chunks:
            box = self._fields(chunk, "ChunkStorageMetadata")
            boxes.append((self._sizes(box.get("offsets"), "offsets"), self._sizes(box.get("sizes"), "sizes")))
        return TensorEntry(parts[0].payload, self._sizes(fields.get("size"), "a size"), parts[2], boxes)

    def _place(self, name: str, tree: Tree) -> Place:
        fields = self._fields(tree, "_StorageInfo")
        file, offset, length = fields.get("relative_path"), fields.get("offset"), fields.get("length")
        if type(file) is not str or type(offset) is not int or type(length) is not int or min(offset, length) < 0:
            self._lie(
                f"the place of {name!r:.200} is none: file {file!r:.100}, offset {offset!r:.30}, length {length!r:.30}"
            )
        transforms = fields.get("transform_descriptors")
        return Place(file, offset, length, f"{transforms!r:.100}" if transforms else "")

    def _path(self, name: str, tree: Tree) -> Path:
        keys = tree.payload if type(tree) is Typed and tree.kind == "tuple" else []
        if not keys or not all(type(key) is str or (type(key) is int and key >= 0) for key in keys):
            self._lie(f"the path of {name!r:.200} is no tuple of names and indices")
        if len(keys) > MAX_DEPTH:
            raise RefusedFile(f"`{shown(self._file)}`: nested deeper than {MAX_DEPTH} levels", file=self._file)
        return tuple(keys)

    def _sizes(self, tree: Tree, what: str) -> tuple[int, ...]:
        numbers = tree.payload if type(tree) is Typed and tree.kind in ("torch.Size", "tuple") else None
        if type(numbers) is not list or not all(type(number) is int and number >= 0 for number in numbers):
            self._lie(f"{what} is {numbers!r:.100}, no tuple of integers of at least 0")
        return tuple(numbers)

    def _fields(self, tree: Tree, name: str) -> dict[str, Any]:
        """The attributes of an object of torch's class of this name."""
        fits = type(tree) is Opaque and tree.type_name.startswith("torch.") and tree.type_name.endswith(f".{name}")
        if not fits or type(tree.state) is not dict:
            found = tree.type_name if type(tree) is Opaque else type(tree).__name__
            self._lie(f"{found!r:.200} stands where {name} is meant")
        return dict(tree.state)

    def _dict(self, tree: Tree, name: str) -> dict[str, Tree]:
        if type(tree) is not dict:
            self._lie(f"{name} is no dict of names")
        return dict(tree)

    def _no_storage(self, key: str, location: str, length: int) -> Segment:
        self._lie("it holds tensors, which belong into the other files")

    def _lie(self, what: str) -> NoReturn:
        raise CorruptFile(f"`{shown(self._file)}`: {what}: corrupt", file=self._file)


def nested(flat: Mapping[str, Tree], paths: Mapping[str, Path], file: str) -> dict[str, Tree]:
    """The tree that was saved: each value at its path, or under its own name where no path is known.

    Raises:
        CorruptFile: two paths contradict each other, or a list lacks more elements than torch leaves out.
    """
    root: dict[Any, Any] = {}
    branches: list[dict[Any, Any]] = [root]
    known = {id(root)}
    for name, value in flat.items():
        path = paths.get(name, (name,))
        at = root
        for key in path[:-1]:
            below = at.get(key)
            if below is None:
                below = at[key] = {}
                branches.append(below)
                known.add(id(below))
            if id(below) not in known:
                raise _twisted(file, name)
            at = below
        if path[-1] in at:
            raise _twisted(file, name)
        at[path[-1]] = value
    for branch in reversed(branches):  # lists inside lists: the inner ones first
        for key, value in branch.items():
            if id(value) in known and any(type(index) is int for index in value):
                branch[key] = _list(value, len(flat), file)
    if not all(type(key) is str for key in root):
        raise _twisted(file, str(next(key for key in root if type(key) is not str)))
    return root


def _list(items: dict[Any, Tree], count: int, file: str) -> list[Tree]:
    if not all(type(index) is int for index in items) or max(items) > count + _HOLES:
        raise CorruptFile(f"`{shown(file)}`: a list with the indices {str(list(items))[:100]}: corrupt", file=file)
    return [items.get(index) for index in range(max(items) + 1)]


def _twisted(file: str, name: str) -> CorruptFile:
    return CorruptFile(f"`{shown(file)}`: the path of `{shown(name)}` contradicts another: corrupt", file=file)
