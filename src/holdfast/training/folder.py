"""The disk side of a run that is being written: commits, retention, falling back, metrics without a commit."""

from __future__ import annotations

import datetime
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from holdfast.errors import (
    ArgumentError,
    CorruptFile,
    FormatError,
    HoldfastError,
    NotFound,
    StorageError,
    UnknownFormat,
)
from holdfast.formats.base import Document
from holdfast.runs.catalog import Listed, beaten, best, newest_step, scan
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.history import gone_back, remember
from holdfast.runs.layout import MANIFEST, step_name
from holdfast.runs.lock import lock_run
from holdfast.runs.manifest import Manifest
from holdfast.runs.moves import prune, quarantine, supersede, sweep_run
from holdfast.runs.placing import Groups
from holdfast.runs.retention import KeepLast, Rule, plan_prune
from holdfast.runs.run_file import BestRule, EpochMetrics, RunFile, read_pins, read_run_file, write_run_file
from holdfast.runs.shards import Shards
from holdfast.runs.verify import refuse_damage
from holdfast.runs.writing import write_checkpoint
from holdfast.spec import Path
from holdfast.storage.places import StagedStep, is_folder, is_there, is_url, place_of
from holdfast.training.environment import environment

log = logging.getLogger("holdfast")
_T = TypeVar("_T")


class Facts(msgspec.Struct, frozen=True):
    """What a commit says beside the state.

    Attributes:
        step: the number of the checkpoint.
        items: items of the loader done.
        epoch: the epoch to go on with.
        batch: items of that epoch that are done.
        metrics: by name.
    """

    step: int
    items: int
    epoch: int
    batch: int
    metrics: dict[str, float] = {}


