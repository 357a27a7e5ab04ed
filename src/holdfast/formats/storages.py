"""The storages that a pickle refers to: persistent ids, checked before they are believed.

A zip has ``("storage", class, key, location, elements)``; the stream before it has a sixth part, None or
``(key of the view, first element, elements)``, which torch wrote up to 0.3 for storages that were part of others.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.errors import CorruptFile
from holdfast.formats.base import Segment
from holdfast.formats.nodes import Global, Node, Persistent
from holdfast.spec import BY_STORAGE
from holdfast.state.paths import printable
from holdfast.storage.source import shown

StorageOf = Callable[[str, str, int], Segment]
"""(key, location, bytes) -> the segment; raises CorruptFile when the container has no such storage of that length."""

_UNTYPED = "UntypedStorage"
_MODULES = frozenset({"torch", "torch.cuda", "torch.storage"})


class Known(msgspec.Struct):
    """A storage of a pickle.

    Attributes:
        segment: its bytes.
        dtype: of its class; None when it is untyped.
        start: its first byte in the segment: 0, unless it is a view.
        length: its bytes.
        said: what the pickle said of it.
    """

    segment: Segment
    dtype: str | None
    start: int
    length: int
    said: tuple[str, str, int]


class Storages:
    """The storages of one pickle, each looked up once.

    Args:
        storage: where the container has them.
        file: named in errors.
    """

    def __init__(self, storage: StorageOf, file: str) -> None:
        self._storage = storage
        self._file = file
        self._found: dict[str, Known] = {}
        self._views: dict[tuple[str, str], Known] = {}

    def find(self, node: Node) -> Known:
        """The storage of a persistent id.

        Raises:
            CorruptFile: the id is damaged, contradicts another, or names a storage that the container lacks.
        """
        if type(node) is not Persistent or type(node.id) is not tuple or len(node.id) not in (5, 6):
            raise self._lie("a tensor without a storage")
        mark, cls, key, location, numel = node.id[:5]
        known = self._found.get(key) if type(key) is str else None
        if known is None or type(cls) is not Global or known.said != (cls.name, location, numel):
            known = self._checked(mark, cls, key, location, numel)
        return known if len(node.id) == 5 or node.id[5] is None else self._view(known, key, node.id[5])

    def _checked(self, mark: Node, cls: Node, key: Node, location: Node, numel: Node) -> Known:
        if mark != "storage" or type(cls) is not Global or type(key) is not str or type(location) is not str:
            raise self._lie("a storage whose id is damaged")
        row = BY_STORAGE.get(cls.name)
        if type(numel) is not int or numel < 0 or cls.module not in _MODULES or not (row or cls.name == _UNTYPED):
            raise self._lie(f"a storage of class {printable(cls.path)} with {numel!r:.100} elements")
        said, length = (cls.name, location, numel), numel * (row.itemsize if row else 1)
        before = self._found.get(key)
        if before is None:
            known = Known(self._storage(key, location, length), row.name if row else None, 0, length, said)
            self._found[key] = known
            return known
        # an untyped storage and a tensor of bytes over it are the same to torch
        bytewise = {said[0], before.said[0]} <= {_UNTYPED, "ByteStorage"}
        if not bytewise or said[1:] != before.said[1:]:
            raise self._lie(
                f"the storage {printable(key)} is said to be {before.said} and {said}: one of them is a lie"
            )
        return Known(before.segment, row.name if row else None, 0, length, said)

    def _view(self, root: Known, key: str, view: Node) -> Known:
        if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str:
            raise self._lie("a storage whose view is damaged")
        name, first, numel = view
        known = self._views.get((key, name))
        itemsize = BY_STORAGE[root.said[0]].itemsize if root.dtype else 1
        if type(first) is not int or type(numel) is not int or first < 0 or numel < 0:
            raise self._lie("a storage whose view is damaged")
        start, length = first * itemsize, numel * itemsize
        if start + length > root.length:
            raise self._lie(
                f"a view of {length:,} bytes at byte {start:,} of the storage {printable(key)}, which has "
                f"{root.length:,}"
            )
        if known is None:
            known = self._views[key, name] = Known(root.segment, root.dtype, start, length, root.said)
        elif (known.start, known.length) != (start, length):
            raise self._lie(f"two different views of the storage {printable(key)} with one name")
        return known

    def _lie(self, what: str) -> CorruptFile:
        return CorruptFile(f"`{shown(self._file)}`: the pickle has {printable(what)}: corrupt", file=self._file)


def class_named(node: Node) -> Global | None:
    """The name of a class, given plainly or, as the stream has it, as ``("module", class, file, source)``."""
    if type(node) is Persistent and type(node.id) is tuple and len(node.id) == 4 and node.id[0] == "module":
        node = node.id[1]
    return node if type(node) is Global else None
