"""A training run: resumes by itself, saves by rule, keeps its best; one commit holds everything."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from holdfast.errors import ArgumentError, MissingPart
from holdfast.objects.capture import adapt_all
from holdfast.objects.loader import LoaderPart
from holdfast.objects.optimizer import OptimizerPart
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.runs.retention import Rule, keep_text, parse_keep, with_best
from holdfast.runs.run_file import parse_best
from holdfast.training.folder import Committed, RunFolder
from holdfast.training.resuming import OWN_PARTS, Position, resume_run, take_weights
from holdfast.training.saved import SavedCheckpoint
from holdfast.training.signals import SignalWatch
from holdfast.training.triggers import is_due, parse_save
from holdfast.transfer.save import document_of

log = logging.getLogger("holdfast")

_LATER = ("background",)
"""Words that are kept for what a later version does."""


class Run:
    """A training run in a folder: every commit holds all objects, the random state, the place in the data, metrics.

    Args:
        root: the run's folder; created when missing. When it holds checkpoints, training goes on from the newest.
        best: which checkpoint is best, ``"val_loss:min"`` or ``"val_acc:max"``; a new best is committed at once.
        keep: which checkpoints stay, ``"last:2 best:1 every:10ep"``, or rules such as ``KeepLast(2)``; None keeps all.
            The best one by ``best`` always stays.
        save: when to commit, ``"1ep"``, ``"500step 15min signal"``; whichever comes first. With ``signal``, SIGTERM,
            SIGUSR1 and SIGINT commit and end the program with exit code 128 + n: between items and in evaluation at
            once, inside an item at its end. A second SIGINT stops at once.
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
        best: str | None = None,
        keep: str | Sequence[Rule] | None = None,
        save: str = "1ep",
        args: Any = None,
        loader: Iterable[Any] | None = None,
        rng: bool = True,
        resume: str | Literal[False] = "last",
        start_from: Any = None,
        **objects: Any,
    ) -> None:
        _check_names(objects)
        self._objects = {name: value for name, value in objects.items() if value is not None}
        for name, part in adapt_all(self._objects).items():  # what can't be saved is refused here, not hours later
            if isinstance(part, OptimizerPart) and part.param_names() is None:
                log.warning(
                    "run %s: `%s` trains parameters of no model given to the run: they are not saved", root, name
                )
        words = save.split()
        rules_of_time = [word for word in words if word != "signal"]
        self._rules = parse_save(" ".join(rules_of_time)) if rules_of_time or not words else []
        self._watch = SignalWatch(self._on_signal) if "signal" in words else None
        rule = None if best is None else parse_best(best)
        rules = with_best(parse_keep(keep, best=rule) if isinstance(keep, str) else tuple(keep or ()), rule)
        texts = {"best": best, "keep": keep if isinstance(keep, str | None) else keep_text(keep), "save": save}
        self._folder = RunFolder(os.fspath(root), best=rule, keep=rules, texts=texts)
        self._args = args
        self._keeps_rng, self._resume, self._start_from = rng, resume, start_from
        self._loader = None if loader is None else LoaderPart(loader)
        self._loader_given = loader is not None
        self._epoch = self._step = self._batch = 0
        self._resumed: Position | None = None
        self._looked = False
        self._loader_state: dict[str, Any] | None = None
        self._rng_state: dict[str, Any] | None = None
        self._asked_at = 0
        self._saved_at: Position | None = None
        self._committed_time = time.monotonic()
        self._due: str | None = None
        self._in_body = self._inside = self._committing = self._stepped = False
        self._ended: dict[str, Any] | None = None
        self._hooks = [
            value.register_step_post_hook(self._on_optimizer_step)
            for value in self._objects.values()
            if isinstance(value, torch.optim.Optimizer)
        ]

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
            Where training goes on, or None when there is nothing to go on from.

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
            self._resumed = self._saved_at = self.position
            self._loader_state, self._rng_state = found.loader, found.rng
            for note in restore_rng(found.rng, self.path) if found.rng is not None else ():
                log.warning("run %s: %s", self.path, note)
        elif self._start_from is not None:
            take_weights(self._start_from, self._objects, self.path)
        self._looked = True
        return self._resumed

    # -- the loop ----------------------------------------------------------------------------------------------------

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left of ``count``, from where the newest checkpoint stands.

        After the last one the run's state is committed, if no rule did it.

        Args:
            count: epochs in all, those of earlier processes included.
        """
        self.resume()
        if self._watch is not None:
            self._watch.start()
        while self._epoch < count:
            epoch = self._epoch
            yield epoch
            if self._epoch == epoch:
                self.end(epoch)
        if self._step and self._saved_at != self.position:
            self._commit({})

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The items of ``loader`` that are left of this epoch; counts steps and saves by rule between them.

        A save happens between two items. One that falls behind the last item is left to ``end``, which commits it
        together with the epoch's metrics.

        Args:
            loader: a DataLoader, or any iterable that gives the same items in each process.
        """
        self.resume()
        iterator = self._begin(loader)
        while True:
            self._go_if_told()
            moment = self._moment() if self._due_now() else None
            self._inside = True  # an item is being drawn or worked on: a signal waits
            try:
                item = next(iterator)
            except StopIteration:
                self._inside = False
                self._ended = self._moment() if self._watch is not None else None
                return
            except RuntimeError:  # of loader workers that were told to go as well, while an item was waited for
                self._go_if_told()
                raise
            if moment is not None:  # as it was before this item was drawn
                self._commit({}, moment)
            self._in_body, self._stepped = True, False
            yield item
            self._count()

    def _on_signal(self, number: int) -> bool:
        """Saves now if the run's objects are whole now; else the next boundary between items does."""
        log.warning("run %s: signal %d: saving, then leaving", self.path, number)
        if self._inside or self._committing:
            return False
        if self._step and self._saved_at != self.position:
            self._commit({}, self._ended)
        return True

    def _go_if_told(self) -> None:
        """Saves and ends the program when a signal came while that had to wait."""
        if self._watch is not None and self._watch.pending is not None:
            if self._saved_at != self.position:
                self._commit({})
            self._watch.leave()

    def _begin(self, loader: Iterable[Any]) -> Iterator[Any]:
        self._ended = None
        state, self._loader_state = self._loader_state, None
        if self._in_body or (self._batch and state is None):
            raise ArgumentError(
                f"`{self.path}`: batches() in the middle of epoch {self._epoch}, with no saved place to go on from. An "
                "epoch is one pass over one loader: call end(epoch) before the next one, read a validation loader "
                "without batches(), and give several loaders as one iterable"
            )
        if self._loader is None or (self._loader.obj is not loader and not self._loader_given):
            self._loader = LoaderPart(loader)
        if self._loader.obj is not loader:
            raise ArgumentError(f"`{self.path}`: batches() was given another loader than loader= of the run; give one")
        for note in self._loader.notes() if state is not None and state["batch"] else ():
            log.warning("run %s resumes at batch %d: %s", self.path, self._batch, note)
        iterator = self._loader.begin() if state is None else self._loader.go_on(state, self._rng_state)
        for note in self._loader.warnings:
            log.warning("run %s: %s", self.path, note)
        return iterator

    def _count(self) -> None:
        if self._in_body:
            self._in_body = False
            self._step += 1
            self._batch += 1
        self._inside = False

    def _due_now(self) -> bool:
        """Whether a rule asks for a save here, between two items; inside a gradient accumulation it waits."""
        seconds = time.monotonic() - self._committed_time
        reason = is_due(self._rules, step=self._step, last_step=self._asked_at, seconds=seconds)
        self._asked_at = self._step
        self._due = self._due or reason
        accumulating = bool(self._hooks) and not self._stepped
        return self._due is not None and not accumulating and self._saved_at != self.position

    def _on_optimizer_step(self, *_: Any) -> None:
        self._stepped = True

    def end(self, epoch: int, **metrics: Any) -> Committed | None:
        """Ends an epoch: commits when a save rule or a new best asks for it, else only keeps the metrics.

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
        values = {name: _number(name, value) for name, value in metrics.items()}
        self._count()
        self._inside = True  # a signal waits for the metrics to be committed
        self._epoch, self._batch = epoch + 1, 0
        seconds = time.monotonic() - self._committed_time
        reason = self._due or is_due(
            self._rules, step=self._step, last_step=self._asked_at, epochs_done=self._epoch, seconds=seconds
        )
        self._asked_at = self._step
        rule = self._folder.best_rule
        self._ended, committed = None, None
        told = self._watch is not None and self._watch.pending is not None
        if reason or told or (rule is not None and self._folder.is_best(values.get(rule.metric))):
            committed = self._commit(values)
        elif values:
            self._folder.note_metrics(self._step, epoch, values)
        self._inside = False
        self._go_if_told()
        return committed

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(
        self, *, step: int | None = None, epoch: int | None = None, metrics: Mapping[str, Any] | None = None
    ) -> Committed:
        """Commits now.

        Inside ``batches`` the present item counts as done: call it after the optimizer's step. A loop of your own
        says where it is.

        Args:
            step: items done since the run began; by default what ``batches`` counted.
            epoch: the epoch to go on with.
            metrics: numbers by name.

        Raises:
            ArgumentError: the step is saved already, or lies behind one that is.
            StorageError: the disk is full or failed; every older checkpoint is intact.
        """
        self.resume()
        self._count()
        if step is not None:
            self._step = step
        if epoch is not None:
            self._epoch = epoch
        return self._commit({name: _number(name, value) for name, value in (metrics or {}).items()})

    def _moment(self) -> dict[str, Any]:
        """What changes when the next item is drawn, before it is: random state and the loader's place."""
        moment: dict[str, Any] = {"rng": capture_rng()} if self._keeps_rng else {}
        if self._loader is not None:
            moment["loader"] = self._loader.capture(self._batch)
        return moment

    def _commit(self, metrics: Mapping[str, float], moment: dict[str, Any] | None = None) -> Committed:
        tree: dict[str, Any] = {**self._objects, **(self._moment() if moment is None else moment)}
        if self._args is not None:
            tree["args"] = self._args
        first = self._saved_at is None
        self._committing = True  # a signal that comes now must not begin another
        try:
            document, notes = document_of(tree, row_major=True)
            committed = self._folder.commit(
                document, step=self._step, epoch=self._epoch, batch=self._batch, metrics=metrics
            )
        finally:
            self._committing = False
        self._saved_at, self._due = self.position, None
        self._committed_time = time.monotonic()
        for note in (*notes, *(self._loader.notes() if self._loader else ())) if first else ():
            log.info("run %s: %s", self.path, note)
        return committed

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def best(self) -> SavedCheckpoint:
        """The best checkpoint by the ``best`` rule. Raises MissingPart while there is none."""
        found = self._folder.best()
        if found is None:
            raise MissingPart(f"`{self.path}`: no checkpoint has a number for the best= rule yet", file=self.path)
        return SavedCheckpoint(found.path, self._objects)

    @property
    def last(self) -> SavedCheckpoint:
        """The newest checkpoint. Raises MissingPart while there is none."""
        found = self._folder.newest()
        if found is None:
            raise MissingPart(f"`{self.path}`: no checkpoint yet", file=self.path)
        return SavedCheckpoint(found.path, self._objects)

    def close(self) -> None:
        """Lets go of the run's lock and of the optimizers; closing twice is fine."""
        if self._watch is not None:
            self._watch.stop()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._folder.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({self.path!r}, {self.position})"


def _check_names(objects: Mapping[str, Any]) -> None:
    for name in objects:
        if name in _LATER:
            raise ArgumentError(f"{name}= is not in this version; leave it out")
        if name in OWN_PARTS:
            raise ArgumentError(f"{name!r} is a part that the run writes itself; give the object another name")


def _number(name: str, value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"metric {name!r} is {type(value).__name__} {value!r:.60}; a number is wanted") from None
