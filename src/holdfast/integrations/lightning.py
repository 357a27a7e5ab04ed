"""Lightning: files that are whole, checked and harmless, and a run that goes on where it was, in one line each.

Works with ``lightning`` and with ``pytorch_lightning``: with the one that the program has imported.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from holdfast.errors import ArgumentError
from holdfast.integrations.hosting import Hosted, Kept, not_installed, numbered
from holdfast.storage.places import is_there, remove_file
from holdfast.training.run import Run
from holdfast.transfer.load import load_tree
from holdfast.transfer.save import save_file

_OLD_NAME = find_spec("lightning") is None or (
    "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
)

try:
    if TYPE_CHECKING or not _OLD_NAME:
        from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
        from lightning.pytorch import Callback, LightningModule, Trainer
    else:
        from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
        from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as reason:
    raise not_installed("lightning", reason) from None

log = logging.getLogger("holdfast")


class HoldfastIO(CheckpointIO):
    """Lightning's own checkpoint files, written by holdfast: ``Trainer(plugins=[HoldfastIO()])``.

    A file appears whole or not at all, survives a power cut when ``save_checkpoint`` returns, is verified when it is
    read, and runs no code. It is a torch file as before: ``torch.load`` and ``load_from_checkpoint`` read it. The
    newest file is not removed before a newer one is on the disk, under ``AsyncCheckpointIO`` too.

    Args:
        trusted: full names of classes in ``hyper_parameters`` and the like that may be rebuilt, ``{"my.pkg.Config"}``.

    Example:
        >>> from holdfast.integrations.lightning import HoldfastIO
        >>> io = HoldfastIO()
        >>> io.save_checkpoint({"state_dict": {}, "epoch": 3}, "a.ckpt")
        >>> io.load_checkpoint("a.ckpt")["epoch"]
        3
    """

    def __init__(self, trusted: Collection[str] = ()) -> None:
        self._trusted = trusted
        self._newest: str | None = None
        self._writing: str | None = None
        self._unwanted: set[str] = set()
        self._awaited: set[str] = set()
        self._lock = threading.Lock()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes a file. Raises ArgumentError with ``storage_options``, UnsupportedValue, StorageError."""
        if storage_options is not None:
            raise ArgumentError(f"`{path}`: HoldfastIO takes no storage_options")
        with self._lock:
            self._writing = os.fspath(path)
        save_file(checkpoint, path, name="pt")
        with self._lock:
            self._newest, self._writing = self._writing, None
            unwanted = self._unwanted - {self._newest}
            self._unwanted = {self._newest} & self._awaited
            self._awaited -= self._unwanted
        for one in unwanted:
            remove_file(one)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file, whoever wrote it; ``weights_only=False`` runs no code either.

        Raises:
            NotFound, CorruptFile, UntrustedType: there is none, it is damaged, or it needs a class that is not trusted.
        """
        found: dict[str, Any] = load_tree(path, "cpu" if map_location is None else map_location, trusted=self._trusted)
        return found

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a file; the newest one when the next is on the disk."""
        name = os.fspath(path)
        with self._lock:
            if name == self._writing or not is_there(name):  # a thread is still to write it
                self._awaited.add(name)
            elif name == self._newest:
                self._unwanted.add(name)
            else:
                remove_file(name)


