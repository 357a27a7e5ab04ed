"""A training run: resumes by itself, saves by rule, keeps its best; one commit holds everything."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from holdfast.errors import ArgumentError, HoldfastError, MissingPart
from holdfast.objects.rng import restore_rng
from holdfast.runs.retention import Rule, keep_text, parse_keep, with_best
from holdfast.runs.run_file import parse_bests
from holdfast.training.auditing.audit import AuditReport, audit
from holdfast.training.auditing.drift import Baseline
from holdfast.training.background import parse_background
from holdfast.training.commits import Commits, number_of
from holdfast.training.committed import Committed
from holdfast.training.feed import UNSEEN, Feed
from holdfast.training.notebook import run_html
from holdfast.training.proof import trial
from holdfast.training.resuming import Position, resume_run, take_objects, take_weights
from holdfast.training.saved import SavedCheckpoint
from holdfast.training.signals import ErrorWatch, SignalWatch, note_unsaved
from holdfast.training.steps import StepWatch
from holdfast.training.together import open_folder
from holdfast.training.triggers import is_due, is_timed, parse_triggers

log = logging.getLogger("holdfast")


class Run:
    """A training run in a folder: every commit holds all objects, the random state, the place in the data, metrics.

    Args:
        root: the run's folder, or its URL in a store, ``s3://bucket/runs/a``; created when missing. When it holds
            checkpoints, training goes on from the newest.
        best: which checkpoints are best, ``"val_loss:min"`` or ``"val_loss:min val_acc:max"``; the first rule is what
            ``run.best`` and ``@best`` mean. A new best by any of them is committed at once.
        keep: which checkpoints stay, ``"last:2 best:1 every:10ep"``, or rules such as ``KeepLast(2)``; None keeps all.
            The best one by each rule of ``best`` always stays.
        save: when to commit, ``"1ep"``, ``"500step 15min signal exception"``; whichever comes first. With ``signal``,
            SIGTERM, SIGUSR1 and SIGINT commit and end the program with exit code 128 + n: between items and in
            evaluation at once, inside an item at its end. A second SIGINT stops at once. With ``exception``, an error
            that ends the training commits what was done before it. ``"end"`` commits at the end only.
        background: whether training goes on while a save is written: True, or words, ``"copy"``, ``"check"``, and
            ``"wait"``, ``"skip"`` or ``"coalesce"`` for a save that falls due while another is under way.
        read_back: whether a checkpoint is read from the disk and compared before it is committed.
        args: plain data to record: an argparse.Namespace, a dict, a dataclass.
        loader: the data loader whose place is part of a commit; by default the one first given to ``batches``.
        rng: whether random states are part of a commit.
        resume: where to go on: ``"last"``; a reference such as ``"@step=1000"`` or ``"@best"``, whose later steps
            move to ``superseded/``; or False for a fresh start, which moves all of them. A restart of the same program
            goes on from what was committed since, it does not go back again.
        start_from: a file, reference or run whose weights the modules of a fresh run begin with.
        **objects: modules, optimizers, schedulers, scalers and everything else with ``state_dict``, by name.

    Raises:
        RunLocked: another process writes this run; the message names it.
        ArgumentError: a rule that is none, or an object without ``state_dict``.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> with holdfast.Run("runs/line", model=net, save="1ep") as run:
        ...     for epoch in run.epochs(2):
        ...         for batch in run.batches([torch.ones(2)] * 3):
        ...             loss = net(batch)
        ...         committed = run.end(epoch, val_loss=loss)
        >>> run.position
        Position(epoch=2, step=6, batch=0)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        best: str | Sequence[str] | None = None,
        keep: str | Sequence[Rule] | None = None,
        save: str = "1ep",
        background: bool | str = False,
        read_back: bool = False,
        args: Any = None,
        loader: Iterable[Any] | None = None,
        rng: bool = True,
        resume: str | Literal[False] = "last",
        start_from: Any = None,
        **objects: Any,
    ) -> None:
        root, save = trial.current().begins(os.fspath(root), save)
        self._objects = take_objects(objects, root)
        self._triggers, how = parse_triggers(save), parse_background(background)
        self._watch = SignalWatch(self._on_signal) if self._triggers.signal else None
        bests = () if best is None else parse_bests(best)
        rules = with_best(parse_keep(keep, best=bests) if isinstance(keep, str) else tuple(keep or ()), bests)
        best_text = " ".join(map(str, bests)) or None
        texts = {"best": best_text, "keep": keep if isinstance(keep, str | None) else keep_text(keep), "save": save}
        self._folder = open_folder(root, self._objects, best=bests, keep=rules, texts=texts, read_back=read_back)
        on_error = note_unsaved if self._folder.together else self._on_error
        self._error_watch = ErrorWatch(on_error) if self._triggers.exception else None
        self._commits = Commits(self._folder, self._objects, how, args=args, rng=rng)
        self._keeps_rng, self._resume, self._start_from = rng, resume, start_from
        self._feed = Feed(root, loader)
        self._epoch = self._step = self._batch = 0
        self._resumed: Position | None = None
        self._asked_at = 0
        self._due: str | None = None
        self._rest: tuple[Position, dict[str, Any]] | None = None
        self._looked = self._in_body = self._inside = self._counts = False
        self._steps = StepWatch(self._objects.values())
        self._baseline = Baseline(self._objects)
        trial.current().made(self)

    # -- position ----------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The run's folder, as it was given."""
        return self._folder.root

    @property
    def position(self) -> Position:
        """Where the run is now."""
        return Position(self._epoch, self._step, self._batch)

    def resume(self) -> Position | None:
        """Restores the checkpoint that ``resume=`` means into the run's objects; ``epochs`` calls it by itself.

        A damaged checkpoint is set aside in ``quarantine/`` with its reason, and the one before it is used.

        Returns:
            ``Position(epoch, step, batch)`` to go on with, or None when there is nothing to go on from.

        Raises:
            MismatchError, MissingPart: the checkpoint does not fit the objects; nothing was changed.
            CorruptFile: every checkpoint is damaged.
        """
        if self._looked:
            return self._resumed
        found = resume_run(self._folder, self._objects, self._resume, rng=self._keeps_rng)
        if found is not None:
            self._epoch, self._step, self._batch = found.position.epoch, found.position.step, found.position.batch
            self._asked_at = self._step
            self._resumed = self._commits.at = self.position
            self._feed.resume(found.loader, found.rng)
            for note in restore_rng(found.rng, self.path) if found.rng is not None else ():
                log.warning("run %s: %s", self.path, note)
        elif self._start_from is not None:
            self._folder.agreed(lambda: take_weights(self._start_from, self._objects, self.path))
        self._looked = True
        for watch in (self._watch, self._error_watch):
            if watch is not None:
                watch.start()
        return self._resumed

    # -- the loop ----------------------------------------------------------------------------------------------------

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left of ``count``, from where the newest checkpoint stands.

        After the last one the run's state is committed, if no rule did it.

        Args:
            count: epochs in all, those of earlier processes included.
        """
        self.resume()
        self._counts = True
        while self._epoch < count:
            epoch = self._epoch
            yield epoch
            if self._epoch == epoch:
                self.end(epoch)
        if self._epoch and self._commits.at != self.position:
            self._commit({})
        self.wait()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The items of ``loader`` that are left of this epoch; counts steps and saves by rule between them.

        A save happens between two items. One that falls behind the last item is left to ``end``, which commits it
        together with the epoch's metrics.

        Args:
            loader: a DataLoader, or any iterable that gives the same items in each process.
        """
        self.resume()
        self._counts = True
        iterator = self._feed.begin(loader, self.position, amid=self._in_body)
        while True:
            self._commits.settle(wait=False)
            self._go_if_told()
            due = self._due_now()
            moment = self._moment() if due or self._triggers.exception else None
            if moment is not None and not self._steps.accumulating:
                self._rest = (self.position, moment)
            self._inside = True  # an item is being drawn or worked on: a signal waits
            try:
                item = next(iterator)
            except StopIteration:
                self._inside = False
                self._rest = (self.position, self._moment()) if self._watch or self._error_watch else None
                return
            except RuntimeError:  # of loader workers that were told to go as well, while an item was waited for
                if not self._folder.together:
                    self._go_if_told()
                raise
            if due and moment is not None:  # as it was before this item was drawn
                self._commit({}, moment)
            self._in_body, self._steps.stepped = True, False
            yield item
            self._count()

    def _on_signal(self, number: int) -> bool:
        """Saves now if the run's objects are whole now; else the next boundary between items does."""
        when = "saving" if self._counts else "the next run.save() saves"
        log.warning("run %s: signal %d: %s, then leaving", self.path, number, when)
        if self._inside or self._commits.active or not self._counts or self._folder.together:
            return False
        self._save_rest()
        return True

    def _save_rest(self) -> None:
        """Commits the present position, unless it is, and waits for it."""
        if (self._step or self._epoch) and self._commits.at != self.position:
            known = self._rest is not None and self._rest[0] == self.position
            self._commit({}, self._rest[1] if self._rest is not None and known else None)
        self.wait()

    def _go_if_told(self) -> None:
        """Saves and ends the program when a signal came while that had to wait."""
        if self._watch is not None and self._told():
            self._save_rest()
            self._watch.leave()

    def _told(self) -> bool:
        """Whether a signal came, to this process or to another of its group, which are told alike."""
        return self._watch is not None and self._watch.told(self._folder.on_any)

    def _on_error(self, error: BaseException) -> None:
        """Commits what was done before an error that ends the training; says in the error what became of it."""
        if not (self._triggers.exception and self._looked) or isinstance(error, SystemExit | GeneratorExit):
            return
        try:
            if self._steps.stepping:
                error.add_note("holdfast: the error came out of an optimizer's step: its half-done state is not saved")
                return
            if self._in_body and self._steps.stepped:  # the item is done, as far as the weights are concerned
                self._count()
                self._rest = (self.position, self._moment())
            if self._rest is not None and self._rest[0] != self._commits.at and self._rest[0].step:
                self._commit({}, self._rest[1], self._rest[0])
            self.wait()
            if self._commits.at is not None:
                error.add_note(f"holdfast: step {self._commits.at.step} of the run is saved")
        except HoldfastError as failed:
            error.add_note(f"holdfast: the run could not be saved: {failed}")

    def _count(self) -> None:
        if self._in_body:
            self._in_body = False
            self._step += 1
            self._batch += 1
        self._inside = False

    def _due_now(self) -> bool:
        """Whether a rule asks for a save here, between two items; inside a gradient accumulation it waits."""
        seconds = time.monotonic() - self._commits.time
        reason = is_due(self._triggers.rules, step=self._step, last_step=self._asked_at, seconds=seconds)
        if self._folder.together and is_timed(self._triggers.rules):
            reason = "a rule of time" if self._folder.decided(bool(reason)) else None
        self._asked_at = self._step
        self._due = self._due or reason or ("the save before was torn" if self._commits.torn else None)
        if self._due is None or self._commits.at == self.position or self._steps.accumulating:
            return False
        if self._commits.held_back == "skip":
            log.info("run %s: step %d is not saved: the save before is under way", self.path, self._step)
            self._due = None
        return not self._commits.held_back

    def end(self, epoch: int, **metrics: Any) -> Committed | None:
        """Ends an epoch: commits when a save rule or a new best asks for it, else only keeps the metrics.

        An epoch of which no item went through ``batches`` can be resumed at its ends only.

        Args:
            epoch: the epoch that ends, as ``epochs`` gave it.
            **metrics: numbers, or tensors and arrays with one element.

        Returns:
            What was committed, or None.

        Raises:
            ArgumentError: another epoch than the one that runs, or a metric that is no number.
            StorageError: the disk is full or failed; every older checkpoint is intact.
        """
        if epoch != self._epoch:
            raise ArgumentError(f"`{self.path}`: end({epoch}) during epoch {self._epoch}")
        values = {name: number_of(name, value) for name, value in metrics.items()}
        self._count()
        self._inside = True  # a signal waits for the metrics to be committed
        if not self._batch and not epoch:
            log.warning("run %s: %s", self.path, UNSEEN)
        self._epoch, self._batch = epoch + 1, 0
        seconds = time.monotonic() - self._commits.time
        reason = self._due or is_due(
            self._triggers.rules, step=self._step, last_step=self._asked_at, epochs_done=self._epoch, seconds=seconds
        )
        self._asked_at = self._step
        committed = None
        told = self._told()
        if self._folder.decided(bool(reason or told or self._is_best(values))):
            committed = self._commit(values)
        elif values:
            self._commits.note(self.position, values)
        self._inside = False
        self._go_if_told()
        return committed

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        if not any(rule.metric in metrics for rule in self._folder.best_rules):
            return False
        self._commits.settle(wait=True)  # what is on its way has metrics too
        return self._folder.is_best(metrics)

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(
        self, *, step: int | None = None, epoch: int | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Committed:
        """Commits now; in the background it returns at once, and ``wait()`` when it is on the disk.

        Inside ``batches`` the present item counts as done: call it after the optimizer's step. A loop of your own
        says where it is, and a signal that came meanwhile ends the program after this commit.

        Args:
            step: items done since the run began; by default what ``batches`` counted.
            epoch: the epoch to go on with.
            metrics: numbers by name.

        Raises:
            ArgumentError: the step is saved already, or lies behind one that is.
            StorageError: the disk is full or failed; every older checkpoint is intact. In the background the next call
                of the run raises it.
        """
        self.resume()
        self._count()
        if step is not None:
            self._step = step
        if epoch is not None:
            self._epoch = epoch
        values = {name: number_of(name, value) for name, value in (metrics or {}).items()}
        committed = self._commit(values, exact=step is not None)
        if not self._counts:
            self._go_if_told()
        return committed

    def wait(self) -> None:
        """Returns when everything that was saved is on the disk.

        Raises:
            StorageError: the disk is full or failed; every older checkpoint is intact.
        """
        self._commits.settle(wait=True)
        if self._commits.torn:
            self._commit({})
            self._commits.settle(wait=True)

    def _moment(self) -> dict[str, Any]:
        return self._commits.moment(self._feed.part, self._batch)

    def _commit(
        self,
        metrics: Mapping[str, float],
        moment: dict[str, Any] | None = None,
        at: Position | None = None,
        *,
        exact: bool = False,
    ) -> Committed:
        """Commits the objects as they are, at the present position or ``at`` another."""
        first, moment = self._commits.at is None, self._moment() if moment is None else moment
        committed = self._commits.make(at or self.position, metrics, moment, exact=exact)
        self._due = None
        for note in self._feed.notes() if first else ():
            log.info("run %s: %s", self.path, note)
        return committed

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def best(self) -> SavedCheckpoint:
        """The best checkpoint by the first ``best`` rule. Raises MissingPart while there is none."""
        self.wait()
        found = self._folder.best()
        if found is None:
            raise MissingPart(f"`{self.path}`: no checkpoint has a number for the best= rule yet", file=self.path)
        return SavedCheckpoint(found.path, self._objects)

    @property
    def last(self) -> SavedCheckpoint:
        """The newest checkpoint. Raises MissingPart while there is none."""
        self.wait()
        found = self._folder.newest()
        if found is None:
            raise MissingPart(f"`{self.path}`: no checkpoint yet", file=self.path)
        return SavedCheckpoint(found.path, self._objects)

    def audit(self) -> AuditReport:
        """Searches the program for what is alive and stateful and not in this run, and in its objects for what changed
        and is in no ``state_dict``. Changes nothing. Call it where the training is, inside the loop or behind it.
        """
        return audit(self.path, self._objects, self._feed.part, self._baseline)

    def close(self) -> None:
        """Waits for what is being saved, then lets go of the run's lock and of the optimizers; twice is fine.

        Raises:
            StorageError: the last save failed; every older checkpoint is intact.
        """
        try:
            if self._folder.held:
                self.wait()
        finally:
            for watch in (self._watch, self._error_watch):
                if watch is not None:
                    watch.stop()
            self._steps.stop()
            self._commits.close()
            self._folder.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        self._on_error(error)
        try:
            self.close()
        except HoldfastError as failed:  # the error that ended the training is the one to see
            error.add_note(f"holdfast: the save before failed: {failed}")

    def __repr__(self) -> str:
        return f"Run({self.path!r}, {self.position})"

    _repr_html_ = run_html
