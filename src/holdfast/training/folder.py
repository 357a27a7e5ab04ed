"""The disk side of a run that is being written: commits, retention, falling back, metrics without a commit."""

from __future__ import annotations

import datetime
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, FormatError, HoldfastError, NotFound, StorageError
from holdfast.formats.base import Document
from holdfast.runs.catalog import Listed, best, scan
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from holdfast.runs.layout import step_name
from holdfast.runs.lock import RunLock
from holdfast.runs.manifest import Manifest
from holdfast.runs.moves import prune, quarantine, supersede, sweep_run
from holdfast.runs.retention import Rule, plan_prune
from holdfast.runs.run_file import BestRule, EpochMetrics, RunFile, read_pins, read_run_file, write_run_file
from holdfast.storage.atomic import StagedFolder, make_folders
from holdfast.training.environment import environment

log = logging.getLogger("holdfast")


class Committed(msgspec.Struct, frozen=True):
    """One commit of a run.

    Attributes:
        step: items of the loader done.
        path: its folder.
        bytes: of its files.
        seconds: from the call to the commit.
        pruned: steps that the retention rules let go after it.
    """

    step: int
    path: str
    bytes: int
    seconds: float
    pruned: list[int] = []


class RunFolder:
    """A run's folder, held for writing.

    Args:
        root: the folder; created when missing.
        best: which checkpoint is best, or None.
        keep: retention rules; empty keeps all.
        texts: the rules as the user wrote them, for run.json: ``best``, ``keep``, ``save``.

    Raises:
        RunLocked: another process writes this run; names it.
        StorageError: the folder can't be made or written.
    """

    def __init__(
        self, root: str, *, best: BestRule | None, keep: Sequence[Rule], texts: Mapping[str, str | None]
    ) -> None:
        self.root = root
        self.best_rule = best
        self.keep = list(keep)
        if os.path.lexists(root) and not os.path.isdir(root):
            raise StorageError(f"`{root}`: is a file, a run needs a folder; name another", file=root)
        make_folders(root)
        self._lock = RunLock(root)
        try:
            sweep_run(root)  # what a killed writer left; this process holds the lock now
            self.run = self._run_file(texts)
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

    def candidates(self) -> Iterator[Checkpoint]:
        """Committed checkpoints that open, newest first; one that does not is set aside, loudly.

        The caller closes each, and tells ``set_aside`` when one turns out damaged further on.

        Raises:
            StorageError: the machine can't read one, which says nothing against the checkpoint.
        """
        for one in reversed(scan(self.root).checkpoints):
            try:
                checkpoint = open_checkpoint(one.path)
                if checkpoint.manifest.step != one.step:
                    checkpoint.close()
                    raise CorruptFile(one.problem or "is another step", file=one.path, step=one.step)
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
        self.run = msgspec.structs.replace(self.run, branch=step)
        write_run_file(self.root, self.run)
        return True

    def set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged checkpoint to ``quarantine/`` with its reason."""
        quarantine(self.root, step, reason)
        log.warning("run %s: step %d is damaged and was set aside in quarantine/: %s", self.root, step, reason)

    def commit(
        self, document: Document, *, step: int, epoch: int, batch: int, metrics: Mapping[str, float]
    ) -> Committed:
        """Writes one checkpoint, all or nothing, then prunes.

        Raises:
            ArgumentError: the step exists.
            StorageError: the disk is full or failed; every older checkpoint is intact.
        """
        begin = time.perf_counter()
        path = os.path.join(self.root, step_name(step))
        if os.path.lexists(path):
            raise ArgumentError(f"`{path}`: step {step} is saved already; a step is saved once", file=path, step=step)
        manifest = Manifest(
            run=self.run.run,
            step=step,
            time=datetime.datetime.now(datetime.UTC),
            epoch=epoch,
            batch=batch,
            metrics=dict(metrics),
            environment=environment(),
        )
        folder = StagedFolder(self.root, step_name(step))
        try:
            written = write_checkpoint(folder, document, manifest)
            folder.commit()
        finally:
            folder.abandon()
        size = sum(record.size for record in written.files.values())
        return Committed(step, path, size, time.perf_counter() - begin, self.prune())

    def prune(self) -> list[int]:
        """Deletes what the retention rules let go; returns the steps. A failure here loses nothing and is logged."""
        if not self.keep:
            return []
        try:
            catalog = scan(self.root)
            now = datetime.datetime.now(datetime.UTC)
            return prune(catalog, plan_prune(catalog.checkpoints, self.keep, now, pins=read_pins(self.root)))
        except HoldfastError as reason:
            log.warning("run %s: pruning stopped, nothing that must be kept is lost: %s", self.root, reason)
            return []

    def is_best(self, value: float | None) -> bool:
        """Whether a new value of the best rule's metric is at least as good as every committed one."""
        if self.best_rule is None or value is None or value != value:
            return False
        found = self.best()
        if found is None or found.manifest is None:
            return True
        old = found.manifest.metrics[self.best_rule.metric] or 0.0
        return value <= old if self.best_rule.mode == "min" else value >= old

    def best(self) -> Listed | None:
        """The best committed checkpoint by the run's rule."""
        if self.best_rule is None:
            raise ArgumentError(f"`{self.root}`: the run has no best= rule; give one, such as best='val_loss:min'")
        return best(scan(self.root).readable, self.best_rule)

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
        self.run = msgspec.structs.replace(self.run, uncommitted=(*self.run.uncommitted, line))
        write_run_file(self.root, self.run)

    def close(self) -> None:
        """Lets another process write the run."""
        self._lock.release()
