"""The reading plug-in for ``torch.distributed.checkpoint``."""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from holdfast.distributed.flattening import flat_items
from holdfast.errors import ArgumentError
from holdfast.formats.base import Container, StoredTensor
from holdfast.formats.rectangles import Assembled, Box, Rectangle, boxed
from holdfast.runs.opening import open_any
from holdfast.serialization.kinds import live_dtype
from holdfast.serialization.reading import fill, read_tree, verify_segments
from holdfast.spec import Path
from holdfast.state.values import Tree
from holdfast.storage.source import shown


class HoldfastReader(StorageReader):
    """Gives ``dcp.load`` what any file holds that holdfast opens: each rank reads the chunks that its parts lie in.

    That is a checkpoint of :class:`HoldfastWriter` or of a run, a single file, and a folder that torch's own writer
    made. All digests of what a rank reads are compared before the first tensor is written; nothing of the file is
    unpickled.

    Args:
        path: a path or a reference such as ``runs/a@best``; or None, and ``checkpoint_id=`` of the call names it.
        trusted: full names of classes that may be rebuilt.

    Raises:
        NotFound, FormatError: out of a load; DCP wraps it.

    Example:
        >>> import torch
        >>> import torch.distributed.checkpoint as dcp
        >>> from holdfast.distributed import HoldfastReader, HoldfastWriter
        >>> saved = dcp.save({"w": torch.ones(2)}, storage_writer=HoldfastWriter("read"), no_dist=True)
        >>> state = {"w": torch.zeros(2)}
        >>> dcp.load(state, storage_reader=HoldfastReader("read"), no_dist=True)
        >>> state["w"]
        tensor([1., 1.])
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, trusted: Collection[str] = ()) -> None:
        super().__init__()
        self._path = None if path is None else os.fspath(path)
        self._trusted = trusted
        self._container: Container | None = None
        self._values: dict[str, Tree] = {}
        self._parts: dict[tuple[str, tuple[int, ...]], StoredTensor] = {}

    @property
    def checkpoint_id(self) -> str | None:
        """The file or folder."""
        return self._path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new load begins, of ``checkpoint_id`` when one is given."""
        if checkpoint_id is not None:
            self._path = os.fspath(checkpoint_id)
        self._close()

    def _close(self) -> None:
        container, self._container = self._container, None
        self._values, self._parts = {}, {}
        if container is not None:
            container.close()

    def read_metadata(self) -> Metadata:  # torch takes kwargs for a sign that each rank has its own
        """The names, shapes and rectangles that are there; no tensor is read."""
        if self._path is None:
            raise ArgumentError("nothing to load: give HoldfastReader a path, or dcp.load a checkpoint_id=")
        self._close()
        self._container = open_any(self._path)
        entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        paths: dict[str, Path] = {}
        for path, item in flat_items(self._container.document().tree):
            name = ".".join(map(str, path))
            paths[name] = path
            if type(item) is StoredTensor:
                entries[name] = self._tensor(name, item)
            else:
                entries[name] = BytesStorageMetadata()
                self._values[name] = item
        return Metadata(entries, planner_data=paths)

    def _tensor(self, name: str, leaf: StoredTensor) -> TensorStorageMetadata:
        source = leaf.segment.source
        parts = source.parts() if isinstance(source, Assembled) else []
        if not parts:
            parts = [Rectangle((0,) * len(leaf.spec.shape), leaf.spec.shape, leaf)]
        chunks = []
        for part in parts:
            self._parts[name, part.offsets] = part.leaf
            chunks.append(ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)))
        properties = TensorProperties(dtype=live_dtype(leaf.spec), requires_grad=leaf.requires_grad)
        return TensorStorageMetadata(properties, torch.Size(leaf.spec.shape), chunks)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the metadata is what :meth:`read_metadata` gave."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Verifies, then reads, what the plan gives this rank."""
        try:
            tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
            stored = [self._stored(item) for item in tensors]
            verify_segments(leaf.segment for leaf in stored)
            targets = [planner.resolve_tensor(item).detach() for item in tensors]
            fill(list(zip(stored, targets, strict=True)))
            for item, target in zip(tensors, targets, strict=True):
                planner.commit_tensor(item, target)
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, self._value(item.storage_index.fqn))
        finally:
            self._close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _stored(self, item: ReadItem) -> StoredTensor:
        index = item.storage_index
        leaf = self._parts.get((index.fqn, tuple(index.offset or ())))
        if leaf is None:
            raise ArgumentError(f"`{shown(index.fqn)}`: has no part at {index.offset}", file=self._path, path=index.fqn)
        return boxed(leaf, Box(tuple(item.storage_offsets), tuple(item.lengths)))

    def _value(self, name: str) -> io.BytesIO:
        """A value as torch.save writes it, for the planner to unpickle: made here, of what was read as data."""
        value = read_tree(self._values[name], str(self._path), trusted=self._trusted)
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        return buffer

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path."""
        return "://" not in os.fspath(checkpoint_id)
