"""Several files that are one container: ``model.safetensors.index.json`` and the shards that it names.

The index is JSON: ``{"metadata": {"total_size": ...}, "weight_map": {TENSOR: FILE}}``, as the Hugging Face libraries
write it (https://huggingface.co/docs/transformers/big_models). It may come from anywhere, so the files that it names
are opened inside its own folder only.

One that we write begins with a record under the metadata key ``holdfast``: the tree that the tensors stand in, as in a
single safetensors file, and a digest of the whole index, written as zeros for its own computation.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from holdfast.errors import CorruptFile, NotFound, RefusedFile, UnknownFormat
from holdfast.formats.base import INDEX_SUFFIX, Container, Document, Segment, StoredTensor
from holdfast.formats.safetensors import NO_DIGEST, VERSION, SafetensorsContainer, recorded
from holdfast.state.encoding import dumps
from holdfast.state.paths import printable
from holdfast.state.values import Tree, Typed
from holdfast.storage.digest import digest_bytes
from holdfast.storage.source import ByteSource, FileSource

INDEX_LIMIT = 100_000_000
"""Bytes that an index may have: as many as a safetensors header."""

OpenContainer = Callable[[ByteSource, str], Container]

_USUAL = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


RECORD = "holdfast"
"""The metadata key of our record."""
TOTAL = "total_size"
"""The metadata key of the bytes of all tensors: the index's own count."""
_START = f'{{"metadata":{{"{RECORD}":{{"version":{VERSION},"digest":"'.encode()
_DIGEST = slice(len(_START), len(_START) + len(NO_DIGEST))


class _Record(msgspec.Struct):
    version: int
    digest: str
    tree: Any
    objects: Any


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None
    record: _Record | None = None


def encode_index(tree: Any, objects: Any, metadata: Mapping[str, Any], weight_map: Mapping[str, str]) -> bytes:
    """The bytes of an index of ours.

    Args:
        tree: as :func:`holdfast.state.encoding.to_json` gives it; its tensors are references, as in a single file.
        objects: the same of what was recorded of each object.
        metadata: all other keys.
        weight_map: the file of each entry.
    """
    record = _Record(VERSION, NO_DIGEST, tree, objects)
    data = dumps({"metadata": {RECORD: record, **metadata}, "weight_map": weight_map})
    return data[: _DIGEST.start] + digest_bytes(data).encode() + data[_DIGEST.stop :]


def find(folder: str) -> str:
    """The file that stands for a folder of weights: its index, or its only container.

    Args:
        folder: a path.

    Returns:
        The path of an index (ends with ``.index.json``) or of a single container.

    Raises:
        UnknownFormat: the folder has none, or several and no index.
    """
    names = sorted(os.listdir(folder))
    for name in _USUAL:
        if name in names:
            return os.path.join(folder, name)
    for suffix in (f".safetensors{INDEX_SUFFIX}", ".safetensors"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) == 1:
            return os.path.join(folder, found[0])
        if found:
            listed = ", ".join(printable(name) for name in found[:5])
            raise UnknownFormat(
                f"`{printable(folder)}`: a folder with {len(found)} *{suffix} files ({listed}) and nothing that says "
                "which belong together; name one of them",
                file=folder,
            )
    raise UnknownFormat(
        f"`{printable(folder)}`: a folder without weights: no {', no '.join(_USUAL)}; name the file", file=folder
    )


def open_index(path: str, open_shard: OpenContainer) -> ShardedContainer:
    """Opens an index and all its shards; reads their headers.

    Args:
        path: the index file.
        open_shard: opens one shard (source, name), whatever its format.

    Raises:
        NotFound: a shard is missing.
        RefusedFile: a shard's name leads out of the folder.
        CorruptFile: the index is damaged, or lists a tensor that its shard has not.
    """
    index = _read_index(path)
    tensors: dict[str, list[str]] = {}
    for tensor, shard in index.weight_map.items():
        tensors.setdefault(shard, []).append(tensor)
    with contextlib.ExitStack() as opened:
        shards: dict[str, Container] = {}
        for shard, listed in tensors.items():
            shards[shard] = opened.enter_context(_open_shard(path, shard, len(listed), open_shard))
        container = ShardedContainer(path, index, shards)
        opened.pop_all()
        return container


