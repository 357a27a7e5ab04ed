"""The data of a run: in each epoch one pass over one loader, in the first from where the checkpoint stood."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from holdfast.errors import ArgumentError
from holdfast.objects.loader import LoaderPart
from holdfast.objects.passing import pass_over
from holdfast.training.resuming import Position

log = logging.getLogger("holdfast")

UNSEEN = (
    "no item of this epoch went through run.batches: a training that is killed inside an epoch begins it again; "
    "`for item in run.batches(loader)` goes on in the middle"
)


class Feed:
    """What ``batches`` reads.

    Args:
        root: the run's folder, for messages.
        loader: the one that the run was given, or None: then ``batches`` brings it.

    Attributes:
        part: the loader of the present epoch, or of the last one.
    """

    def __init__(self, root: str, loader: Iterable[Any] | None) -> None:
        self._root = root
        self._given = loader is not None
        self.part = None if loader is None else LoaderPart(loader)
        self._state: dict[str, Any] | None = None
        self._rng: dict[str, Any] | None = None

    def resume(self, state: dict[str, Any] | None, rng: dict[str, Any] | None) -> None:
        """Takes the place and the random state of a checkpoint, for the next pass."""
        self._state, self._rng = state, rng

    def begin(self, loader: Iterable[Any], position: Position, *, amid: bool) -> Iterator[Any]:
        """An iterator over what is left of an epoch.

        Args:
            loader: what ``batches`` was given.
            position: where the run stands.
            amid: whether an item is being worked on.

        Raises:
            ArgumentError: the epoch has been begun, or it is another loader than the run's.
            MismatchError: it is not the loader that was saved, or not its data.
        """
        state, self._state = self._state, None
        if amid or (position.batch and state is None):
            raise ArgumentError(
                f"`{self._root}`: batches() in the middle of epoch {position.epoch}, with no saved place to go on "
                "from. An epoch is one pass over one loader: call end(epoch) before the next one, read a validation "
                "loader without batches(), and give several loaders as one iterable"
            )
        if self.part is None or (self.part.obj is not loader and not self._given):
            self.part = LoaderPart(loader)
        if self.part.obj is not loader:
            raise ArgumentError(f"`{self._root}`: batches() was given another loader than loader= of the run; give one")
        for note in self.part.notes() if state is not None and position.batch else ():
            log.warning("run %s resumes at batch %d: %s", self._root, position.batch, note)
        iterator = self._iterator(self.part, state)
        for note in self.part.warnings:
            log.warning("run %s: %s", self._root, note)
        return iterator

    def _iterator(self, part: LoaderPart, state: dict[str, Any] | None) -> Iterator[Any]:
        if state is None:
            return part.begin()
        if "passed" not in state:
            return part.go_on(state, self._rng)
        iterator = part.begin()  # saved by another number of processes: another order, and so another place
        pass_over(iterator, state["passed"])
        return iterator

    def notes(self) -> list[str]:
        """What a resume can't make bit-identical with the loader of the present epoch."""
        return [] if self.part is None else self.part.notes()
