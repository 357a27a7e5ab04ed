"""The commits of a run: what goes into one, and how the one before went."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from holdfast.errors import ArgumentError
from holdfast.objects.loader import LoaderPart
from holdfast.objects.module import ModulePart
from holdfast.objects.rng import capture_rng
from holdfast.runs.placing import Groups
from holdfast.training.background import Background, Busy
from holdfast.training.committed import Committed
from holdfast.training.folder import Facts, RunFolder
from holdfast.training.resuming import Position
from holdfast.training.saver import Saver
from holdfast.training.together import shared_paths
from holdfast.transfer.save import document_of

log = logging.getLogger("holdfast")


class Commits:
    """Makes the commits of one run.

    Args:
        folder: of the run.
        objects: of the run, by name.
        background: how to save while training goes on; None does not.
        args: plain data to record, or None.
        rng: whether random states are part of a commit.

    Attributes:
        at: the position of the newest commit, or of the one that the run was resumed from.
        torn: whether the newest one has to be made again, because the program wrote into its tensors meanwhile.
        active: whether one is being made or waited for: a signal that comes now must not begin another.
        time: of the newest one, by the monotonic clock.
    """

    def __init__(
        self, folder: RunFolder, objects: Mapping[str, Any], background: Background | None, *, args: Any, rng: bool
    ) -> None:
        self.at: Position | None = None
        self.torn = self.active = False
        self.time = time.monotonic()
        self._folder = folder
        if folder.together and background is not None:  # each rank's thread is at another place at any time
            background = msgspec.structs.replace(background, check=False, busy="wait")
        self._saver = Saver(folder, background, objects.values())
        self._busy: Busy = background.busy if background is not None else "wait"
        self._objects = objects
        self._args = args
        self._rng = rng
        self._said = False
        self._known: tuple[Position, dict[str, float]] | None = None

    @property
    def held_back(self) -> Literal["skip", "coalesce"] | None:
        """What a commit by rule must do now: nothing else while another is being written and need not be waited for."""
        return self._busy if self._busy != "wait" and self._saver.busy else None

    def moment(self, loader: LoaderPart | None, batch: int) -> dict[str, Any]:
        """What changes when the next item is drawn, before it is: random state and the loader's place."""
        moment: dict[str, Any] = {"rng": capture_rng()} if self._rng else {}
        if loader is not None:
            moment["loader"] = loader.capture(batch)
        return moment

    def make(
        self, at: Position, metrics: Mapping[str, float], moment: Mapping[str, Any], *, exact: bool = False
    ) -> Committed:
        """Commits the objects as they are.

        Args:
            at: where training goes on from this commit.
            metrics: by name.
            moment: what :meth:`moment` gave.
            exact: whether the program says the step, which must be free then; so must be a place that is saved.
        """
        begin = time.perf_counter()
        self.settle(wait=True)
        tree: dict[str, Any] = {**self._objects, **moment}
        if self._args is not None:
            tree["args"] = self._args
        first, self._said = not self._said, True
        step = self._folder.number_for(at.step, exact=exact or self.at == at)
        facts = Facts(step, at.step, at.epoch, at.batch, dict(metrics) or self._known_metrics(at))
        with self._active():
            document, notes = document_of(tree, row_major=True, shards=self._folder.together)
            committed = self._saver.save(document, facts, self._groups(), begin)
        self.at, self._known, self.torn = at, (at, facts.metrics), False
        self.time = time.monotonic()
        for note in notes if first else ():
            log.info("run %s: %s", self._folder.root, note)
        return committed

    def note(self, at: Position, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of an epoch that is not committed; a commit that comes at this very place has them too."""
        self._folder.note_metrics(at.step, at.epoch - 1, metrics)
        self._known = (at, dict(metrics))

    def _known_metrics(self, at: Position) -> dict[str, float]:
        """The metrics of this place, when a commit is made again or follows the end of an epoch."""
        place, metrics = self._known or (at, {})
        if place == at:
            return metrics
        if self.torn and metrics:  # what was to be committed there is kept beside the commits
            self._folder.note_metrics(place.step, place.epoch - 1, metrics)
        return {}

    def settle(self, *, wait: bool) -> None:
        """Hears how the commit before went.

        Args:
            wait: until it has ended; else one that is under way is left alone.

        Raises:
            StorageError: it failed; every older checkpoint is intact.
        """
        if self._folder.together and not wait:
            return  # every rank hears it at the same place
        try:
            with self._active():
                lost = self._saver.collect(wait=wait)
        except BaseException:
            self.at = None
            raise
        if lost is not None:
            self.at, self.torn = None, True

    def close(self) -> None:
        """Lets go of the optimizers; what is being written must have been waited for."""
        self._saver.close()

    def _groups(self) -> Groups:
        """Parts of the modules that change less often than the rest."""
        if self._folder.together:
            self._folder.shared = shared_paths(self._objects)
            return {}
        parts = {name: ModulePart(value) for name, value in self._objects.items() if isinstance(value, nn.Module)}
        return {(name, key): group for name, part in parts.items() for key, group in part.groups().items()}

    @contextmanager
    def _active(self) -> Iterator[None]:
        before, self.active = self.active, True
        try:
            yield
        finally:
            self.active = before


def number_of(name: str, value: Any) -> float:
    """A metric as a number. Raises ArgumentError when it is none."""
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"metric {name!r} is {type(value).__name__} {value!r:.60}; a number is wanted") from None
