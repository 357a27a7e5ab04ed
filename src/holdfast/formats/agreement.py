"""Whether the two trees of one file say the same: the pickle that torch reads, and the record that only we read.

Both have true digests when somebody forged them, so neither shows alone. The record's tree is emitted again as the
pickle that it calls for, and that one is taken apart as the file's own is: what torch would get of both must be equal.
"""

from __future__ import annotations

from typing import Any

from holdfast.errors import UnsupportedValue
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.emit import emit
from holdfast.formats.rebuild import build_tree
from holdfast.formats.storages import StorageOf
from holdfast.spec import Path
from holdfast.state.encoding import dumps, to_json
from holdfast.state.paths import dotted
from holdfast.state.values import Tree


def disagreement(tree: Tree, pickle: bytes, storage: StorageOf, file: str) -> str | None:
    """The dotted path of the first thing that a pickle has and a tree does not call for, or None.

    Args:
        tree: of the record; its segments are those that ``storage`` gives.
        pickle: of the same file.
        storage: where the storages of the pickle are.
        file: named in errors.

    Raises:
        CorruptFile, RefusedFile: the pickle can't be read.
    """
    named: dict[int, str] = {}

    def theirs(key: str, location: str, length: int) -> Segment:
        segment = storage(key, location, length)
        named[id(segment)] = location
        return segment

    found = _comparable(build_tree(pickle, theirs, file), named)
    try:
        emitted = emit(tree)
    except UnsupportedValue as reason:
        return reason.path or ""
    called: dict[int, str] = {}

    def ours(key: str, location: str, _: int) -> Segment:
        segment = emitted.segments[int(key)]
        called[id(segment)] = location
        return segment

    wanted = _comparable(build_tree(emitted.data, ours, file), called)
    return None if dumps(wanted) == dumps(found) else dotted(_where(wanted, found))


def _comparable(tree: Tree, locations: dict[int, str]) -> Any:
    """A tree as JSON, in which a tensor is its numbers and the place of its bytes."""

    def refer(leaf: StoredTensor) -> Any:
        spec, segment = leaf.spec, leaf.segment
        place = str(id(segment)) if id(segment) in locations else segment.source.read(0, segment.length).hex()
        numbers = [spec.dtype, spec.shape, spec.stride, leaf.offset, leaf.requires_grad]
        return [place, locations.get(id(segment)), *numbers]

    return to_json(tree, refer)


def _where(wanted: Any, found: Any) -> Path:
    """The path of the first difference."""
    path: list[Any] = []
    while type(wanted) is type(found):
        if type(wanted) is dict and list(wanted) == list(found):
            pairs = [(key, wanted[key], found[key]) for key in wanted]
        elif type(wanted) is list and len(wanted) == len(found):
            pairs = list(zip(range(len(wanted)), wanted, found, strict=True))
        else:
            break
        differing = next((pair for pair in pairs if dumps(pair[1]) != dumps(pair[2])), None)
        if differing is None or str(differing[0]) == "$tensor":
            break
        key, wanted, found = differing
        if not str(key).startswith("$"):
            path.append(key)
    return tuple(path)
