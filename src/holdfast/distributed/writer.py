"""The writing plug-in for ``torch.distributed.checkpoint``."""

from __future__ import annotations

import datetime
import os
import secrets
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from holdfast.distributed.facts import group_environment
from holdfast.distributed.items import Item, tensor_part, value_parts
from holdfast.distributed.rank_file import Part, write_rank_file
from holdfast.errors import ArgumentError, StorageError
from holdfast.formats.base import Document
from holdfast.formats.dcp_metadata import nested
from holdfast.runs.layout import MANIFEST, parse_step
from holdfast.runs.manifest import Manifest
from holdfast.runs.sharded import RankPart, Wanted, write_sharded
from holdfast.serialization.lowering import DTYPE_NAMES
from holdfast.spec import TensorSpec
from holdfast.state.values import Tree
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.places import is_url
from holdfast.storage.source import shown
from holdfast.storage.staged import partial_of


class HoldfastWriter(StorageWriter):
    """Stores what ``dcp.save`` and ``dcp.async_save`` save as a checkpoint of holdfast: one folder, digests, no pickle.

    Each rank writes and flushes a container of its own; the coordinator writes entries, state and manifest behind them
    and gives the folder its name. A checkpoint of that name is exchanged for the new one in one step, and not touched
    before. ``holdfast.load``, ``restore``, ``verify`` and ``convert`` read it in one process.

    Args:
        path: the folder; or None, and ``checkpoint_id=`` of the call names it.
        metadata: the user's own strings.
        durable: whether everything is flushed to the disk before a save is done.

    Raises:
        StorageError: out of a save: a disk failed or is not shared, or the name is taken by something else.
        UnsupportedValue: out of a save: an item that only code could bring back.

    Example:
        >>> import torch
        >>> import torch.distributed.checkpoint as dcp
        >>> from holdfast.distributed import HoldfastWriter
        >>> saved = dcp.save({"w": torch.ones(2)}, storage_writer=HoldfastWriter("ckpt"), no_dist=True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        durable: bool = True,
    ) -> None:
        super().__init__()
        self._path = None if path is None else os.fspath(path)
        self._metadata = dict(metadata or {})
        self._durable = durable
        self._rank = 0
        self._save_id = ""
        self._folder: StagedFolder | None = None

    @property
    def checkpoint_id(self) -> str | None:
        """The folder."""
        return self._path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new save begins, into ``checkpoint_id`` when one is given."""
        if checkpoint_id is not None:
            self._path = os.fspath(checkpoint_id)
        self._save_id = secrets.token_hex(8)
        self._abandon()

    def _abandon(self) -> None:
        """Removes what a save left that some rank failed: DCP does not tell who coordinates of it."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.abandon()

    @property
    def _target(self) -> str:
        if self._path is None:
            raise ArgumentError("no folder to save into: give HoldfastWriter a path, or dcp.save a checkpoint_id=")
        return self._path

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Takes the rank; refuses a store, and a save in which no rank knows what the others wrote."""
        target = self._target
        if is_url(target):
            raise ArgumentError(
                f"`{shown(target)}`: HoldfastWriter writes into a folder of a disk that ranks share, and exchanges "
                "what is there in a single step; give it a path. A Run keeps its steps in a store",
                file=target,
            )
        if not kwargs.get("use_collectives", True):
            raise ArgumentError(
                f"`{shown(target)}`: with use_collectives=False no rank knows when all have written, and nothing "
                "can be committed as a whole; leave it out"
            )
        self._rank = kwargs.get("rank", 0)

    def storage_meta(self) -> StorageMeta | None:
        """What the planner is told."""
        return StorageMeta(checkpoint_id=self._path, save_id=self._save_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Begins the folder, on the coordinator, before any rank writes."""
        target = self._target
        parent, name = os.path.split(os.path.abspath(target))
        if os.path.isdir(target) and os.listdir(target) and MANIFEST not in os.listdir(target):
            raise StorageError(
                f"`{shown(target)}`: is a folder with other things in it and no checkpoint of holdfast; it is not "
                "replaced. Name another",
                file=target,
            )
        self._folder = StagedFolder(parent, name, durable=self._durable, replace=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes and flushes what the plan gives this rank."""
        parts: list[Part] = []
        results = [self._take(item, planner, parts) for item in plan.items]
        written = write_rank_file(partial_of(self._target), self._rank, parts, durable=self._durable)
        size = 0 if written.record is None else written.record.size
        future: Future[list[WriteResult]] = Future()
        future.set_result([*results, WriteResult(MetadataIndex(""), size, written)])
        return future

    def _take(self, item: WriteItem, planner: SavePlanner, parts: list[Part]) -> WriteResult:
        name, data = item.index.fqn, planner.resolve_data(item)
        if item.type == WriteItemType.BYTE_IO:
            if isinstance(data, torch.Tensor):
                raise ArgumentError(f"`{shown(name)}`: the planner says bytes and gives a tensor", path=name)
            value, inner = value_parts(name, data)
            parts += inner
            return WriteResult(item.index, 0, Item(name, value))
        if not isinstance(data, torch.Tensor) or item.tensor_data is None:
            raise ArgumentError(f"`{shown(name)}`: the planner says a tensor and gives none", path=name)
        part = tensor_part(name, data, tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.size))
        parts += [] if part is None else [part]
        return WriteResult(item.index, data.nbytes, Item(name, dtype=DTYPE_NAMES[data.dtype]))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commits, on the coordinator: every rank's container is on the disk."""
        folder = self._folder
        if folder is None:
            raise ArgumentError(f"`{shown(self._target)}`: finish() without prepare_global_plan()")
        given = [one.storage_data for of_rank in results for one in of_rank]
        items = {one.name: one for one in given if isinstance(one, Item)}
        ranks = [one for one in given if isinstance(one, RankPart)]
        step = parse_step(os.path.basename(os.path.abspath(self._target)))
        manifest = Manifest(
            run=self._save_id or secrets.token_hex(8),
            step=step or 0,
            time=datetime.datetime.now(datetime.UTC),
            environment=group_environment(len(results)),
        )
        try:
            flat = {name: _leaf(name, entry, items.get(name)) for name, entry in metadata.state_dict_metadata.items()}
            tree = nested(flat, metadata.planner_data or {}, self._target)
            write_sharded(folder, Document(tree, {}, self._metadata), manifest, ranks)
            folder.commit()
        finally:
            self._abandon()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path."""
        return "://" not in os.fspath(checkpoint_id)


def _leaf(name: str, entry: Any, item: Item | None) -> Tree:
    if item is None:
        raise ArgumentError(f"`{shown(name)}`: is in the plan, and no rank wrote it", path=name)
    if not isinstance(entry, TensorStorageMetadata):
        return item.value
    spec = TensorSpec(item.dtype or "", tuple(entry.size))
    return Wanted(name, spec, requires_grad=entry.properties.requires_grad)
