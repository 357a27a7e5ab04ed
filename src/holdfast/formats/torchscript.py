"""The weights of a TorchScript archive: a program with its parameters, of which only the parameters are read.

``data.pkl`` holds the module as nested objects of classes that stand in ``code/``; the text of a class says which of
its attributes are parameters and buffers. The pickle is taken apart as any other, and the text is searched for these
lists; nothing is compiled or run. Sources: ``torch/csrc/jit/serialization`` of torch 2.13 and archives of 1.4 to 2.13.

The tree is the module's state_dict, in its order. After it come tensors that no state_dict has: packed parameters of
quantized modules and plain attributes under their dotted paths, and the constants of the code as ``CONSTANTS.c0``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from holdfast.errors import CorruptFile
from holdfast.formats.archive import Archive
from holdfast.formats.base import Container, Document, Segment, StoredTensor
from holdfast.formats.rebuild import build_tree
from holdfast.formats.torchzip import PICKLE_LIMIT, byte_order
from holdfast.state.paths import printable
from holdfast.state.values import Opaque, Tree, Typed
from holdfast.storage.source import shown

NAME = "torchscript"

_CODE_LIMIT = 64 << 20
_TENSOR_KINDS = frozenset({"quantized", "sparse", "meta", "conj", "neg", "parameter", "tensor"})
_WRAPPERS = frozenset({"torch.jit._pickle.restore_type_tag", "torch.jit._pickle.build_tensorlist"})
"""Calls around a value that only say what type it has."""
_CLASS = re.compile(r"^class (\w+)\((\w+)\):$")
_LIST = re.compile(r"^  __(parameters|buffers)__ = \[(.*)\]$")
_ATTRIBUTE = re.compile(r"""^  (?:(\w+) : |__annotations__\["([^"]*)"\] = )Tensor$""")
_QUOTED = re.compile(r'"([^"]*)"')


class _Class(msgspec.Struct):
    """What the text of a class says.

    Attributes:
        parameters: names of its parameters.
        buffers: of its buffers; None where torch did not write them yet (before 1.6).
        tensors: of all attributes that are always tensors.
    """

    parameters: list[str] = []
    buffers: list[str] | None = None
    tensors: list[str] = []


