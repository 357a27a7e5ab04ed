"""transformers: a run of what a ``Trainer`` trains, in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.errors import ArgumentError, NotFound
from holdfast.integrations.hosting import Hosted, Kept, not_installed
from holdfast.runs.catalog import scan
from holdfast.runs.verify import verify
from holdfast.serialization.reading import read_tree
from holdfast.state.flatten import child
from holdfast.state.paths import printable
from holdfast.storage.places import is_there, is_url
from holdfast.training.run import Run
from holdfast.transfer.opened import opened_document

try:
    from transformers import Trainer, TrainerCallback, TrainerState
    from transformers.trainer_callback import ExportableState
    from transformers.trainer_utils import TrainOutput
except ImportError as reason:
    raise not_installed("transformers", reason) from None

log = logging.getLogger("holdfast")

_STATE = "trainer_state"


def train(
    trainer: Trainer,
    root: str | os.PathLike[str],
    *,
    best: Any = None,
    keep: Any = None,
    save: str = "1ep",
    fresh: bool = False,
    **options: Any,
) -> TrainOutput:
    """``trainer.train()``, with a holdfast run; the same line goes on where an earlier process stopped.

    It takes the place of ``resume_from_checkpoint``: model, optimizer, scheduler, scaler, the trainer's state with
    its log and its callbacks, random states and the place in the data are in each commit. The trainer's own saving is
    left as ``save_strategy`` says; ``"no"`` is enough.

    Args:
        trainer: ready to train.
        root: the run's folder.
        best: as in ``holdfast.Run``, by names of an evaluation: ``"eval_loss:min"``. Each evaluation is then
            committed with its metrics.
        keep: as in ``holdfast.Run``.
        save: as in ``holdfast.Run``; a step is one of the optimizer.
        fresh: whether to begin anew; the steps of the run that are there move to ``superseded/``.
        **options: the other options of ``holdfast.Run``: ``background``, ``read_back``, ``args``, ``start_from``.

    Returns:
        What ``trainer.train()`` returns.

    Raises:
        RunLocked, MismatchError, CorruptFile: as ``holdfast.Run``.
        ArgumentError: a run in a store.
    """
    if is_url(root):
        raise ArgumentError(
            f"`{printable(os.fspath(root))}`: the trainer reads what a run holds as files: name a folder"
        )
    options = {"best": best, "keep": keep, "save": save, "resume": False if fresh else "last", **options}
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        callback = _RunCallback(trainer, os.fspath(root), options)
        begin = None if fresh else _as_checkpoint(callback.root, folder)
        trainer.add_callback(callback)
        try:
            return trainer.train(resume_from_checkpoint=begin)
        except BaseException as error:
            callback.fail(error)
            raise
        finally:
            trainer.remove_callback(callback)


class _RunCallback(TrainerCallback):
    """Tells a run of the trainer's steps, which are its items: the trainer itself finds the place in its data."""

    def __init__(self, trainer: Trainer, root: str, options: Mapping[str, Any]) -> None:
        self.root = root
        self._trainer, self._options = trainer, options
        self._hosted: Hosted | None = None
        self._metrics: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        trainer = self._trainer
        kept = Kept(lambda: _state_of(trainer), lambda state: None)  # the trainer has read it
        run = Run(
            self.root,
            model=trainer.model_wrapped,
            optimizer=getattr(trainer.optimizer, "optimizer", trainer.optimizer),
            scheduler=trainer.lr_scheduler,
            scaler=trainer.accelerator.scaler,
            trainer=kept,
            **self._options,
        )
        self._hosted = Hosted(run, self._take)
        if run.position.step != state.global_step:
            raise ArgumentError(
                f"`{self.root}`: the run stands at step {run.position.step}, the trainer at {state.global_step}; "
                "another process wrote the run meanwhile: start again"
            )

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._running.epoch_begins()
        self._items = self._running.items(_Steps())

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Between two steps: the batches of the next one are drawn, and what came after the last one is done."""
        hosted = self._running
        measured = hosted.numbers()  # of the weights as they are now, and of no later ones
        if measured and hosted.amid and self._options["best"] is not None:
            hosted.run.save(metrics=measured)
        next(self._items)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **_: Any) -> None:
        self._metrics = dict(metrics or {})

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._running.finish(complete=float(state.epoch or 0).is_integer())
        self._running.run.close()

    def fail(self, error: BaseException) -> None:
        """Lets go of the run when an error ends the training."""
        if self._hosted is not None:
            self._hosted.fail(error)

    @property
    def _running(self) -> Hosted:
        if self._hosted is None:
            raise ArgumentError(f"`{self.root}`: no training is under way")
        return self._hosted

    def _take(self) -> dict[str, Any]:
        """The metrics of the latest evaluation, once: they belong to one step."""
        taken, self._metrics = self._metrics, {}
        return taken


class _Steps:
    """The steps of a trainer as items of a run, over and over."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def _state_of(trainer: Trainer) -> dict[str, Any]:
    """The trainer's state with that of its callbacks, as it is when the trainer itself saves."""
    alive = [*trainer.callback_handler.callbacks, trainer.control]
    exported = TrainerState(stateful_callbacks=[one for one in alive if isinstance(one, ExportableState)])  # type: ignore[misc]
    return {**dataclasses.asdict(trainer.state), "stateful_callbacks": exported.stateful_callbacks}


def _as_checkpoint(root: str, folder: str) -> str | None:
    """Makes ``folder`` a checkpoint for the trainer, out of the newest good one of the run; None without one.

    It holds what the trainer decides by: its state, and the weights, which are not copied. The run restores all of it
    when the trainer has made its objects.
    """
    if not is_there(root):
        return None
    for one in reversed(scan(root).checkpoints):
        try:
            if verify(one.path).status == "CORRUPT":
                continue  # the run passes over it too, and says so
        except NotFound:
            continue
        with opened_document(one.path) as (document, file):
            state = read_tree(child(document.tree, "trainer"), file)
        with open(os.path.join(folder, f"{_STATE}.json"), "w", encoding="utf-8") as out:
            json.dump(state, out)
        for name in os.listdir(one.path):
            if name.startswith("model") and ".safetensors" in name:
                os.symlink(os.path.abspath(os.path.join(one.path, name)), os.path.join(folder, name))
        return folder
    return None
