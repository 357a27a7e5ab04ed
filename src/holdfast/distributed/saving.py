"""One checkpoint that all ranks write together, up to the commit."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from holdfast.distributed.group import Group
from holdfast.distributed.planning import Claim, Local, deal, local_state, total
from holdfast.distributed.rank_file import write_rank_file
from holdfast.errors import ArgumentError
from holdfast.formats.base import Document
from holdfast.runs.layout import step_name
from holdfast.runs.manifest import Manifest
from holdfast.runs.room import check_run_room
from holdfast.runs.sharded import RankPart, write_sharded
from holdfast.spec import Path
from holdfast.state.values import Tree
from holdfast.storage.output import pass_over
from holdfast.storage.places import StagedStep, place_of

RANKS = "ranks"
"""The part of a run's tree that has what each rank has of its own: a list, by rank."""
OWN = ("rng", "loader")
"""What each rank has of its own."""


class Told(msgspec.Struct, frozen=True):
    """What a rank says when it has written.

    Attributes:
        part: its container.
        own: what it has of its own.
    """

    part: RankPart
    own: Tree


def stage_together(
    group: Group, root: str, document: Document, manifest: Manifest | None, shared: Collection[Path]
) -> tuple[StagedStep | None, Manifest]:
    """Writes and flushes one checkpoint on all ranks. A step that all take; what one raises, all do.

    Args:
        group: who.
        root: the run's folder.
        document: what this rank has.
        manifest: on rank 0, what the checkpoint is, without its files.
        shared: paths of whole tensors that are the same on every rank.

    Returns:
        The folder to commit, on rank 0, and None on the others; and the manifest as it was written.

    Raises:
        StorageError: a disk or the store is full or failed on some rank, or a rank is gone; nothing was committed.
    """
    save = _Save(group, root, document, manifest)
    try:
        claims = group.each(lambda: save.claims(shared))
        partial, dealt = group.ask(lambda: save.begin(claims))
        told = group.each(lambda: save.write(partial, dealt[group.rank]))
        return save.folder, group.ask(lambda: save.finish(told))
    except BaseException:
        if save.folder is not None:
            save.folder.abandon()
        raise


class _Save:
    """One save, as one rank sees it."""

    def __init__(self, group: Group, root: str, document: Document, manifest: Manifest | None) -> None:
        self.folder: StagedStep | None = None
        self._group, self._root, self._document, self._manifest = group, root, document, manifest
        self._main = self._own = Local(None, [], [])

    def claims(self, shared: Collection[Path]) -> list[Claim]:
        """What this rank could write; what it has of its own it writes in any case."""
        tree = self._document.tree
        self._main = local_state({key: value for key, value in tree.items() if key not in OWN}, shared=shared)
        own = {key: value for key, value in tree.items() if key in OWN}
        self._own = local_state(own, prefix=f"{RANKS}.{self._group.rank}.")
        return self._main.claims

    def begin(self, claims: list[list[Claim]]) -> tuple[str, list[list[int]]]:
        """Deals out and begins the checkpoint, on rank 0; says where its files go."""
        if self._manifest is None:
            raise ArgumentError(f"`{self._root}`: rank 0 has no manifest")
        dealt = deal(claims)
        check_run_room(self._root, total(claims, dealt))
        self.folder = place_of(self._root).stage_step(self._root, step_name(self._manifest.step))
        return self.folder.partial, dealt

    def write(self, partial: str, numbers: list[int]) -> Told:
        """Writes what was dealt to this rank."""
        self._pass_over(set(numbers))
        parts = [self._main.parts[number] for number in numbers] + self._own.parts
        return Told(write_rank_file(partial, self._group.rank, parts), self._own.tree)

    def _pass_over(self, mine: set[int]) -> None:
        """Lets go of what other ranks write: a background save need not keep it from the next step."""
        sources = [part.leaf.segment.source for part in self._main.parts]
        read = {id(source) for number, source in enumerate(sources) if number in mine}
        for source in {id(source): source for source in sources if id(source) not in read}.values():
            pass_over(source)

    def finish(self, told: list[Told]) -> Manifest:
        """Writes what makes a checkpoint of it, on rank 0."""
        if self.folder is None or self._manifest is None:
            raise ArgumentError(f"`{self._root}`: nothing was begun")
        tree = {**self._main.tree, RANKS: [one.own for one in told]}
        document = Document(tree, self._document.objects, self._document.metadata)
        return write_sharded(self.folder, document, self._manifest, [one.part for one in told])