class TorchScript(Container):
    """An opened TorchScript archive, of which the weights are read."""

    format = NAME

    def __init__(self, archive: Archive) -> None:
        self.file = archive.file
        self.archive = archive
        self._swapped = byte_order(archive)
        self._segments: dict[str, Segment] = {}
        self._classes: dict[str, dict[str, _Class]] = {}

    def document(self) -> Document:
        module = self._unpickled("data")
        if type(module) is not Opaque:
            raise self._lie("data.pkl holds no module")
        # a module with __getstate__ of its own keeps no attributes but what that returned
        tree: dict[str, Tree] = dict(self._states(module, "")) if type(module.state) is dict else {}
        for name, leaf in self._tensors(module, ""):
            tree.setdefault(name, leaf)
        constants = self._unpickled("constants") if "constants.pkl" in self.archive.records else None
        for name, leaf in self._tensors(constants, "CONSTANTS.c"):
            tree.setdefault(name.replace("CONSTANTS.c.", "CONSTANTS.c", 1), leaf)
        return Document(tree)

    def segments(self) -> list[Segment]:
        return [self._segment(name) for name in self.archive.records]

    def close(self) -> None:
        self.archive.source.close()

    def _unpickled(self, part: str) -> Tree:
        data = self.archive.read(f"{part}.pkl", limit=PICKLE_LIMIT)

        def storage(key: str, location: str, length: int) -> Segment:
            name = f"{part}/{key}"
            record = self.archive.records.get(name)
            if record is None or record.size != length:
                has = "the archive has no such record" if record is None else f"the record has {record.size:,}"
                raise self._lie(f"{part}.pkl says that {printable(name)} has {length:,} bytes, {has}")
            segment = self._segment(name)
            segment.location = location
            return segment

        return build_tree(data, storage, self.file)

    def _segment(self, name: str) -> Segment:
        segment = self._segments.get(name)
        if segment is None:
            record = self.archive.records[name]
            source, start = self.archive.place(name)
            segment = Segment(source, start, record.size, name, crc32=record.crc or None, swapped=self._swapped)
            self._segments[name] = segment
        return segment

    # -- the module

    def _states(self, module: Opaque, prefix: str) -> Iterator[tuple[str, Tree]]:
        """What its state_dict holds: parameters, buffers, and those of its submodules."""
        attributes = module.state
        known = self._class(module.type_name)
        if known is None:  # no code: every tensor counts
            names = list(attributes)
        else:
            buffers = known.buffers if known.buffers is not None else known.tensors
            names = [name for name in attributes if name in known.parameters]
            names += [name for name in attributes if name in buffers and name not in known.parameters]
        for name in names:
            if _is_tensor(attributes[name]):
                yield prefix + name, _detached(attributes[name])
        for name, value in attributes.items():
            if type(value) is Opaque and type(value.state) is dict and value.type_name not in _WRAPPERS:
                yield from self._states(value, f"{prefix}{name}.")

    def _tensors(self, tree: Tree, path: str) -> Iterator[tuple[str, Tree]]:
        """Every tensor anywhere in a tree, with its dotted path."""
        if _is_tensor(tree):
            yield path, _detached(tree)
            return
        inside: Tree = tree
        if type(tree) is Opaque:
            inside = tree.args[0] if tree.type_name in _WRAPPERS and tree.args else tree.state
            if tree.type_name in _WRAPPERS or type(inside) is not dict:
                yield from self._tensors(inside, path)
                return
        elif type(tree) is Typed:
            inside = tree.payload
        items = inside.items() if type(inside) is dict else enumerate(inside) if type(inside) is list else ()
        for key, value in items:
            yield from self._tensors(value, f"{path}.{key}" if path else str(key))

    def _class(self, name: str) -> _Class | None:
        """The text of a class: ``__torch__.torch.nn.Linear`` stands in ``code/__torch__/torch/nn.py``."""
        module, _, cls = name.rpartition(".")
        record = f"code/{module.replace('.', '/')}.py"
        if record not in self._classes:
            here = record in self.archive.records
            text = self.archive.read(record, limit=_CODE_LIMIT).decode("utf-8", "replace") if here else ""
            self._classes[record] = _classes(text)
        return self._classes[record].get(cls)

    def _lie(self, what: str) -> CorruptFile:
        return CorruptFile(f"`{shown(self.file)}`: {what}: corrupt", file=self.file)


def _classes(text: str) -> dict[str, _Class]:
    """The modules of a file of TorchScript code, by name."""
    found: dict[str, _Class] = {}
    current: _Class | None = None
    for line in text.splitlines():
        if line[:1] not in (" ", ""):
            match = _CLASS.match(line)
            current = found.setdefault(match[1], _Class([], None, [])) if match else None
        if current is None or line[2:3] in (" ", ""):
            continue
        names = _LIST.match(line)
        if names is not None:
            quoted = _QUOTED.findall(names[2])
            if names[1] == "parameters":
                current.parameters = quoted
            else:
                current.buffers = quoted
        attribute = _ATTRIBUTE.match(line)
        if attribute is not None:
            current.tensors.append(attribute[1] or attribute[2])
    return found


def _is_tensor(tree: Tree) -> bool:
    return type(tree) is StoredTensor or (type(tree) is Typed and tree.kind in _TENSOR_KINDS)


def _detached(tree: Tree) -> Tree:
    """A tensor as a state_dict has it: no parameter, and without requires_grad."""
    if type(tree) is Typed and tree.kind == "parameter":
        tree = tree.payload["data"]
    if type(tree) is StoredTensor and tree.requires_grad:
        return StoredTensor(tree.spec, tree.segment, tree.offset)
    return tree
