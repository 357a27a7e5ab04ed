"""Takes a run's state to the disk: at once, or on a thread while training goes on."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import torch
from torch.optim import Optimizer

from holdfast.errors import SnapshotTorn
from holdfast.formats.base import Document
from holdfast.runs.placing import Groups
from holdfast.training.background import Background
from holdfast.training.committed import Committed, Outcome
from holdfast.training.folder import Facts, RunFolder
from holdfast.training.snapshots.offloads import Offloads
from holdfast.training.snapshots.snapshot import Snapshot
from holdfast.training.snapshots.staging import Staging

log = logging.getLogger("holdfast")


class _Job(msgspec.Struct):
    """One save that was begun.

    Attributes:
        document: what to write.
        facts: what the commit says.
        groups: parts that change less often.
        committed: what the caller holds.
        begin: when it was asked for, by the monotonic clock.
    """

    document: Document
    facts: Facts
    groups: Groups
    committed: Committed
    begin: float


class Saver:
    """The saves of one run, one after the other.

    Args:
        folder: of the run.
        background: how to save while training goes on; None saves before :meth:`save` returns.
        objects: of the run; steps of the optimizers among them are waited for.
    """

    def __init__(self, folder: RunFolder, background: Background | None, objects: Iterable[Any]) -> None:
        self._folder = folder
        self._background = background
        self._staging, self._offloads = Staging(), Offloads()
        self._thread: threading.Thread | None = None
        self._snapshot: Snapshot | None = None
        self._last: Committed | None = None
        self._told = True
        self._optimizers: list[Optimizer] = []
        self._hooks: list[Any] = []
        if background is not None and not background.copy:
            for value in objects:
                if isinstance(value, Optimizer):
                    self._watch(value)

    def _watch(self, optimizer: Optimizer) -> None:
        # A wrapper that only looks like an optimizer has no hooks; what it owns is then copied at each save.
        if hasattr(optimizer, "_optimizer_step_pre_hooks"):
            self._hooks.append(optimizer.register_step_pre_hook(_outside_graphs(self._before_step)))
            self._optimizers.append(optimizer)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        snapshot, last = self._snapshot, self._last
        if snapshot is None or last is None:
            return
        begin = time.perf_counter()
        closures = (*args[1:], kwargs.get("closure"))  # the first argument is the optimizer itself
        snapshot.before_step(optimizer, closure=any(given is not None for given in closures))
        last.stall += time.perf_counter() - begin

    # -- saving --------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, document: Document, facts: Facts, groups: Groups, begin: float) -> Committed:
        """Saves a document over live tensors; in the background it returns when they may be trained again.

        An earlier save must have been waited for.

        Args:
            document: the state.
            facts: what the commit says.
            groups: parts that change less often.
            begin: when the save was asked for, by ``time.perf_counter``.
        """
        committed = Committed(facts.step, self._folder.path_of(facts.step))
        job = _Job(document, facts, groups, committed, begin)
        if self._background is None:
            committed.end(self._write(job, None))
            committed.stall = committed.seconds
            return committed
        snapshot = Snapshot(
            document, self._staging, self._optimizers, offloads=self._offloads, digests=self._background.check
        )
        self._snapshot, self._last, self._told = snapshot, committed, False
        self._thread = threading.Thread(target=self._run, args=(job, snapshot), name="holdfast save")
        self._thread.start()  # no daemon: a program that ends waits for it
        atexit.register(self._at_exit)
        committed.stall = time.perf_counter() - begin
        return committed

    def _run(self, job: _Job, snapshot: Snapshot) -> None:
        try:
            outcome: Outcome | BaseException = self._write(job, snapshot)
        except BaseException as error:
            outcome = error
        self._snapshot = None
        snapshot.close()
        job.committed.end(outcome)

    def _write(self, job: _Job, snapshot: Snapshot | None) -> Outcome:
        staged = self._folder.stage(job.document, job.facts, job.groups)
        try:
            if snapshot is not None:
                self._folder.written(snapshot.check)
            pruned = self._folder.publish(staged)
        finally:
            staged.abandon()
        return Outcome(staged.bytes, staged.changed, time.perf_counter() - job.begin, pruned)

    # -- how it went ---------------------------------------------------------------------------------------------------

    def collect(self, *, wait: bool) -> Committed | None:
        """How the last background save went, once it has ended.

        Args:
            wait: for its end; else one that is under way is left alone.

        Returns:
            A save that was not committed because the program wrote into its tensors: it has to be made again, and from
            now on everything is copied at the save. None when there is nothing to do.

        Raises:
            HoldfastError: what it failed of, said once.
        """
        thread, last = self._thread, self._last
        if thread is None or last is None or (not wait and thread.is_alive()):
            return None
        thread.join()
        self._thread = None
        atexit.unregister(self._at_exit)
        error, self._told = last.error, True
        if error is None:
            return None
        if not isinstance(error, SnapshotTorn) or self._background is None or self._background.check:
            error.add_note(f"in the background, while step {last.step} of run {self._folder.root} was saved")
            raise error
        log.warning(
            "run %s: %s. It is saved again, and from now on everything is copied first", self._folder.root, error
        )
        self._background = msgspec.structs.replace(self._background, copy=True)
        self._unhook()
        return last

    def _at_exit(self) -> None:
        """Nobody asked how the last save went: what it failed of must not go unsaid."""
        last = self._last
        if last is not None and last.error is not None and not self._told:
            raise last.error

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizers = [], []

    def close(self) -> None:
        """Lets go of the optimizers; a save that is under way must have been waited for."""
        self._unhook()


def _outside_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that a compiled optimizer step calls and does not trace. Does not import the compiler by itself."""
    disabled: list[Callable[..., None]] = []

    def outside(*arguments: Any) -> None:
        if not disabled and "torch._dynamo" in sys.modules:
            disabled.append(torch.compiler.disable(hook))  # type: ignore[no-untyped-call]
        (disabled[0] if disabled else hook)(*arguments)

    outside._torchdynamo_disable = True  # type: ignore[attr-defined]  # what disable() marks a function with
    return outside
