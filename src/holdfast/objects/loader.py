"""Data loaders: going on in the middle of an epoch with the very batches that would have come.

A loader with its own ``state_dict`` is asked for it. Any other DataLoader draws its order when an iterator begins, so
the random state of that moment is kept; on resume the order is drawn again from it, the batches that were done are
passed over without loading them, and then the random state of the save is put back. Source of what is drawn when:
``torch/utils/data/dataloader.py`` and ``sampler.py`` of torch 2.13.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from holdfast.errors import MismatchError
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.objects.stateful import Stateful, class_name


class LoaderPart:
    """The loader of a run.

    Args:
        loader: a DataLoader, a loader with its own state_dict, or any iterable that gives the same items each time.
    """

    kind = "loader"

    def __init__(self, loader: Iterable[Any]) -> None:
        self.obj = loader
        self._active: Iterable[Any] = loader
        self._begun: dict[str, Any] | None = None
        self._reused = False

    def describe(self) -> dict[str, Any]:
        """What is recorded beside the state."""
        return {"kind": self.kind, "class": class_name(self.obj)}

    def capture(self, batch: int) -> dict[str, Any]:
        """The loader's place after ``batch`` items of this epoch."""
        if isinstance(self.obj, Stateful):
            return {"batch": batch, "own": self.obj.state_dict()}
        return {
            "batch": batch,
            "begun": self._begun if batch else None,
            "reused": self._reused if batch else self._keeps_workers() and self._begun is not None,
            "generators": self._generator_states(),
        }

    def begin(self) -> Iterator[Any]:
        """An iterator over a whole epoch."""
        self._begun = self._moment()
        self._reused = self._keeps_workers() and getattr(self._active, "_iterator", None) is not None
        return iter(self._active)

    def go_on(self, state: dict[str, Any], rng: dict[str, Any] | None) -> Iterator[Any]:
        """An iterator over the rest of an epoch.

        Args:
            state: what ``capture`` gave.
            rng: the random state of the save, put back when the order stands; None when the run keeps none.

        Raises:
            MismatchError: the loader ends before the place that was saved: it is not the same data.
        """
        if "own" in state:
            self.obj.load_state_dict(state["own"])  # type: ignore[attr-defined]  # it had one when it was saved
            iterator = iter(self.obj)
            if rng is not None and state["batch"]:
                restore_rng(rng)  # the loader draws a seed when its iterator begins
            return iterator
        if state["batch"] == 0 and not state["reused"]:
            self._restore_generators(state["generators"])
            return self.begin()
        moment = state["begun"] or self._moment(state["generators"])
        self._restore_moment(moment)
        iterator = self._skipping(state["batch"], lambda: self._restore_moment(moment) if state["reused"] else None)
        self._begun, self._reused = moment, state["reused"]
        if state["batch"]:
            self._restore_generators(state["generators"])
            if rng is not None:
                restore_rng(rng)
        return iterator

    def notes(self) -> list[str]:
        """What a resume from the middle of an epoch can't make bit-identical with this loader."""
        if isinstance(self.obj, Stateful) or not isinstance(self.obj, DataLoader):
            return []
        notes = []
        if self.obj.num_workers:
            notes.append("random draws inside loader workers are not covered; the order of the data is")
        if isinstance(self.obj.dataset, IterableDataset):
            notes.append("an iterable dataset is read again up to its place; its order is its own business")
        return notes

    def _skipping(self, count: int, before: Callable[[], None]) -> Iterator[Any]:
        loader = self.obj
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            iterator = iter(loader)
            for done in range(count):
                if next(iterator, self) is self:
                    raise _too_short(done, count)
            return iterator
        # DataLoader refuses a new sampler on a live loader, so a shallow copy gets it, past that check
        resumed = copy.copy(loader)
        name = "batch_sampler" if loader.batch_sampler is not None else "sampler"
        sampler = _SkippingSampler(getattr(loader, name), count, before)
        object.__setattr__(resumed, name, sampler)
        resumed._iterator = None
        if self._keeps_workers():
            self._active = resumed  # its workers live on: the next epochs go through it, as they would have
        iterator = iter(resumed)
        sampler.prime()
        return iterator

    def _keeps_workers(self) -> bool:
        return bool(getattr(self.obj, "persistent_workers", False))

    def _moment(self, generators: list[torch.Tensor] | None = None) -> dict[str, Any]:
        return {"rng": capture_rng(), "generators": self._generator_states() if generators is None else generators}

    def _restore_moment(self, moment: dict[str, Any]) -> None:
        restore_rng(moment["rng"])
        self._restore_generators(moment["generators"])

    def _generators(self) -> list[torch.Generator]:
        """The generators that loader and samplers were given, each once, in a fixed order."""
        batch_sampler = getattr(self.obj, "batch_sampler", None)
        owners = (self.obj, getattr(self.obj, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        unique = {id(one): one for one in found if isinstance(one, torch.Generator)}
        return list(unique.values())

    def _generator_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _restore_generators(self, states: list[torch.Tensor]) -> None:
        generators = self._generators()
        if len(generators) != len(states):
            raise MismatchError(
                f"`loader`: {len(states)} generators were saved with it, it has {len(generators)}: build it as before"
            )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class _SkippingSampler:
    """A sampler whose first pass leaves out the first ``count`` items.

    Nothing is drawn before the first item is asked for or ``prime`` is called, as with the sampler inside: the loader
    draws a seed of its own in between.
    """

    def __init__(self, inner: Any, count: int, before: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count
        self._before: Callable[[], None] | None = before
        self._latest: _Pass | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)  # batch_size, drop_last and whatever a program looks at

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        self._latest = _Pass(self)
        return self._latest

    def prime(self) -> None:
        """Draws the order now, unless the loader has asked for an item already."""
        if self._latest is not None and self._before is not None:
            self._latest.begin()

    def start(self) -> Iterator[Any]:
        """The inner iterator, past the items to leave out; only the first pass leaves any out."""
        count, before = self._count, self._before
        self._count, self._before = 0, None
        if before is not None:
            before()
        iterator: Iterator[Any] = iter(self._inner)
        for done in range(count):
            if next(iterator, self) is self:
                raise _too_short(done, count)
        return iterator


class _Pass:
    def __init__(self, sampler: _SkippingSampler) -> None:
        self._sampler = sampler
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def begin(self) -> Iterator[Any]:
        if self._iterator is None:
            self._iterator = self._sampler.start()
        return self._iterator

    def __next__(self) -> Any:
        return next(self.begin())


def _too_short(done: int, count: int) -> MismatchError:
    return MismatchError(
        f"`loader`: {count} batches of this epoch were done when it was saved, but it ends after {done}: give the run "
        "the same data and batch size",
        path="loader",
    )