class ShardedContainer(Container):
    """An index with its shards open: one flat dict of tensors."""

    format = "sharded"

    def __init__(self, path: str, index: _Index, shards: dict[str, Container]) -> None:
        self.file = path
        self._shards = shards
        self._record = index.record
        own = () if index.record is None else (RECORD, TOTAL)
        self._metadata = {
            key: value if isinstance(value, str) else msgspec.json.encode(value).decode()
            for key, value in (index.metadata or {}).items()
            if key not in own
        }
        held = {shard: _by_name(container) for shard, container in shards.items()}
        self._tree = {}
        for name, shard in index.weight_map.items():
            if name not in held[shard]:
                raise CorruptFile(
                    f"`{printable(path)}`: lists `{printable(name[:200])}` in `{printable(shard)}`, which has no such "
                    "tensor: index and shard come from different saves",
                    file=path,
                    path=name,
                )
            self._tree[name] = held[shard][name]

    def document(self) -> Document:
        """The tree: from our record when there is one, else a dict of what the index lists, by name, in its order."""
        if self._record is None:
            return Document(dict(self._tree), metadata=self._metadata)
        tensors = {name: leaf for name, leaf in self._tree.items() if type(leaf) is StoredTensor}
        return recorded(self._record.tree, self._record.objects, tensors, self._metadata, self.file)

    def segments(self) -> list[Segment]:
        """The bytes of all shards."""
        return [segment for shard in self._shards.values() for segment in shard.segments()]

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _by_name(container: Container) -> dict[str, Tree]:
    if isinstance(container, SafetensorsContainer):
        return dict(container.tensors())
    tree = container.document().tree
    if type(tree) is Typed and tree.kind == "state_dict":
        tree = tree.payload["items"]
    return tree if type(tree) is dict else {}


def _read_index(path: str) -> _Index:
    with contextlib.closing(FileSource(path)) as source:
        if source.size > INDEX_LIMIT:
            raise RefusedFile(
                f"`{printable(path)}`: an index of {source.size:,} bytes, the limit is {INDEX_LIMIT:,}", file=path
            )
        data = source.read(0, source.size)
    try:
        index = msgspec.json.decode(data, type=_Index)
        given = (index.metadata or {}).get(RECORD)
        index.record = None if given is None else msgspec.convert(given, _Record)
    except (msgspec.DecodeError, RecursionError, ValueError) as reason:
        raise CorruptFile(f"`{printable(path)}`: is no index of shards: {str(reason)[:200]}", file=path) from None
    if index.record is not None:
        _check_record(data, index.record, path)
    return index


def _check_record(data: bytes, record: _Record, path: str) -> None:
    if record.version != VERSION:
        raise UnknownFormat(
            f"`{printable(path)}`: its record has version {record.version}, this holdfast reads version {VERSION}; a "
            "newer holdfast wrote it",
            file=path,
        )
    found = digest_bytes(data[: _DIGEST.start] + NO_DIGEST.encode() + data[_DIGEST.stop :])
    if not data.startswith(_START) or record.digest != found:
        raise CorruptFile(
            f"`{printable(path)}`: the index has digest {found}, the record in it says "
            f"{printable(record.digest[:80])}: damaged, or rewritten by a program that copied the metadata key "
            f"`{RECORD}`, which must then be left out",
            file=path,
        )


def _open_shard(path: str, shard: str, count: int, open_shard: OpenContainer) -> Container:
    source = open_beside(path, shard, count)
    try:
        return open_shard(source, source.name)
    except BaseException:
        source.close()
        raise


def open_beside(path: str, shard: str, count: int) -> FileSource:
    """Opens a file that another one, ``path``, names as lying in its own folder.

    Args:
        path: the file that names it; it may come from anywhere.
        shard: the name.
        count: the tensors in it, for messages.

    Raises:
        NotFound: it is not there.
        RefusedFile: the name leads out of the folder.
    """
    folder = os.path.dirname(path)
    name = os.path.join(folder, shard)
    _refuse_outside(path, folder, shard)
    try:
        return FileSource(os.path.realpath(name), name=name)
    except NotFound:
        raise NotFound(
            f"`{printable(path)}`: {count:,} of its tensors are in `{printable(shard[:200])}`, which is not "
            "there; fetch the missing shard",
            file=path,
        ) from None


def _refuse_outside(path: str, folder: str, shard: str) -> None:
    """Raises RefusedFile unless ``shard`` names a file inside the folder, links followed.

    One link may lead out: the Hugging Face hub's cache keeps ``snapshots/REVISION/FILE`` as a link to ``blobs/DIGEST``
    of the same repository.
    """
    parts = shard.split("/")
    from pathlib import PurePosixPath

    plain = PurePosixPath(shard).parts == tuple(parts) and ".." not in parts and not shard.startswith("/")
    if not plain or "\\" in shard or "\0" in shard or ":" in shard:
        raise RefusedFile(
            f"`{printable(path)}`: names the shard `{printable(shard[:200])}`; shards must be plain names inside its "
            "folder",
            file=path,
        )
    root = os.path.realpath(folder or ".")
    target = os.path.realpath(os.path.join(folder, shard))
    allowed = [root]
    if os.path.basename(os.path.dirname(root)) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
    if not any(os.path.commonpath([target, inside]) == inside for inside in allowed):
        raise RefusedFile(
            f"`{printable(path)}`: its shard `{printable(shard[:200])}` is a link to `{printable(target)}`, outside of "
            "its folder; put the file itself there",
            file=path,
        )


def users_metadata(container: Container, document: Document) -> dict[str, str]:
    """The user's own strings, without an index's own count, which is true of its shards alone."""
    own = {TOTAL} if isinstance(container, ShardedContainer) else set()
    return {key: text for key, text in document.metadata.items() if key not in own}