class HoldfastCallback(Callback):
    """Keeps a holdfast run of a training: ``Trainer(callbacks=[HoldfastCallback("runs/a", best="val_loss:min")])``.

    A training that is started again goes on by itself behind the newest commit, in the middle of an epoch too, as if
    it had not been stopped: model, optimizers, schedulers, precision, loops, the other callbacks, the data module,
    random states and the order of the data. Metrics are those that ``self.log`` gave by the end of an epoch.

    Args:
        root: the run's folder.
        best: as in ``holdfast.Run``, by names of logged metrics.
        keep: as in ``holdfast.Run``.
        save: as in ``holdfast.Run``; a step is a batch.
        **options: the other options of ``holdfast.Run``: ``background``, ``read_back``, ``args``, ``rng``, ``resume``,
            ``start_from``.

    Attributes:
        run: the ``holdfast.Run``, from the beginning of ``fit`` on.
    """

    run: Run

    def __init__(
        self, root: str | os.PathLike[str], *, best: Any = None, keep: Any = None, save: str = "1ep", **options: Any
    ) -> None:
        self._options = {"best": best, "keep": keep, "save": save, **options}
        self._root = os.fspath(root)
        self._hosted: Hosted | None = None
        self._seen: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resumes, now that all objects are there."""
        self._process = trainer.strategy.process_dataloader
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        self.run = Run(self._root, **self._options, **self._objects(trainer, pl_module))
        self._hosted = hosted = Hosted(self.run, lambda: self._measured(trainer))
        if hosted.at is not None and trainer.ckpt_path:
            raise ArgumentError(
                f"`{self._root}`: the run goes on by itself from step {hosted.at.step}, and fit was given "
                f"ckpt_path={trainer.ckpt_path!r} as well: leave it out, or give the run another folder"
            )
        ours = {number: signal.getsignal(number) for number in before}
        self._handlers = {number: handler for number, handler in ours.items() if handler is not before[number]}
        for number in self._handlers:  # Lightning keeps those that it finds, and puts them back when all is over
            signal.signal(number, before[number])
        trainer.strategy.process_dataloader = self._feeding(trainer, hosted)  # type: ignore[method-assign, assignment]
        trainer.fit_loop._combined_loader = None  # made early where a module asked how many steps there will be

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals: Lightning's handler would end the program before the run can save."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._check(trainer)
        loop = trainer.fit_loop.epoch_loop
        self._stepped = None if loop.restarted_on_train_batch_end else loop._batches_that_stepped
        if self.run.position.batch == 0:
            _as_any_other(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commits the epoch before."""
        self._running.epoch_begins()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lets the rest of a resumed epoch end as it would have: its schedulers step too."""
        _as_any_other(trainer)
        if self._stepped is not None:  # Lightning counts one more where it passes over a validation that was done
            trainer.fit_loop.epoch_loop._batches_that_stepped, self._stepped = self._stepped, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commits the end of the training."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        whole = progress.is_last_batch or progress.current.ready >= trainer.num_training_batches
        self._running.finish(complete=whole)
        self._let_go(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Commits what the rules ask for in case of an error, and lets go of the run."""
        if self._hosted is not None:
            self._running.fail(exception)
            self._let_go(trainer)

    @property
    def _running(self) -> Hosted:
        if self._hosted is None:
            raise ArgumentError(f"`{self._root}`: no fit is under way")
        return self._hosted

    def _measured(self, trainer: Trainer) -> dict[str, Any]:
        """What was logged since the epoch before: Lightning keeps metrics for epochs that do not validate."""
        before, self._seen = self._seen, dict(trainer.callback_metrics)
        return {name: value for name, value in self._seen.items() if value is not before.get(name)}

    def _let_go(self, trainer: Trainer) -> None:
        self.run.close()
        self._hosted = None
        trainer.strategy.process_dataloader = self._process  # type: ignore[method-assign]

    def _feeding(self, trainer: Trainer, hosted: Hosted) -> Callable[[object], object]:
        process = self._process

        def feed(loader: object) -> object:
            found: Any = process(loader)
            return hosted.feed(found) if trainer.training else found

        return feed

    def _check(self, trainer: Trainer) -> None:
        loaders = trainer.fit_loop._combined_loader
        if loaders is not None and len(loaders.flattened) > 1:
            raise ArgumentError(
                f"`{self._root}`: a run keeps the place of one training loader, and there are "
                f"{len(loaders.flattened)}: give one, over a dataset of them all"
            )
        if trainer.num_training_batches == float("inf"):
            raise ArgumentError(
                f"`{self._root}`: the training loader has no length, and Lightning then draws an item before the one "
                "before it is trained, so that no place in it can be kept: give its dataset a __len__"
            )

    def _objects(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        precision = trainer.precision_plugin
        found = {
            "model": trainer.strategy.model or module,
            **numbered("optimizer", trainer.optimizers),
            **numbered("scheduler", schedulers),
            "precision": precision if precision.state_dict() else None,
            "datamodule": trainer.datamodule,  # type: ignore[attr-defined]
            "loops": Kept(lambda: self._loops(trainer), trainer.fit_loop.load_state_dict),
            "callbacks": Kept(lambda: _callbacks(trainer, self), lambda state: _restore_callbacks(trainer, state)),
            "hooks": Kept(lambda: _hooks(trainer, module, self), lambda state: _restore_hooks(trainer, module, state)),
        }
        return {name: one for name, one in found.items() if one is not None}

    def _loops(self, trainer: Trainer) -> dict[str, Any]:
        """The progress of Lightning's loops, at the run's position: between two batches, or between two epochs."""
        state = dict(trainer.fit_loop.state_dict())
        state["state_dict"] = {}  # the place of the loaders, which the run keeps
        position = self.run.position
        done, begun = position.epoch, position.epoch + (position.batch > 0)
        counts = {"ready": begun, "started": begun, "processed": done, "completed": done}
        state["epoch_progress"] = {"total": counts, "current": dict(counts)}
        return state


def _as_any_other(trainer: Trainer) -> None:
    """Tells Lightning's loops that nothing is left to make up for: the run stands where one of them begins anew."""
    trainer.fit_loop._restarting = False  # the property would be true again with max_steps
    trainer.fit_loop.epoch_loop.restarting = False


def _callbacks(trainer: Trainer, own: Callback) -> dict[str, Any]:
    states = {one.state_key: one.state_dict() for one in _others(trainer, own)}
    return {key: state for key, state in states.items() if state}


def _others(trainer: Trainer, own: Callback | None = None) -> list[Callback]:
    return [one for one in trainer.callbacks if one is not own]  # type: ignore[attr-defined]


def _restore_callbacks(trainer: Trainer, states: Mapping[str, Any]) -> None:
    for one in _others(trainer):
        if one.state_key in states:
            one.load_state_dict(states[one.state_key])


def _hooks(trainer: Trainer, module: LightningModule, own: Callback) -> dict[str, Any]:
    """What the other callbacks and the module add to a checkpoint, or put in place of its weights."""
    weights = module.state_dict()
    given = {"state_dict": weights, "epoch": trainer.current_epoch, "global_step": trainer.global_step}
    checkpoint = dict(given)
    for one in _others(trainer, own):
        one.on_save_checkpoint(trainer, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    return {key: value for key, value in checkpoint.items() if value is not given.get(key)}


def _restore_hooks(trainer: Trainer, module: LightningModule, state: Mapping[str, Any]) -> None:
    if state:
        checkpoint = {"state_dict": module.state_dict(), **state}
        for one in _others(trainer):
            one.on_load_checkpoint(trainer, module, checkpoint)
        module.on_load_checkpoint(checkpoint)
