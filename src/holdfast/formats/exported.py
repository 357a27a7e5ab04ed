"""The weights of ``torch.export`` archives (``.pt2``), which hold a program as JSON and its weights beside it.

Since torch 2.8 an archive of torch: ``data/weights/model_weights_config.json`` names the file of each weight and what
lies in it; ``data/constants`` likewise. Before, a plain zip of files of ``torch.save``: ``serialized_state_dict.pt``
and ``serialized_constants.pt``. Sample inputs are pickles for torch to run, and are left alone. Sources:
``torch/export/pt2_archive/_package.py`` and ``torch/_export/serde/schema.py`` of torch 2.13, ``torch/export`` of 2.1.

The tree has the weights under the names of the program's state_dict, then the constants under theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import CorruptFile, UnknownFormat
from holdfast.formats import torchzip
from holdfast.formats.archive import Archive
from holdfast.formats.base import Container, Document, Segment
from holdfast.formats.tensors import TensorPlacer
from holdfast.spec import BY_EXPORT
from holdfast.state.paths import printable
from holdfast.state.values import Tree, Typed
from holdfast.storage.source import MemorySource, SubSource, shown

if TYPE_CHECKING:
    from holdfast.formats.programs.audit import Audit

NAME = "torch-export"

_CONFIG_LIMIT = 1 << 30
_STRIDED = 7
_PARTS = ("weights", "constants")
_OBJECTS = ("custom_obj_", "opaque_obj_")
"""Constants that are no tensors: objects of classes in C++, and pickles of any others."""
_OLD_PARTS = ("serialized_state_dict.pt", "serialized_constants.pt")


class _Integer(msgspec.Struct):
    """A number of the schema; a symbol has another field and is refused."""

    as_int: int


class _Meta(msgspec.Struct):
    """What a tensor is."""

    dtype: int
    sizes: list[_Integer]
    strides: list[_Integer]
    storage_offset: _Integer
    layout: int


class _Entry(msgspec.Struct):
    """Where a tensor is: a file of its storage, or one of ``torch.save``."""

    path_name: str
    use_pickle: bool
    tensor_meta: _Meta | None = None


class _Config(msgspec.Struct):
    """Every tensor of a part, by name."""

    config: dict[str, _Entry]


class Exported(Container):
    """An opened ``.pt2``, of which the weights are read."""

    format = NAME

    def __init__(self, archive: Archive) -> None:
        self.file = archive.file
        self.archive = archive
        self._segments: dict[str, Segment] = {}
        self._placer = TensorPlacer(archive.file)

    def document(self) -> Document:
        if _OLD_PARTS[0] in self.archive.records:
            return Document(self._old_tree())
        kind = self.archive.read("archive_format", limit=64)
        if kind != b"pt2":
            raise UnknownFormat(
                f"`{shown(self.file)}`: is an archive of format {kind!r}; only pt2 is known", file=self.file
            )
        tree: dict[str, Tree] = {}
        for part in _PARTS:
            for name in self.archive.records:
                if name.startswith(f"data/{part}/") and name.endswith(f"_{part}_config.json"):
                    self._read_part(part, name, tree)
        return Document(tree)

    def segments(self) -> list[Segment]:
        return [self._segment(name) for name in self.archive.records]

    def audit(self) -> Audit:
        """What its program could do, were it loaded by torch and called; see ``formats.programs``."""
        from holdfast.formats.programs.audit import audit_program  # with its schema, only when it is asked for

        return audit_program(self.archive)

    def close(self) -> None:
        self.archive.source.close()

    def _read_part(self, part: str, name: str, tree: dict[str, Tree]) -> None:
        data = self.archive.read(name, limit=_CONFIG_LIMIT)
        try:
            config = msgspec.json.decode(data, type=_Config)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as reason:
            raise self._lie(f"{printable(name)} does not list tensors: {printable(str(reason))}") from None
        for key, entry in config.config.items():
            record = f"data/{part}/{entry.path_name}"
            if entry.path_name.startswith(_OBJECTS):
                continue
            if record not in self.archive.records:
                if not part.startswith("w"):
                    continue  # constants may be kept elsewhere
                raise self._lie(f"`{printable(key)}` should be in {printable(record)}, which is missing")
            tree[key] = self.pickled(record) if entry.use_pickle else self.tensor(key, record, entry.tensor_meta)

    def tensor(self, key: str, record: str, meta: Any) -> Tree:
        """A weight that is the bytes of its storage; ``meta`` says what it is."""
        row = BY_EXPORT.get(meta.dtype) if meta is not None else None
        if meta is None or row is None or meta.layout != _STRIDED:
            raise self._lie(f"`{printable(key)}` is described as a tensor of no known dtype and layout")
        if not all(type(one.as_int) is int for one in (*meta.sizes, *meta.strides, meta.storage_offset)):
            raise self._lie(f"`{printable(key)}` is described as a tensor of a size that is not known")
        sizes = tuple([size.as_int for size in meta.sizes])
        strides = tuple([stride.as_int for stride in meta.strides])
        offset = meta.storage_offset.as_int * row.itemsize
        return self._placer.place(self._segment(record), (row.name, sizes, strides), offset, False)

    def _segment(self, name: str) -> Segment:
        segment = self._segments.get(name)
        if segment is None:
            record = self.archive.records[name]
            source, start = self.archive.place(name)
            swapped = "byteorder" in self.archive.records and torchzip.byte_order(self.archive)
            segment = Segment(source, start, record.size, name, crc32=record.crc or None, swapped=swapped)
            self._segments[name] = segment
        return segment

    def pickled(self, name: str) -> Tree:
        """A record that is a file of ``torch.save`` itself."""
        record = self.archive.records[name]
        source: Any
        if record.method:
            source = MemorySource(self.archive.read(name, limit=_CONFIG_LIMIT), name=self.file)
        else:
            source = SubSource(self.archive.source, record.start, record.size)
        return torchzip.open(source, self.file).document().tree

    def _old_tree(self) -> dict[str, Tree]:
        tree: dict[str, Tree] = {}
        for name in _OLD_PARTS:
            if name not in self.archive.records or not self.archive.records[name].size:
                continue
            part = self.pickled(name)
            items: Any = part.payload if type(part) is Typed else part
            items = items.get("items", items) if type(items) is dict else dict(items)
            for key, value in items.items():
                tree.setdefault(key, value)
        return tree

    def _lie(self, what: str) -> CorruptFile:
        return CorruptFile(f"`{shown(self.file)}`: {what}: corrupt", file=self.file)
