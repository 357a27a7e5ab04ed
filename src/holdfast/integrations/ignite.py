"""Ignite: a save handler for its ``Checkpoint``, and a run that an engine trains in, in one line each."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sized
from typing import Any

from holdfast.errors import ArgumentError
from holdfast.integrations.hosting import Hosted, Kept, not_installed
from holdfast.policy.report import LoadReport
from holdfast.storage.places import is_there, remove_file
from holdfast.training.run import Run
from holdfast.transfer.load import load_tree
from holdfast.transfer.opened import opened_document
from holdfast.transfer.restore import RestoreOptions, restore_objects
from holdfast.transfer.save import save_file

try:
    import ignite.distributed as idist
    from ignite.engine import Engine, Events
    from ignite.handlers.checkpoint import BaseSaveHandler
except ImportError as reason:
    raise not_installed("pytorch-ignite", reason) from None


class HoldfastSaver(BaseSaveHandler):
    """Ignite's own checkpoint files, written by holdfast: ``Checkpoint(to_save, HoldfastSaver("checkpoints"))``.

    A file appears whole or not at all and survives a power cut when the handler returns. ``Checkpoint`` lets an old
    file go before it saves the new one: here the old one goes when the new one is on the disk.

    Args:
        folder: where the files go; created when missing, and it may hold others.
        save_on_rank: the process that writes.

    Example:
        >>> from holdfast.integrations.ignite import HoldfastSaver
        >>> saver = HoldfastSaver("checkpoints")
        >>> saver({"epoch": 3}, "checkpoint_3.pt")
        >>> saver.load("checkpoint_3.pt")["epoch"]
        3
    """

    def __init__(self, folder: str | os.PathLike[str], *, save_on_rank: int = 0) -> None:
        self.folder = os.fspath(folder)
        self._rank = save_on_rank
        self._unwanted: set[str] = set()

    def __call__(self, checkpoint: Any, filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        if idist.get_rank() != self._rank:
            return
        save_file(checkpoint, self.path_of(filename), name="pt")
        unwanted, self._unwanted = self._unwanted - {filename}, set()
        for one in unwanted:
            if is_there(self.path_of(one)):
                remove_file(self.path_of(one))

    def remove(self, filename: str) -> None:
        """Removes a file when the next one is on the disk."""
        if idist.get_rank() == self._rank:
            self._unwanted.add(filename)

    def path_of(self, filename: str) -> str:
        """Where a file is."""
        return os.path.join(self.folder, filename)

    def load(self, filename: str, *, trusted: Collection[str] = ()) -> Any:
        """The tree of a file, for ``Checkpoint.load_objects``; verified, and nothing of it is run.

        Raises:
            NotFound, CorruptFile, UntrustedType: as ``holdfast.load``.
        """
        return load_tree(self.path_of(filename), "cpu", trusted=trusted)

    def restore(self, filename: str, **objects: Any) -> LoadReport:
        """Gives objects the state of a file, all of them or none, as ``holdfast.restore``."""
        with opened_document(self.path_of(filename)) as (document, file):
            return restore_objects(document, file, objects, RestoreOptions())


def attach(
    trainer: Engine,
    root: str | os.PathLike[str],
    *,
    evaluator: Engine | None = None,
    best: Any = None,
    keep: Any = None,
    save: str = "1ep",
    metrics: Callable[[], Mapping[str, Any]] | None = None,
    **objects: Any,
) -> Run:
    """Keeps a holdfast run of what an engine trains; call it before ``trainer.run``.

    An engine that is run again in another process goes on by itself behind the newest commit, in the middle of an
    epoch too, as if it had not been stopped.

    Args:
        trainer: the engine that trains.
        root: the run's folder.
        evaluator: the engine whose ``state.metrics`` at the end of an epoch are the epoch's; by default ``trainer``.
        best: as in ``holdfast.Run``.
        keep: as in ``holdfast.Run``.
        save: as in ``holdfast.Run``; a step is an iteration.
        metrics: gives the metrics of an epoch, in place of ``evaluator``.
        **objects: what ``holdfast.Run`` takes: modules, optimizers and others by name, and its other options.

    Returns:
        The run; it is closed when the engine has completed.

    Raises:
        RunLocked, ArgumentError: as ``holdfast.Run``.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> from holdfast.integrations.ignite import attach
        >>> net = torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: net(batch).mean().item())
        >>> run = attach(engine, "runs/ignite", model=net)
        >>> state = engine.run([torch.ones(2)] * 3, max_epochs=2)
        >>> run.position
        Position(epoch=2, step=6, batch=0)
    """
    if "engine" in objects:
        raise ArgumentError("`engine` is the name under which the run keeps what the engine itself counts")
    measured = metrics or (_latest(evaluator) if evaluator is not None else lambda: trainer.state.metrics)
    kept = Kept(lambda: _user_values(trainer), lambda values: vars(trainer.state).update(values))
    run = Run(root, best=best, keep=keep, save=save, engine=kept, **objects)
    _Attached(run, measured).listen(trainer)
    return run


class _Attached:
    """A run among the handlers of an engine."""

    def __init__(self, run: Run, metrics: Callable[[], Mapping[str, Any]]) -> None:
        self._run, self._metrics = run, metrics
        self._whole = True  # whether the epoch that was begun last came to its end

    def listen(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def _started(self, engine: Engine) -> None:
        data, length = engine.state.dataloader, engine.state.epoch_length
        if data is None:
            raise ArgumentError(
                f"`{self._run.path}`: the engine runs without data, and a run counts its items: give some"
            )
        if length is not None and length != (len(data) if isinstance(data, Sized) else None):
            raise ArgumentError(
                f"`{self._run.path}`: epoch_length={length} is not the length of the data, and an epoch of a run is "
                "one pass over them: leave epoch_length out"
            )
        self._hosted = Hosted(self._run, self._metrics)
        at = self._run.position
        engine.state.epoch, engine.state.iteration = at.epoch, at.step
        engine.state.dataloader = self._hosted.feed(data)

    def _epoch_started(self, engine: Engine) -> None:
        self._hosted.epoch_begins()
        self._whole = False
        # one pass for each epoch, also behind one that ended early; from where a resumed one stands
        engine._dataloader_iter, engine._init_iter = None, self._run.position.batch

    def _epoch_completed(self, engine: Engine) -> None:
        self._whole = True

    def _completed(self, engine: Engine) -> None:
        self._hosted.finish(complete=self._whole)
        self._run.close()

    def _failed(self, engine: Engine, error: BaseException) -> None:
        """As without a handler; where the program has one of its own, Ignite goes on, and so does the run."""
        if len(engine._event_handlers[Events.EXCEPTION_RAISED]) == 1:
            self._run.__exit__(type(error), error, None)
            raise error


def _latest(evaluator: Engine) -> Callable[[], Mapping[str, Any]]:
    """Gives the metrics of each evaluation once: an epoch without one has none."""
    found: list[dict[str, Any]] = []
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: found.append(dict(engine.state.metrics)))

    def take() -> Mapping[str, Any]:
        taken = found[-1] if found else {}
        found.clear()
        return taken

    return take


def _user_values(engine: Engine) -> dict[str, Any]:
    """What the program has put into the engine's state and named in ``state_dict_user_keys``."""
    values = vars(engine.state)
    return {key: values[key] for key in engine.state_dict_user_keys if key in values}