class Staged(msgspec.Struct, frozen=True):
    """A checkpoint that is written and flushed, and not yet visible.

    Attributes:
        folder: where it is; None where another rank commits it.
        manifest: what it says.
    """

    folder: StagedStep | None
    manifest: Manifest

    def abandon(self) -> None:
        """Throws it away, unless it was committed."""
        if self.folder is not None:
            self.folder.abandon()

    def look_back(self) -> None:
        """Reads back what was written. Raises StorageError when it is something else."""
        if self.folder is not None:
            refuse_damage(*((self.folder.path, self.manifest) if self.folder.data else (self.folder.partial,)))

    @property
    def bytes(self) -> int:
        """Of all its files but the manifest."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def changed(self) -> int:
        """Of those that were written; the others are links to files of the checkpoint before."""
        return sum(record.size for record in self.manifest.files.values() if not record.links)


class RunFolder:
    """A run's folder, held for writing.

    Args:
        root: the folder; created when missing.
        best: which checkpoints are best, that of ``run.best`` first.
        keep: retention rules; empty keeps all.
        texts: the rules as the user wrote them, for run.json: ``best``, ``keep``, ``save``.
        read_back: whether each checkpoint is read from the disk and compared with its digests before it is committed.

    Attributes:
        passed: damaged steps that were set aside, newest first.
        rank: of this process among those that write the run.
        size: how many they are.
        together: whether they are a process group, whose ranks take every step at the same time.
        shared: paths of whole tensors that all of them have alike.

    Raises:
        RunLocked: another process writes this run; names it.
        StorageError: the folder can't be made or written.
    """

    rank, size, together = 0, 1, False
    shared: frozenset[Path] = frozenset()

    def __init__(
        self,
        root: str,
        *,
        best: Sequence[BestRule],
        keep: Sequence[Rule],
        texts: Mapping[str, str | None],
        read_back: bool = False,
    ) -> None:
        self.root = root
        self.best_rules = tuple(best)
        self.keep = list(keep)
        self.passed: list[int] = []
        self._read_back = read_back
        self._noting = threading.Lock()  # run.json is written by the training and by the thread that saves and prunes
        if is_there(root) and not is_folder(root):
            raise StorageError(f"`{root}`: is a file, a run needs a folder; name another", file=root)
        self._lock = lock_run(root)
        try:
            sweep_run(root)  # what a killed writer left; this process holds the lock now
            self.run = self._run_file(texts)
            self._shards = Shards(root, single=list(keep) == [KeepLast(1)])
            environment()  # asks git, once, and not in the middle of a training
        except BaseException:
            self._lock.release()
            raise

    def _run_file(self, texts: Mapping[str, str | None]) -> RunFile:
        try:
            found = read_run_file(self.root)
        except CorruptFile as reason:
            log.warning("%s; it is written anew, the checkpoints do not depend on it", reason)
            found = None
        if found is None:
            listed = scan(self.root).readable
            known = listed[-1].manifest.run if listed and listed[-1].manifest else secrets.token_hex(8)
            found = RunFile(run=known, created=datetime.datetime.now(datetime.UTC))
        run = msgspec.structs.replace(found, best=texts["best"], keep=texts["keep"], save=texts["save"])
        write_run_file(self.root, run)
        return run

    def agreed(self, work: Callable[[], _T]) -> _T:
        """Does something that every process must come through."""
        return work()

    def written(self, work: Callable[[], None]) -> None:
        """Does something on the thread that saves, between a stage and its publishing, that every process must pass."""
        work()

    def decided(self, value: bool) -> bool:
        """What the process that decides says."""
        return value

    def on_any(self, value: bool) -> bool:
        """Whether it is so in one of the processes at least."""
        return value

    def candidates(self) -> Iterator[Checkpoint]:
        """Committed checkpoints that open, newest first; one that does not is set aside, loudly.

        The caller closes each, and tells ``set_aside`` when one turns out damaged further on.

        Raises:
            StorageError: the machine can't read one, which says nothing against the checkpoint.
        """
        for one in reversed(scan(self.root).checkpoints):
            try:
                checkpoint = open_checkpoint(one.path)  # again: a disk that failed once says nothing against it
                if checkpoint.manifest.step != one.step:
                    checkpoint.close()
                    said = f"its manifest says step {checkpoint.manifest.step}: the folder was renamed or copied"
                    raise CorruptFile(said, file=one.path, step=one.step)
            except UnknownFormat:
                raise  # of a newer holdfast, and no damage
            except (FormatError, NotFound) as reason:
                self.set_aside(one.step, str(reason))
                continue
            yield checkpoint

    def branch_to(self, step: int) -> bool:
        """Goes back to ``step``: later steps move to ``superseded/``. False when the run did so before.

        run.json remembers it, so that a program that is started again with the same words goes on from its new steps.
        """
        if self.run.branch == step:
            return False
        supersede(self.root, step)
        self.run = gone_back(self.run, step)
        write_run_file(self.root, self.run)
        return True

    def set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged checkpoint to ``quarantine/`` with its reason."""
        quarantine(self.root, step, reason)
        self.passed.append(step)
        log.warning("run %s: step %d is damaged and was set aside in quarantine/: %s", self.root, step, reason)

    def path_of(self, step: int) -> str:
        """The folder of a step."""
        return os.path.join(self.root, step_name(step))

    def number_for(self, items: int, *, exact: bool) -> int:
        """The number of a checkpoint that is about to be saved.

        Args:
            items: how many are done: its number, if that is free.
            exact: whether it must be. Else the next free number will do: behind the last item of an epoch a signal may
                have saved, before the epoch's end, which is another place and wants to be saved too.

        Raises:
            ArgumentError: it must be this one, which exists, or lies behind one that does.
        """
        newest = newest_step(self.root)
        if newest is not None and newest >= items and not exact:
            return newest + 1
        step, path = items, self.path_of(items)
        if is_there(os.path.join(path, MANIFEST) if is_url(path) else path):
            raise ArgumentError(f"`{path}`: step {step} is saved already; a step is saved once", file=path, step=step)
        if newest is not None and newest > step:  # retention would take it for an old one and delete it
            raise ArgumentError(
                f"`{path}`: step {step} lies behind step {newest}, which is saved; steps go up. resume='@step=N' goes "
                "back to an earlier one",
                file=path,
                step=step,
            )
        return step

    def manifest(self, facts: Facts) -> Manifest:
        """What a commit says, without its files."""
        return Manifest(
            run=self.run.run,
            step=facts.step,
            items=None if facts.items == facts.step else facts.items,
            time=datetime.datetime.now(datetime.UTC),
            epoch=facts.epoch,
            batch=facts.batch,
            metrics=dict(facts.metrics),
            environment={**environment(), "world_size": self.size},
        )

    def stage(self, document: Document, facts: Facts, groups: Groups) -> Staged:
        """Writes and flushes a checkpoint; nobody sees it before :meth:`publish`.

        Raises:
            StorageError: the disk is full or failed; every older checkpoint is intact.
        """
        folder = place_of(self.root).stage_step(self.root, step_name(facts.step))
        try:
            written = write_checkpoint(folder, document, self.manifest(facts), groups=groups, shards=self._shards)
            staged = Staged(folder, written)
            if self._read_back:
                staged.look_back()
        except BaseException:
            folder.abandon()
            raise
        return staged

    def publish(self, staged: Staged) -> list[int]:
        """Commits what was staged, then prunes; returns the steps that are gone.

        Raises:
            StorageError: the disk failed; every older checkpoint is intact.
        """
        if staged.folder is not None:
            self._lock.check()
            staged.folder.commit()
        return self.prune()

    def prune(self) -> list[int]:
        """Deletes what the retention rules let go; returns the steps. A failure here loses nothing and is logged.

        Called behind a commit alone: what it may never delete, the newest, was then written by this process just now.
        """
        if not self.keep:
            return []
        try:
            catalog = scan(self.root)
            now = datetime.datetime.now(datetime.UTC)
            decisions = plan_prune(catalog.checkpoints, self.keep, now, pins=read_pins(self.root))
            with self._noting:
                self.run = remember(self.root, self.run, catalog, decisions)
            return prune(catalog, decisions)
        except HoldfastError as reason:
            log.warning("run %s: pruning stopped, nothing that must be kept is lost: %s", self.root, reason)
            return []

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether new metrics are at least as good as every committed one, by any of the best rules."""
        return bool(beaten(scan(self.root).readable, self.best_rules, metrics))

    def best(self) -> Listed | None:
        """The best committed checkpoint by the run's first rule."""
        if not self.best_rules:
            raise ArgumentError(f"`{self.root}`: the run has no best= rule; give one, such as best='val_loss:min'")
        return best(scan(self.root).readable, self.best_rules[0])

    def newest(self) -> Listed | None:
        """The newest committed checkpoint whose manifest is good."""
        readable = scan(self.root).readable
        return readable[-1] if readable else None

    def has_quarantined(self) -> bool:
        """Whether damaged checkpoints were set aside."""
        return bool(scan(self.root).quarantined)

    def note_metrics(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of an epoch that is not committed."""
        line = EpochMetrics(step, epoch, dict(metrics))
        with self._noting:
            self.run = msgspec.structs.replace(self.run, uncommitted=(*self.run.uncommitted, line))
            write_run_file(self.root, self.run)

    @property
    def held(self) -> bool:
        """Whether this process writes the run."""
        return self._lock.held

    def close(self) -> None:
        """Lets another process write the run."""
        self._lock.release()
